"""The writer: one pass, whole files, and refusals that name the tensor."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

import gguf
import numpy as np
import pytest

from edgellm.convert import slabs, writer
from edgellm.convert.source import Source, planned
from edgellm.errors import BadInputError, OutputError
from edgellm.formats.gguf import read_gguf
from tests.support.tiny_llama import TYPES, read_source, write_tiny_llama

NAME = "model.layers.1.mlp.up_proj.weight"


def types_of(source: Source, kind: str) -> dict[str, str]:
    return {t.name: "F32" if t.always_f32 else kind for t in source.tensors}


def write(source: Source, path: Path, kind: str = "Q8_0", n_workers: int = 2) -> writer.Written:
    return writer.write_gguf(path, source, types_of(source, kind), source.header, n_workers=n_workers)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_sizes_and_hash_are_those_of_the_file(tmp_path: Path, kind: str) -> None:
    source = read_source(write_tiny_llama(tmp_path / "m"))
    written = write(source, tmp_path / "m.gguf", kind)
    content = (tmp_path / "m.gguf").read_bytes()
    file = read_gguf(tmp_path / "m.gguf")
    assert written.file_bytes == len(content)
    assert written.sha256 == hashlib.sha256(content).hexdigest()
    assert written.tensor_bytes == sum(t.n_bytes for t in file.tensors.values())
    needed = writer.needed_bytes(source, types_of(source, kind))
    assert needed == written.file_bytes - file.data_offset
    assert {t.type_name for t in file.tensors.values()} == {"F32", kind}


def test_the_package_gguf_reads_the_same(tmp_path: Path) -> None:
    directory = write_tiny_llama(tmp_path / "m")
    source = read_source(directory)
    write(source, tmp_path / "m.gguf", "F32")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert [t.name for t in reader.tensors] == [t.name for t in source.tensors]
    assert all(t.data_offset % 32 == 0 for t in reader.tensors)
    norm = next(t for t in reader.tensors if t.name == "output_norm.weight")
    origin = next(t for t in source.tensors if t.name == "output_norm.weight").parts[0].origin
    assert not isinstance(origin, np.ndarray)
    raw = origin.path.read_bytes()[origin.offset :][: origin.n_bytes]
    assert norm.data.tobytes() == raw


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_are_refused_with_the_tensors_name(
    tmp_path: Path, dtype: str, kind: str, value: float
) -> None:
    weights = np.full((96, 64), 0.5, dtype=TYPES[dtype])
    weights[41, 3] = value
    directory = write_tiny_llama(tmp_path / "m", dtype=dtype, tensors={NAME: weights})
    with pytest.raises(BadInputError, match=r"blk\.1\.ffn_up\.weight.*NaN"):
        write(read_source(directory), tmp_path / "m.gguf", kind)


def test_nan_in_a_norm_is_refused_as_well(tmp_path: Path) -> None:
    norm = np.full(64, np.nan, dtype=TYPES["BF16"])
    directory = write_tiny_llama(tmp_path / "m", dtype="BF16", tensors={"model.norm.weight": norm})
    with pytest.raises(BadInputError, match=r"output_norm\.weight"):
        write(read_source(directory), tmp_path / "m.gguf")


def test_weights_beyond_f16_are_refused_with_the_tensors_name(tmp_path: Path) -> None:
    weights = np.full((96, 64), 1.0, dtype=np.float32)
    weights[7, 7] = 70000.0
    source = read_source(write_tiny_llama(tmp_path / "m", tensors={NAME: weights}))
    with pytest.raises(BadInputError, match=r"blk\.1\.ffn_up\.weight.*65504.*BF16"):
        write(source, tmp_path / "m.gguf", "F16")
    assert write(source, tmp_path / "bf16.gguf", "BF16").file_bytes > 0


def test_a_source_that_shrinks_after_its_header_was_read(tmp_path: Path) -> None:
    directory = write_tiny_llama(tmp_path / "m")
    source = read_source(directory)
    weights = directory / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 100_000)
    with pytest.raises(BadInputError, match=r"model\.safetensors: ends at byte \d+"):
        write(source, tmp_path / "m.gguf")


def test_an_existing_file_of_that_name_does_not_matter_to_the_bytes(tmp_path: Path) -> None:
    source = read_source(write_tiny_llama(tmp_path / "m"))
    write(source, tmp_path / "one.gguf", "Q4_0")
    (tmp_path / "two.gguf").write_bytes(b"x" * 10_000_000)
    write(source, tmp_path / "two.gguf", "Q4_0")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()


@pytest.mark.parametrize("slab_weights", [1, 100, 1 << 12, 1 << 19])
@pytest.mark.parametrize("n_workers", [1, 3])
def test_slabs_and_threads_change_no_byte(
    tmp_path: Path, slab_weights: int, n_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Biases in rotary order and rows of every size are among them."""
    source = read_source(write_tiny_llama(tmp_path / "m", {"attention_bias": True, "head_dim": 32}))
    expected = write(source, tmp_path / "whole.gguf", "Q4_0", n_workers=1)
    monkeypatch.setattr(slabs, "SLAB_WEIGHTS", slab_weights)
    assert write(source, tmp_path / "parts.gguf", "Q4_0", n_workers) == expected


def test_computed_tensors_are_written(tmp_path: Path) -> None:
    source = read_source(write_tiny_llama(tmp_path / "m"))
    values = np.arange(8, dtype=np.float32)
    extra = planned("rope_freqs.weight", values, always_f32=True)
    source = dataclasses.replace(source, tensors=(*source.tensors, extra))
    write(source, tmp_path / "m.gguf")
    tensor = read_gguf(tmp_path / "m.gguf").tensors["rope_freqs.weight"]
    assert (tmp_path / "m.gguf").read_bytes()[tensor.offset : tensor.offset + 32] == values.tobytes()


def test_progress_counts_every_weight_once(tmp_path: Path) -> None:
    source = read_source(write_tiny_llama(tmp_path / "m", {"attention_bias": True}))
    seen: list[int] = []
    types = types_of(source, "Q8_0")
    writer.write_gguf(tmp_path / "m.gguf", source, types, source.header, n_workers=2, progress=seen.append)
    assert sum(seen) == source.shape.n_params


def test_a_full_disk_is_noticed_before_the_work(tmp_path: Path) -> None:
    writer.check_free_space(tmp_path / "not" / "there", 1)
    with pytest.raises(OutputError, match=r"needed, .* free") as caught:
        writer.check_free_space(tmp_path / "not" / "there", 1 << 60)
    assert caught.value.hint


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
@pytest.mark.parametrize("slab_weights", [None, 64])
def test_tensors_of_nothing_but_zeros_are_named(tmp_path: Path, kind: str, slab_weights: int | None) -> None:
    up, down = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"
    almost = np.zeros((96, 64), dtype=np.float32)
    almost[-1, -1] = 1.0
    tensors = {
        f"{up}.weight": np.zeros((96, 64), dtype=np.float32),
        f"{up}.bias": np.zeros(96, dtype=np.float32),
        f"{down}.bias": np.zeros(64, dtype=np.float32),
        "model.layers.1.mlp.up_proj.weight": almost,
        "model.norm.weight": np.zeros(64, dtype=np.float32),
    }
    source = read_source(write_tiny_llama(tmp_path / "m", {"mlp_bias": True}, tensors=tensors))
    written = writer.write_gguf(
        tmp_path / "m.gguf",
        source,
        types_of(source, kind),
        source.header,
        n_workers=2,
        slab_weights=slab_weights,
    )
    assert set(written.zero_tensors) == {"blk.0.ffn_up.weight", "output_norm.weight"}
    whole = read_source(write_tiny_llama(tmp_path / "whole"))
    assert write(whole, tmp_path / "whole.gguf", kind).zero_tensors == ()

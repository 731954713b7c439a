"""Our files hold what llama.cpp's own converter and quantizer write: names, shapes, types and bytes of every tensor."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from edgellm.checkpoint import open_checkpoint
from edgellm.convert import pipeline, slabs, writer
from edgellm.convert.source import Source
from edgellm.formats.gguf import GGUFFile, read_gguf
from tests.convert.conftest import OfType, recipe_for
from tests.support import oracle

QUANTIZED = (
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "Q3_K_L", "Q3_K_M", "Q3_K_S",
    "Q2_K",
)  # fmt: skip

# Keys in which we differ from llama.cpp's converter, and why.
OTHER_KEYS = {
    "general.name": "ours is the directory's name as it is; theirs is prettified",
    "general.basename": "theirs is guessed from the directory's name",
    "general.version": "theirs is guessed from the directory's name",
    "general.size_label": "theirs is guessed; the manifest has the number of weights",
    "tokenizer.ggml.add_space_prefix": "llama.cpp reads it for SentencePiece vocabularies only, this one is byte-level",
}


def tensor_differences(ours: Path, theirs: Path) -> list[str]:
    """What differs between the tensors of two files, in words; order is not looked at."""
    files = read_gguf(ours), read_gguf(theirs)
    if files[0].tensors.keys() != files[1].tensors.keys():
        return [f"names: {sorted(files[0].tensors.keys() ^ files[1].tensors.keys())}"]
    maps = [np.memmap(file.path, dtype=np.uint8, mode="r") for file in files]
    found = []
    for name in files[0].tensors:
        one, other = (file.tensors[name] for file in files)
        if (one.shape, one.type_name) != (other.shape, other.type_name):
            found.append(f"{name}: {one.shape} {one.type_name}, theirs {other.shape} {other.type_name}")
            continue
        data = [m[t.offset : t.offset + t.n_bytes] for m, t in zip(maps, (one, other), strict=True)]
        if not np.array_equal(data[0], data[1]):
            found.append(
                f"{name}: {int((data[0] != data[1]).sum())} of {one.n_bytes} bytes of {one.type_name}"
            )
    return found


def header_differences(ours: GGUFFile, theirs: GGUFFile) -> set[str]:
    """Keys that only one file has, or whose type or value differs."""
    found = set(ours.metadata.keys() ^ theirs.metadata.keys())
    for key in ours.metadata.keys() & theirs.metadata.keys():
        one, other = ours.metadata[key], theirs.metadata[key]
        if one[:2] != other[:2] or not np.array_equal(one.value, other.value):
            found.add(key)
    return found


@pytest.mark.parametrize("quant", ["F32", "F16", "BF16"])
def test_float_types_equal_llama_cpps_converter(quant: str, by_edgellm: OfType, by_llama_cpp: OfType) -> None:
    ours, theirs = by_edgellm(quant), by_llama_cpp(quant.lower())
    assert tensor_differences(ours, theirs) == []
    assert header_differences(read_gguf(ours), read_gguf(theirs)) == set(OTHER_KEYS)


@pytest.mark.parametrize("quant", QUANTIZED)
def test_quantized_types_equal_llama_quantize(
    quant: str, smollm2_source: Source, by_llama_cpp: OfType, tmp_path: Path
) -> None:
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    pipeline.write_model(ours, smollm2_source, recipe_for(smollm2_source, quant), n_workers=2)
    oracle.tool("llama-quantize", by_llama_cpp("bf16"), theirs, quant, "2")
    assert tensor_differences(ours, theirs) == []
    files = read_gguf(ours), read_gguf(theirs)
    assert list(files[0].tensors) == list(files[1].tensors)
    assert header_differences(*files) == set(OTHER_KEYS)
    assert files[0].get("general.file_type", int, None) == files[1].get("general.file_type", int, None)
    for path in (ours, theirs):
        path.unlink()


@pytest.mark.parametrize("quant", ["Q4_0", "Q4_K_M", "BF16"])
def test_a_gguf_as_source_gives_the_file_of_llama_quantize(
    quant: str, by_llama_cpp: OfType, tmp_path: Path
) -> None:
    """From their GGUF the header has all their keys as well; llama-quantize only moves two of them to the end."""
    source = pipeline.read_source(open_checkpoint(by_llama_cpp("bf16")))
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    pipeline.write_model(ours, source, recipe_for(source, quant), n_workers=2)
    oracle.tool("llama-quantize", by_llama_cpp("bf16"), theirs, quant, "2")
    assert tensor_differences(ours, theirs) == []
    files = read_gguf(ours), read_gguf(theirs)
    assert list(files[0].tensors) == list(files[1].tensors)
    assert header_differences(*files) == set()
    for path in (ours, theirs):
        path.unlink()


@pytest.mark.parametrize(
    ("n_workers", "slab_weights"), [(1, 1 << 19), (3, 1 << 19), (3, 1 << 12), (2, 1 << 24)]
)
def test_threads_and_slabs_change_no_byte(
    smollm2_source: Source, n_workers: int, slab_weights: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the first layer, in a mix with five types: by one thread in whole tensors, and split in other ways."""
    wanted = [t for t in smollm2_source.tensors if t.name.startswith("blk.0.")]
    source = dataclasses.replace(smollm2_source, tensors=tuple(wanted))
    types = {t.name: "F32" if t.always_f32 else "Q5_0" for t in wanted}
    types |= {"blk.0.ffn_down.weight": "Q4_K", "blk.0.attn_v.weight": "Q8_0", "blk.0.attn_q.weight": "F16"}
    written = []
    for workers, size in ((1, 1 << 30), (n_workers, slab_weights)):
        monkeypatch.setattr(slabs, "SLAB_WEIGHTS", size)
        path = tmp_path / f"{workers}-{size}.gguf"
        written.append(writer.write_gguf(path, source, types, source.header, n_workers=workers))
    assert written[0] == written[1]

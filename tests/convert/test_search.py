"""A mix searched for a tiny model: within its budget, better than one type for all, and readable by llama.cpp."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm.checkpoint import open_checkpoint
from edgellm.convert import pipeline, search, sensitivity, writer
from edgellm.convert.rounding import make_encoder
from edgellm.convert.source import Source
from edgellm.errors import SpecError
from edgellm.native.llama import LlamaModel, LlamaOptions
from tests.support import tiny_llama

IDS = [(7 * i * i + 3 * i) % 260 + 3 for i in range(2048)]
WIDE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "head_dim": 32}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    source = tiny_llama.read_source(tiny_llama.write_tiny_llama(folder / "hf", WIDE))
    return tiny_llama.write_f32(source, folder / "reference.gguf")


@pytest.fixture(scope="module")
def source(reference: Path) -> Source:
    return pipeline.read_source(open_checkpoint(reference))


def load(path: Path) -> LlamaModel:
    return LlamaModel(path, LlamaOptions(n_threads=1, kv_type="F32"))


def find(source: Source, folder: Path, max_bytes: int, **options: Any) -> search.Mix:
    header_bytes = writer.header_bytes(source, source.header)
    settings: dict[str, Any] = {"text_ids": IDS, "n_chunks": 3, "max_probes": 9} | options
    search.check_budget(source, max_bytes=max_bytes, header_bytes=header_bytes)
    return search.measure(source, load, folder, header_bytes=header_bytes, n_workers=2, **settings).mix(
        max_bytes
    )


def written(path: Path, source: Source, mix: search.Mix) -> Path:
    types = {**source.base_types(), **mix.allocation.types}
    done = writer.write_gguf(path, source, types, source.header, n_workers=2, encode=mix.encode)
    assert done.file_bytes == mix.allocation.file_bytes
    return path


def divergence(reference: Path, path: Path) -> float:
    ids = IDS[1500:1700]
    return tiny_llama.kl_divergence(tiny_llama.our_logits(reference, ids), tiny_llama.our_logits(path, ids))


@pytest.mark.parametrize("with_text", [True, False])
def test_a_mix_beats_ggmls_rounding_at_the_same_size(
    reference: Path, source: Source, tmp_path: Path, with_text: bool
) -> None:
    types = {name: "Q5_0" if kind == "F32" and name.endswith("weight") and "norm" not in name else kind
             for name, kind in source.base_types().items()}  # fmt: skip
    plain = tmp_path / "q5_0.gguf"
    budget = writer.write_gguf(plain, source, types, source.header, n_workers=2).file_bytes
    stages: list[str] = []
    mix = find(
        source, tmp_path, budget, text_ids=IDS if with_text else None,
        progress=lambda stage, done, total: stages.append(f"{stage} {done == total}"),
    )  # fmt: skip
    path = written(tmp_path / "mix.gguf", source, mix)
    assert path.stat().st_size <= budget
    assert divergence(reference, path) < 0.9 * divergence(reference, plain)
    assert {"observe True", "errors True", "probes True"} <= set(stages)
    assert not (tmp_path / "working.gguf").exists()


def test_only_permitted_types_are_chosen(source: Source, tmp_path: Path) -> None:
    mix = find(source, tmp_path, 1 << 30, permitted=("Q4_0", "Q4_K"))
    assert set(mix.allocation.types.values()) == {"Q4_0", "Q4_K"}
    wide = {name for name, kind in mix.allocation.types.items() if kind == "Q4_K"}
    assert wide <= {name for name in source.shape.tensors if "ffn_down" in name}


def test_a_budget_below_the_smallest_is_refused_without_running_anything(source: Source) -> None:
    with pytest.raises(SpecError, match="below the smallest file"):
        search.check_budget(source, max_bytes=1000, header_bytes=100)


def test_what_would_fit_is_listed_by_size(source: Source) -> None:
    with pytest.raises(SpecError) as caught:
        search.check_budget(source, max_bytes=1000, header_bytes=100)
    listed = (caught.value.hint or "").partition(": ")[2].split(", ")
    sizes = [(float(entry.split()[1]), entry.split()[0]) for entry in listed]
    assert len({entry.split()[2] for entry in listed}) == 1
    assert sizes == sorted(sizes)


def test_a_model_with_weights_beyond_f16_is_run_in_f32(tmp_path: Path) -> None:
    large = np.full((128, 128), 1e5, dtype=np.float32)
    directory = tiny_llama.write_tiny_llama(
        tmp_path / "hf", WIDE, tensors={"model.layers.0.self_attn.q_proj.weight": large}
    )
    found = tiny_llama.read_source(directory)
    search._write_working_copy(tmp_path / "working.gguf", found, 1)
    written_types = {t.name: t.type_name for t in open_checkpoint(tmp_path / "working.gguf").tensors.values()}
    assert set(written_types.values()) == {"F32"}


def test_probes_restore_what_they_changed_and_rank_parts(
    reference: Path, source: Source, tmp_path: Path
) -> None:
    """A group alone gives what it gives after others were probed; finer types give less."""
    from edgellm.convert import hessian

    backend = load(reference)
    moments = hessian.collect(backend, source.shape, [IDS[:512], IDS[512:1024]], tmp_path)
    backend.close()
    names = list(sensitivity.choosable(source, search.TYPES))
    found = sensitivity.groups(source, names, max_probes=9)
    encode = make_encoder(moments, source.shape.tensors)

    def probe(groups: list[sensitivity.Group], kind: str) -> list[float]:
        types = dict.fromkeys(names, kind)
        chunks = [IDS[:128], IDS[128:256]]
        return [group.kl for group in sensitivity.probe(working, source, groups, types, encode, load, chunks)]

    working = tmp_path / "working.gguf"
    shutil.copyfile(reference, working)
    coarse = probe(found, "Q4_0")
    assert all(kl > 0 for kl in coarse)
    assert probe(found[-1:], "Q4_0") == coarse[-1:]
    assert sum(probe(found, "Q8_0")) < 0.1 * sum(coarse)
    assert working.read_bytes() == reference.read_bytes()


def test_output_errors_fall_with_bits(source: Source, tmp_path: Path) -> None:
    from edgellm.convert import hessian

    types = sensitivity.choosable(source, search.TYPES)
    errors = sensitivity.output_errors(source, types, hessian.Moments(tmp_path))
    for by_type in errors.values():
        assert 1 > by_type["Q4_0"] > by_type["Q5_0"] > 4 * by_type["Q8_0"] > 0


def test_groups_hold_every_tensor_once_and_keep_the_ends_apart(source: Source) -> None:
    names = [f"blk.{i}.{part}.weight" for i in range(10) for part in ("attn_q", "ffn_up")] + ["output.weight"]
    found = sensitivity.groups(source, names, max_probes=9)
    assert sorted(name for group in found for name in group.names) == sorted(names)
    assert len(found) == 9
    bands = [group.names for group in found if "ffn_up" in group.names[0]]
    assert bands[0] == ("blk.0.ffn_up.weight",)
    assert bands[-1] == ("blk.9.ffn_up.weight",)
    assert len(sensitivity.groups(source, names, max_probes=3)) == 3
    assert len(sensitivity.groups(source, names, max_probes=1000)) == len(names)


def test_damage_is_shared_out_by_output_error() -> None:
    shape_source = dataclasses.make_dataclass("S", ["shape"])
    shape = dataclasses.make_dataclass("H", ["tensors"])({"a": (4, 32), "b": (4, 32)})
    errors = {"a": {"Q4_0": 3.0, "Q8_0": 0.3}, "b": {"Q4_0": 1.0, "Q8_0": 0.1}}
    probe_types = {"a": "Q4_0", "b": "Q4_0"}
    found = sensitivity.candidates(
        shape_source(shape), errors, [sensitivity.Group(("a", "b"), 8.0)], probe_types
    )
    assert [tuple(option) for option in found["a"]] == [
        ("Q4_0", 96, 6.0), ("Q8_0", 160, pytest.approx(0.6)),
    ]  # fmt: skip
    assert np.isclose(found["b"][0].damage, 2.0)


def test_the_space_that_a_search_needs_is_said_before(source: Source, tmp_path: Path) -> None:
    find(source, tmp_path, 1 << 30)
    factors = sum(path.stat().st_size for path in tmp_path.iterdir())
    whole = search.needed_bytes(source)
    in_f32 = writer.needed_bytes(source, dict.fromkeys(source.base_types(), "F32"))
    assert factors < (whole - in_f32) * 1.1

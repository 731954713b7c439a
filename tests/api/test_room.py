"""A context that does not fit into free memory is refused before anything is allocated, with the longest that does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from edgellm import api, machine
from edgellm.api import room
from edgellm.errors import ResourceError
from edgellm.formats.gguf import GGUFFile, read_gguf
from edgellm.shape import shape_of_gguf
from edgellm.units import GIB, MIB
from tests.support.gguf_files import write_model
from tests.support.tiny_gguf import write_tiny_gguf


def header(path: Path, **metadata: tuple[str, Any]) -> GGUFFile:
    sizes = {"context_length": ("UINT32", 1 << 20), "attention.head_count_kv": ("UINT32", 2)} | metadata
    return read_gguf(write_model(path, metadata={f"llama.{name}": value for name, value in sizes.items()}))


def free(monkeypatch: pytest.MonkeyPatch, n_bytes: int | None, *, ram_bytes: int = 64 * GIB) -> None:
    monkeypatch.setattr(machine, "available_memory_bytes", lambda: n_bytes)
    monkeypatch.setattr(machine, "ram_bytes", lambda: ram_bytes)
    monkeypatch.setattr(machine, "address_space_left_bytes", lambda: None)


def refusal(file: GGUFFile, **options: Any) -> ResourceError:
    with pytest.raises(ResourceError) as caught:
        room.check_context(file, kv_type="F16", **options)
    return caught.value


def test_what_fits_passes_and_what_does_not_says_what_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = header(tmp_path / "model.gguf")
    shape = shape_of_gguf(file)
    needed = shape.kv_bytes(100_000) + shape.compute_bytes(100_000)
    free(monkeypatch, needed)
    room.check_context(file, context=100_000, parallel=1, kv_type="F16")
    error = refusal(file, context=1 << 20, parallel=1)
    assert re.search(r"a context of 1048576 tokens needs .* are left \(free memory\)", error.message)
    found = re.fullmatch(r"use --context (\d+) or less", error.hint or "")
    assert found
    assert 99_000 < int(found[1]) <= 100_000
    room.check_context(file, context=int(found[1]), parallel=1, kv_type="F16")
    assert "for each of 4 generations" in refusal(file, context=100_000, parallel=4).message
    room.check_context(file, context=60_000, parallel=3, kv_type="Q8_0")


def test_nothing_fits_into_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 1000)
    assert "not even a short context" in (
        refusal(header(tmp_path / "m.gguf"), context=64, parallel=1).hint or ""
    )


def test_with_the_weights_the_whole_stays_below_the_machines_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = header(tmp_path / "model.gguf")
    weights = sum(tensor.n_bytes for tensor in file.tensors.values())
    free(monkeypatch, 64 * MIB, ram_bytes=weights + 10 * MIB)
    assert "memory of the machine, beside the weights" in refusal(file, context=300_000, parallel=1).message
    free(
        monkeypatch, 64 * MIB, ram_bytes=weights
    )  # weights that never fit are read again and again from the disk
    room.check_context(file, context=50_000, parallel=1, kv_type="F16")


def test_a_limit_of_the_address_space_counts_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, 64 * GIB)
    monkeypatch.setattr(machine, "address_space_left_bytes", lambda: 10 * MIB)
    assert (
        "limit of the address space"
        in refusal(header(tmp_path / "m.gguf"), context=1 << 20, parallel=1).message
    )


def test_layers_without_a_cache_and_compressed_caches_are_not_counted_as_whole_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = header(tmp_path / "whole.gguf")
    shape = shape_of_gguf(whole)
    free(monkeypatch, shape.kv_bytes(1 << 20) * 3 // 4 + shape.compute_bytes(1 << 20))
    refusal(whole, context=1 << 20, parallel=1)
    half = header(tmp_path / "half.gguf", **{"attention.head_count_kv": ("ARRAY:UINT32", [2, 0])})
    room.check_context(half, context=1 << 20, parallel=1, kv_type="F16")
    latent = header(tmp_path / "latent.gguf", **{"attention.kv_lora_rank": ("UINT32", 4)})
    free(monkeypatch, 1000)
    room.check_context(latent, context=1 << 20, parallel=1, kv_type="F16")


def test_unknown_memory_refuses_nothing_but_more_than_the_machine_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, None)
    room.check_context(header(tmp_path / "m.gguf"), context=1 << 20, parallel=1, kv_type="F16")


def test_a_real_model_is_refused_before_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory_bytes", lambda: 8 * GIB)
    with pytest.raises(ResourceError, match="8192 tokens for each of 256 generations needs 45") as caught:
        api.load("builtin:smollm2", context=8192, parallel=256)
    assert caught.value.exit_code == 75
    assert "--context 1280 or less" in (caught.value.hint or "")


def test_an_isolated_model_is_held_to_the_limit_of_its_child() -> None:
    with pytest.raises(ResourceError, match=r"needs 45.*limit of the address space"):
        api.load("builtin:smollm2", context=8192, parallel=256, isolate=True, memory_limit_bytes=8 * GIB)


def test_the_cache_of_embeddings_is_counted_where_they_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny_gguf(tmp_path / "model.gguf", n_layers=1)
    needed_bytes = room.check_context(read_gguf(path), context=64, parallel=1, kv_type="F16")
    for asked, n_caches in (("model", 1), ("last", 2)):
        pooling: Any = asked
        free(monkeypatch, n_caches * needed_bytes)
        api.load(path, context=64, threads=1, check=False, pooling=pooling).close()
        free(monkeypatch, n_caches * needed_bytes - 1)
        with pytest.raises(ResourceError, match="a context of 64 tokens needs"):
            api.load(path, context=64, threads=1, check=False, pooling=pooling)

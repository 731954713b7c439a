"""Flipped bits in a model file: Python refuses it, llama.cpp refuses it, or it runs; nothing ever dies of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgellm.formats.gguf import read_gguf
from tests.support import flips
from tests.support.tiny_gguf import write_tiny_gguf

N_SEEDS = 300


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("whole") / "model.gguf", n_layers=1, type_name="F16")


def test_three_hundred_damaged_headers_kill_no_child(tmp_path: Path, whole: Path) -> None:
    content, n_header = whole.read_bytes(), read_gguf(whole).data_offset
    damaged = (flips.flipped(content, seed, n_header) for seed in range(N_SEEDS))
    counts, crashed = flips.count(damaged, tmp_path / "model.gguf")
    assert counts["crash"] == 0, flips.said(crashed)
    assert counts["refused by the parser"] > N_SEEDS // 3
    assert counts["generates"] > N_SEEDS // 10
    assert counts.total() == N_SEEDS


def test_damaged_weights_still_generate(tmp_path: Path, whole: Path) -> None:
    """Whatever their bits are, even NaN: no header tells."""
    content = whole.read_bytes()
    damaged = (flips.flipped(content, seed) for seed in range(10_000, 10_030))
    counts, crashed = flips.count(damaged, tmp_path / "model.gguf")
    assert counts["crash"] == 0, flips.said(crashed)
    assert counts["generates"] >= 25


def test_a_file_cut_anywhere_never_reaches_native_code(tmp_path: Path, whole: Path) -> None:
    content, path = whole.read_bytes(), tmp_path / "model.gguf"
    n_header = read_gguf(whole).data_offset
    for n_bytes in (
        0,
        1,
        4,
        23,
        24,
        n_header // 2,
        n_header - 1,
        n_header,
        len(content) // 2,
        len(content) - 1,
    ):
        path.write_bytes(content[:n_bytes])
        assert flips.is_refused(path), n_bytes

"""Killed, out of disk, two at once: nothing is lost and nothing is half there."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support import hazards
from tests.support.disks import small_disk

MIB = 1024**2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, smollm2_hf: Path) -> Path:
    return hazards.small_model(tmp_path_factory.mktemp("m") / "small", smollm2_hf)


def test_killed_at_twenty_random_moments(model: Path, tmp_path: Path) -> None:
    found = hazards.kill_at_random_moments(model, tmp_path, 20, seed=2)
    assert found["old"], "no kill came in time"


def test_a_disk_that_fills_up_while_writing(model: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 96 * MIB) as mounted:
        if not mounted:
            pytest.skip("no file system can be mounted here")
        _fill_while_writing(model, tmp_path / "disk")


def _fill_while_writing(model: Path, folder: Path) -> None:
    output = folder / "out"
    hazards.run(model, output, "Q4_0")
    child = hazards.start(model, output, "F32", "--force")
    deadline_s = time.monotonic() + 120
    while (
        not list(folder.glob("*/model.gguf"))[1:] and time.monotonic() < deadline_s and child.poll() is None
    ):
        time.sleep(0.002)
    hazards.fill(folder)
    _, said = child.communicate(timeout=120)
    assert child.returncode == 74, said
    assert b"error: " in said
    assert b"No space left" in said
    assert hazards.quant_of(output) == "Q4_0"
    assert sorted(path.name for path in folder.iterdir()) == ["filler", "out"]


def test_two_at_once_to_one_output(model: Path, tmp_path: Path) -> None:
    children = [hazards.start(model, tmp_path / "out", quant) for quant in ("Q8_0", "Q4_0")]
    ended = [(child.communicate(timeout=300)[1], child.returncode) for child in children]
    assert sorted(code for _, code in ended) == [0, 73], ended
    winner = ("Q8_0", "Q4_0")[[code for _, code in ended].index(0)]
    assert hazards.quant_of(tmp_path / "out") == winner
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_at_once_that_may_replace(model: Path, tmp_path: Path) -> None:
    hazards.run(model, tmp_path / "out", "F16")
    children = [hazards.start(model, tmp_path / "out", quant, "--force") for quant in ("Q8_0", "Q4_0")]
    ended = [(child.communicate(timeout=300)[1], child.returncode) for child in children]
    assert {code for _, code in ended} <= {0, 73}, ended
    assert 0 in {code for _, code in ended}
    assert hazards.quant_of(tmp_path / "out") in {"Q8_0", "Q4_0"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

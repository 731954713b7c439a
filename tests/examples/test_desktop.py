"""The windows of docs/examples: loading, answering, stopping, crashing and closing never block or break them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support import desktop_environment

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "toolkit"


@pytest.fixture(scope="module")
def display() -> Iterator[str]:
    yield from desktop_environment.display()


@pytest.fixture(params=["qt", "tk"])
def toolkit(request: pytest.FixtureRequest) -> tuple[str, dict[str, str]]:
    """Its name, and where its packages are and its windows open."""
    if request.param == "qt":
        return "qt", desktop_environment.python_path(SOURCE) | {"QT_QPA_PLATFORM": "offscreen"}
    pytest.importorskip("tkinter", reason="this Python has no Tk: apt-get install python3-tk")
    return "tk", {"PYTHONPATH": str(SOURCE), "DISPLAY": request.getfixturevalue("display")}


def drive(toolkit: tuple[str, dict[str, str]], model: Path) -> dict[str, Any]:
    """What the driver saw."""
    name, place = toolkit
    done = subprocess.run(
        [sys.executable, ROOT / "tests/support/desktop.py", name, model],
        env=os.environ | place,
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert seen["errors"] == []
    assert seen["threads"] == [], "threads that would keep the program alive"
    return seen


def test_a_window_that_loads_answers_stops_survives_and_closes(
    toolkit: tuple[str, dict[str, str]], smollm2_gguf: Path
) -> None:
    seen = drive(toolkit, smollm2_gguf)
    assert seen["loading"][0].startswith("Loading")
    assert seen["loading"][1:] == [False, False]
    assert seen["ready"].endswith("is ready")
    assert seen["asked"] == ["Answering …", False, True]
    assert "Paris" in seen["answer"].split("Model:")[1]
    assert seen["answered"] == "Done (stop)"
    assert seen["n_steps_seen"] >= 3, "the text did not come piece by piece"
    assert seen["stopped"] == "Done (stopped)"
    assert "SIGKILL" in seen["crashed"]
    assert seen["after_crash"] == ["Done (stop)", True]
    assert not psutil.pid_exists(seen["last_child"]), "the engine's child outlived the window"


def test_a_window_shows_why_its_model_does_not_load(
    toolkit: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    status, can_send, can_stop = drive(toolkit, tmp_path / "absent.gguf")["failed"]
    assert "no artifact or .gguf" in status
    assert "edgellm convert" in status
    assert not can_send
    assert not can_stop

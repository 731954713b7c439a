"""The packages of PyInstaller and Qt that `scripts/setup --oracle` makes, and a display nobody looks at."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def python_path(*before: Path) -> dict[str, str]:
    """PYTHONPATH of some folders and of its packages, for this interpreter; skips the test where set-up made none.

    PyInstaller has to run in the environment whose packages it freezes, so its own are put beside them.
    """
    packages = sorted((ROOT / ".venv-desktop" / "lib").glob("python*/site-packages/PyInstaller"))
    if not packages:
        pytest.skip("no .venv-desktop here: scripts/setup --oracle makes it")
    return {"PYTHONPATH": os.pathsep.join(map(str, [*before, packages[0].parent]))}


def display() -> Iterator[str]:
    """The name of an X display of our own; skips the test where there is no Xvfb."""
    if not shutil.which("Xvfb"):
        pytest.skip("no Xvfb here: as root, scripts/setup --oracle installs it; else apt-get install xvfb")
    reader, writer = os.pipe()
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            ["Xvfb", "-displayfd", str(writer), "-screen", "0", "800x600x24", "-nolisten", "tcp"],
            pass_fds=[writer], stdout=log, stderr=log,
        )  # fmt: skip
        os.close(writer)
        try:
            with os.fdopen(reader) as answer:
                number = answer.readline().strip()
            assert number, "Xvfb did not start"
            yield f":{number}"
        finally:
            server.terminate()
            server.wait()

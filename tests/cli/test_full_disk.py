"""A disk that fills up in the middle of writing: one line, exit code 74, nothing lost and nothing left."""

from __future__ import annotations

import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.cli import EDGELLM
from tests.test_artifact import write_artifact
from tests.test_staging import names, small_disk

DISK_BYTES = 160 << 20
FILE_LIMIT_BYTES = 24 << 20
COMMAND = [
    *EDGELLM, "convert", "builtin:smollm2", "--quant", "Q8_0", "--jobs", "1", "--force", "--json", "-o", "out",
]  # fmt: skip


def start(place: Path, *, limited: bool) -> subprocess.Popen[str]:
    """A conversion in that directory, with a limit of the size of files where no disk could be made."""
    limit = (FILE_LIMIT_BYTES, FILE_LIMIT_BYTES)
    return subprocess.Popen(
        COMMAND, cwd=place, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)) if limited else None,
    )  # fmt: skip


def fill_while_writing(child: subprocess.Popen[str], place: Path) -> None:
    """Stop the child once it writes weights, fill the disk, and let it go on."""
    while not any(path.stat().st_size > 4 << 20 for path in place.glob(".out.partial-*/model.gguf")):
        assert child.poll() is None, child.communicate()
        time.sleep(0.001)
    child.send_signal(signal.SIGSTOP)
    with pytest.raises(OSError, match="No space left"):
        fill(place / "other")
    child.send_signal(signal.SIGCONT)


def fill(path: Path) -> None:
    """Write until the disk refuses."""
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 20))


def test_a_disk_that_fills_up_while_converting_keeps_the_old_artifact(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, DISK_BYTES) as mounted:
        old = write_artifact(disk / "out", b"old!")
        with start(disk, limited=not mounted) as child:
            if mounted:
                fill_while_writing(child, disk)
            out, err = child.communicate()
        assert child.returncode == 74, err
        assert out == ""
        assert err.count("\n") == 1
        assert '"type": "OutputError"' in err
        assert "cannot be written" in err
        if mounted:
            assert "No space left on device" in err
            assert "free some space" in err
        assert [name for name in names(disk) if name != "other"] == ["out"]
        assert (old / "model.gguf").read_bytes() == b"old!"

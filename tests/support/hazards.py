"""Conversions that are killed, run out of disk, or meet each other; shared by the tests and scripts/soak."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from edgellm import artifact
from edgellm.errors import EdgeLLMError
from tests.support.random_llama import write_random_llama

EDGELLM = [sys.executable, "-m", "edgellm"]
SIZES = {
    "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 4,
}  # fmt: skip


def small_model(directory: Path, like: Path) -> Path:
    """A checkpoint of 19 million weights: large enough that a kill can strike while it is written."""
    return write_random_llama(directory, like, **SIZES)


def start(model: Path, output: Path, quant: str, *more: str) -> subprocess.Popen[bytes]:
    """`edgellm convert` in a child."""
    command = [
        *EDGELLM,
        "convert",
        str(model),
        "-o",
        str(output),
        "--quant",
        quant,
        "--target",
        "rpi5",
        *more,
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def run(model: Path, output: Path, quant: str, *more: str) -> float:
    """Convert to the end; seconds it took."""
    started_s = time.monotonic()
    child = start(model, output, quant, *more)
    _, said = child.communicate(timeout=300)
    if child.returncode:
        raise RuntimeError(f"convert ended with {child.returncode}: {said.decode()}")
    return time.monotonic() - started_s


def quant_of(output: Path) -> str | None:
    """The type of the artifact that is there, after checking every hash; None where nothing is.

    Raises:
        EdgeLLMError: something is there that is not a whole artifact.
    """
    if not output.exists():
        return None
    opened = artifact.open_directory(output)
    artifact.verify_hashes(opened)
    return opened.manifest.quant


def kill_at_random_moments(model: Path, folder: Path, n_kills: int, seed: int) -> dict[str, int]:
    """Convert n_kills times over an older artifact and kill each at a random moment.

    Returns:
        How often the old artifact, and how often the new one, was there afterwards.

    Raises:
        AssertionError: once there was neither.
    """
    draw = random.Random(seed)
    output = folder / "out"
    run(model, output, "Q8_0")
    whole_s = run(model, folder / "timed", "Q4_0")
    found = {"old": 0, "new": 0}
    for i in range(n_kills):
        before = quant_of(output)
        after = "Q4_0" if before == "Q8_0" else "Q8_0"
        child = start(model, output, after, "--force")
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(draw.uniform(0.0, 1.1 * whole_s))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        try:
            seen = quant_of(output)
        except EdgeLLMError as err:
            raise AssertionError(f"kill {i}: {err}") from err
        assert seen in (before, after), f"kill {i}: {seen} is there"
        found["old" if seen == before else "new"] += 1
    run(model, output, "Q4_0", "--force")
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["out", "timed"], f"left behind: {left}"
    return found


def fill(folder: Path) -> None:
    """Take every free byte."""
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as out:
        while True:
            out.write(bytes(1 << 16))

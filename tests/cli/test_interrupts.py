"""Ctrl-C, SIGTERM and SIGKILL at any moment: an artifact is whole or not there, and the next run succeeds."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from edgellm import artifact
from edgellm.formats.gguf import read_gguf
from edgellm.staging import staged_directory
from tests.support.cli import EDGELLM, succeed

STOPPED = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}
RANDOM = random.Random(20)
MOMENTS = [  # one in each ninth of a conversion's time, every signal early, in the middle and late
    (list(STOPPED)[number % 3], number % 2 == 1, round((number + RANDOM.random()) / 9, 2)) for number in range(9)
]  # fmt: skip


class Converted(NamedTuple):
    """A finished conversion: the hash of its weights, and how long it took."""

    sha256: str
    seconds: float


def model_hash(directory: Path) -> str:
    """The hash of an artifact's weights; all its files have been compared with the manifest.

    The header has a hash of the command, which is another one in another directory.
    """
    opened = artifact.open_directory(directory)
    artifact.verify_hashes(opened)
    path = Path(opened.model_path)
    return hashlib.sha256(path.read_bytes()[read_gguf(path).data_offset :]).hexdigest()


def convert_command(out: Path, quant: str = "Q4_K_M") -> list[str]:
    return [
        *EDGELLM,
        "convert",
        "builtin:smollm2",
        "--quant",
        quant,
        "--jobs",
        "2",
        "--force",
        "-o",
        str(out),
    ]


def start(out: Path) -> subprocess.Popen[str]:
    """A conversion that has begun: the process is past starting Python and has its signal handlers."""
    child = subprocess.Popen(
        convert_command(out), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip
    wait_for(child, lambda: handles(child.pid, signal.SIGTERM))
    return child


def handles(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (number - 1) & 1)


def wait_for(child: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Wait until the condition holds; a child that ends before fails the test."""
    while not condition():
        assert child.poll() is None, child.communicate()
        time.sleep(0.001)


def bytes_written(parent: Path) -> int:
    return sum(path.stat().st_size for path in parent.glob(".out.partial-*/model.gguf"))


def old_artifact(source: Path, out: Path) -> str:
    """A Q8_0 artifact under the final name, by links, so that making it costs nothing."""
    out.mkdir()
    for path in source.iterdir():
        os.link(path, out / path.name)
    return model_hash(out)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    out = tmp_path_factory.mktemp("whole") / "out"
    began = time.monotonic()
    with start(out) as child:
        ready = time.monotonic()
        _, err = child.communicate()
    assert child.returncode == 0, err
    assert ready > began
    return Converted(model_hash(out), time.monotonic() - ready)


def stop(child: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str]:
    with child:
        child.send_signal(number)
        _, err = child.communicate()
    return child.returncode, err


def judge(
    parent: Path, number: signal.Signals, ended: tuple[int, str], old: str | None, new: str, *, may_finish: bool
) -> None:  # fmt: skip
    """Exit code, words and files after a signal."""
    code, err = ended
    assert code in ({STOPPED[number], 0} if may_finish else {STOPPED[number]}), err
    assert "Traceback" not in err
    assert err.count("\n") <= 1
    if number == signal.SIGINT and code == 130:
        assert err == "stopped\n"
    out = parent / "out"
    found = model_hash(out) if out.exists() else None
    assert found == new if code == 0 else found in (old, new)
    rest = [path.name for path in parent.iterdir() if path != out]
    if number == signal.SIGKILL:
        assert all(name.startswith(".out.partial-") for name in rest)
    else:
        assert rest == []


def convert_again(parent: Path, expected: str) -> None:
    """The next run, to Q8_0, removes what a killed one left, and succeeds."""
    done = subprocess.run(
        convert_command(parent / "out", "Q8_0"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert model_hash(parent / "out") == expected
    assert [path.name for path in parent.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("number", "replacing", "fraction"), MOMENTS, ids=[f"{n.name}-{r}-{f}" for n, r, f in MOMENTS]
)
def test_a_conversion_stopped_at_any_moment_leaves_the_old_or_the_new_or_nothing(
    tmp_path: Path, smollm2_q8: Path, converted: Converted, number: signal.Signals, replacing: bool, fraction: float
) -> None:  # fmt: skip
    old = old_artifact(smollm2_q8, tmp_path / "out") if replacing else None
    child = start(tmp_path / "out")
    time.sleep(fraction * converted.seconds)
    judge(tmp_path, number, stop(child, number), old, converted.sha256, may_finish=True)
    if number == signal.SIGKILL:
        convert_again(tmp_path, model_hash(smollm2_q8))


@pytest.mark.parametrize("number", STOPPED, ids=lambda number: number.name)
def test_a_conversion_stopped_while_writing_keeps_what_it_was_to_replace(
    tmp_path: Path, smollm2_q8: Path, converted: Converted, number: signal.Signals
) -> None:
    old = old_artifact(smollm2_q8, tmp_path / "out")
    child = start(tmp_path / "out")
    wait_for(child, lambda: bytes_written(tmp_path) > 8 << 20)
    ended = stop(child, number)
    assert model_hash(tmp_path / "out") == old
    assert bool(bytes_written(tmp_path)) == (number == signal.SIGKILL)
    judge(tmp_path, number, ended, old, converted.sha256, may_finish=False)
    if number == signal.SIGKILL:
        convert_again(tmp_path, model_hash(smollm2_q8))


def test_a_second_ctrl_c_while_stopping_leaves_no_partial_artifact(tmp_path: Path) -> None:
    child = start(tmp_path / "out")
    wait_for(child, lambda: bytes_written(tmp_path) > 8 << 20)
    with child:
        child.send_signal(signal.SIGINT)
        time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate()
    assert child.returncode in (130, -signal.SIGINT), err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_answer_can_be_stopped(number: signal.Signals) -> None:
    argv = [*EDGELLM, "run", "builtin:smollm2", "Count from one to one thousand.", "--threads", "1"]
    child = subprocess.Popen(
        [*argv, "--temperature", "0", "--max-tokens", "3000"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout
    assert child.stdout.read(1)
    code, err = stop(child, number)
    assert code == STOPPED[number]
    assert err == ("stopped\n" if number == signal.SIGINT else "")


def test_stopping_a_profile_leaves_no_child_and_no_report(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    argv = [
        *EDGELLM,
        "profile",
        "builtin:smollm2",
        "--workload",
        "tg128",
        "--reps",
        "1000",
        "-o",
        str(report),
    ]
    child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
    wait_for(child, lambda: children.read_text() != "")
    started = [int(pid) for pid in children.read_text().split()]
    code, err = stop(child, signal.SIGINT)
    assert code == 130
    assert err.splitlines()[-1] == "stopped"
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
    give_up = time.monotonic() + 60  # the kernel kills what was not yet known to its parent, a moment later
    while any(lives(pid) for pid in started):
        assert time.monotonic() < give_up, started
        time.sleep(0.01)


def lives(pid: int) -> bool:
    """Whether a process is there and is not only waiting to be buried."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return "State:\tZ" not in status


def test_leftovers_of_a_living_process_are_not_removed(tmp_path: Path) -> None:
    with staged_directory(tmp_path / "out") as mine:
        succeed("convert", "builtin:smollm2", "--quant", "Q8_0", "-o", tmp_path / "out")
        assert mine.is_dir()
        shutil.rmtree(tmp_path / "out")


WAITS_FOR_EVER = """
import signal, sys, threading
from edgellm import api
import importlib
main = importlib.import_module("edgellm.cli.main")

def stuck(*_, **__):
    try:
        print("ready", flush=True)
        signal.pause()
    finally:
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()

main.STUCK_S = 1
api.convert = api.plan_conversion = stuck
sys.exit(main.run(["convert", "anything"]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_lock_that_nobody_releases_does_not_keep_the_process(number: signal.Signals) -> None:
    child = subprocess.Popen([EDGELLM[0], "-c", WAITS_FOR_EVER], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(number)
        assert child.wait(timeout=60) == STOPPED[number]

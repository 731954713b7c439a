"""A child that stays: answers, errors, deaths, deadlines; nothing is left behind."""

from __future__ import annotations

import sys
import time

import psutil
import pytest

from edgellm.errors import MissingInputError, NativeCrash, ResourceError
from edgellm.process.conversation import Conversation

ECHO = "import sys\nfor line in sys.stdin: sys.stdout.write(line.strip()[::-1]); sys.stdout.flush()"


def talk(program: str) -> Conversation:
    return Conversation([sys.executable, "-c", program])


def test_questions_are_answered_in_order() -> None:
    with talk(ECHO) as child:
        assert bytes(child.ask(b"abc", 3, timeout_s=60)) == b"cba"
        assert bytes(child.ask(b"12345", 5, timeout_s=60)) == b"54321"


def test_a_large_answer_comes_whole() -> None:
    with talk(
        "import sys\nsys.stdin.readline(); sys.stdout.buffer.write(bytes(range(256)) * 40000)"
    ) as child:
        assert bytes(child.ask(b"go", 256 * 40000, timeout_s=60)) == bytes(range(256)) * 40000


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import sys; sys.stdin.readline(); print('boom', file=sys.stderr); sys.exit(3)", "status 3: boom"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "died of SIGSEGV"),
        ("import sys; sys.stdin.readline(); print('ab', end='')", "status 0"),
    ],
    ids=["exit", "signal", "half an answer"],
)
def test_a_child_that_ends_is_an_error_with_its_last_words(program: str, words: str) -> None:
    with talk(program) as child, pytest.raises(NativeCrash, match=words):
        child.ask(b"go", 10, timeout_s=60)


def test_a_child_that_hangs_is_killed_with_what_it_started() -> None:
    program = (
        "import subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "sys.stdin.readline(); sys.stdout.write(f'{p.pid:10}'); sys.stdout.flush(); time.sleep(600)"
    )
    with talk(program) as child:
        grandchild = int(child.ask(b"pid", 10, timeout_s=60))
        with pytest.raises(ResourceError, match=r"no answer after 0\.2 s"):
            child.ask(b"more", 1, timeout_s=0.2)
    for _ in range(200):
        if not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == "zombie":
            return
        time.sleep(0.05)
    raise AssertionError("the grandchild lives")


def test_leaving_the_block_ends_the_child() -> None:
    with talk(
        ECHO.replace("import sys", "import os, sys; print(f'{os.getpid():10}', end='', flush=True)")
    ) as child:
        pid = int(child.ask(b"", 10, timeout_s=60))
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)
    child.close()


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(MissingInputError, match="cannot start"):
        Conversation(["/no/such/program"])

"""Children that die, hang, flood, lie or are orphaned: each becomes an exception, none is left behind."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil  # type: ignore[import-untyped,unused-ignore]
import pytest

from edgellm.errors import (
    EdgeLLMError,
    MissingInputError,
    NativeCrash,
    ResourceError,
    SpecError,
    UnsafeInputError,
)
from edgellm.process import ChildResult, failure, python_argv, run_child

TOOLKIT = str(Path(__file__).parents[1] / "toolkit")


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def run(code: str, *arguments: str, timeout_s: float = 60.0, **options: object) -> ChildResult:
    return run_child(python(code, *arguments), timeout_s=timeout_s, **options)  # type: ignore[arg-type]


def gone(pid: int) -> bool:
    """True when the process has ended; a zombie waiting for its parent has."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def eventually(condition: Callable[[], bool]) -> bool:
    """Waits for a condition for a minute at most; how long it took is not judged."""
    deadline_s = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.01)
    return condition()


def test_bytes_go_in_and_come_out() -> None:
    data = bytes(range(256)) * 4096
    code = (
        "import sys; d = sys.stdin.buffer.read(); "
        "sys.stderr.write('well\\n'); sys.stdout.buffer.write(d[::-1])"
    )
    done = run(code, stdin=data)
    assert done.stdout == data[::-1]
    assert done.stderr_tail == "well\n"
    assert done.seconds > 0


def test_a_child_need_not_read_its_stdin() -> None:
    assert run("print('done')", stdin=b"x" * 10_000_000).stdout == b"done\n"


def test_the_tail_of_a_long_stderr_is_kept() -> None:
    code = "import sys\nfor i in range(200000): sys.stderr.write(f'line {i}\\n')"
    tail = run(code).stderr_tail
    assert tail.endswith("line 199999\n")
    assert len(tail) == 64 * 1024


def test_the_environment_is_replaced() -> None:
    code = "import os; print(sorted(k for k in os.environ if k.startswith('EDGE')))"
    assert run(code, env={"EDGELLM_A": "1"}).stdout == b"['EDGELLM_A']\n"


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGILL", "SIGKILL"])
def test_a_signal_becomes_a_native_crash(name: str) -> None:
    code = "import os, signal, sys; os.kill(os.getpid(), getattr(signal, sys.argv[1]))"
    with pytest.raises(NativeCrash, match=name) as caught:
        run(code, name)
    assert caught.value.signal_name == name
    assert caught.value.exit_code == 70


def test_a_plain_failure_shows_the_last_line() -> None:
    with pytest.raises(NativeCrash, match=r"status 3: it went wrong") as caught:
        run("import sys; sys.stderr.write('noise\\nit went wrong\\n'); sys.exit(3)")
    assert caught.value.signal_name is None
    assert "\n" not in caught.value.message


def test_our_own_error_comes_back_as_its_class() -> None:
    line = json.dumps({"error": {"type": "UnsafeInputError", "message": "m: ü", "hint": "h"}})
    with pytest.raises(UnsafeInputError) as caught:
        run(
            "import sys; print('words', file=sys.stderr); print(sys.argv[1], file=sys.stderr); sys.exit(65)",
            line,
        )
    assert (caught.value.message, caught.value.hint) == ("m: ü", "h")
    assert type(caught.value) is UnsafeInputError


def test_a_signal_outranks_what_only_reads_like_our_error() -> None:
    line = json.dumps({"error": {"type": "SpecError", "message": "\x1b[2Jm", "hint": None}})
    abort = 'import os, sys; os.write(2, b"what(): bad token \'a\\n" + sys.argv[1].encode()); os.abort()'
    with pytest.raises(NativeCrash, match="died of SIGABRT") as caught:
        run(abort, line)
    assert caught.value.signal_name == "SIGABRT"
    told = failure("x", -6, "\x1b]0;title\x07 it went\x9b2J wrong", None)
    assert told.message == "x: died of SIGABRT: \\x1b]0;title\\x07 it went\\x9b2J wrong"


def test_the_words_of_our_own_error_are_one_line_without_commands_for_a_terminal() -> None:
    error = {"type": "SpecError", "message": "a\n\x1b[2Jb" + "c" * 10_000, "hint": "d\x07\r\ne" * 10_000}
    told = failure("x", 64, "noise\n" + json.dumps({"error": error}), None)
    assert type(told) is SpecError
    assert told.hint is not None
    assert told.message.startswith("a \\x1b[2Jbccc")
    assert told.hint.startswith("d\\x07 ed\\x07 e")
    assert len(told.message) <= 4000
    assert len(told.hint) <= 4000


@pytest.mark.parametrize(
    "line",
    [
        '{"error": {"type": "SystemExit", "message": "m", "hint": null}}',
        '{"error": {"type": "SpecError", "message": 3}}',
        '{"error": []}',
        '{"error": "text"}',
        "[]",
        "{" * 100,
    ],
)
def test_what_only_looks_like_our_error_is_a_crash(line: str) -> None:
    with pytest.raises(NativeCrash, match="status 1"):
        run("import sys; sys.stderr.write(sys.argv[1]); sys.exit(1)", line)


def test_an_error_of_a_child_that_succeeded_is_words() -> None:
    line = json.dumps({"error": {"type": "SpecError", "message": "m", "hint": None}})
    assert run("import sys; sys.stderr.write(sys.argv[1])", line).stderr_tail == line


def test_the_deadline_ends_the_child_and_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with pytest.raises(ResourceError, match="not done after 2 s, killed"):
        run_child(["sh", "-c", 'sleep 600 & echo "$$ $!" > "$1"; wait', "sh", str(pids)], timeout_s=2)
    child, grandchild = map(int, pids.read_text().split())
    assert eventually(lambda: gone(child) and gone(grandchild))


def test_what_a_finished_child_leaves_behind_is_ended() -> None:
    code = (
        "import subprocess, sys\n"
        "inner = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(inner.pid)\n"
    )
    left = int(run(code).stdout)
    assert eventually(lambda: gone(left))


def test_a_flood_is_stopped() -> None:
    code = "import os\nfor _ in range(100): os.write(1, b'x' * 1024 * 1024)"
    with pytest.raises(ResourceError, match=r"printed more than 64\.0 MiB"):
        run(code)
    assert len(run(code, max_stdout_bytes=200 * 1024**2).stdout) == 100 * 1024**2


def test_the_memory_limit_is_an_error_with_the_limit() -> None:
    with pytest.raises(ResourceError, match="limit of 512 MiB"):
        run("x = bytearray(2 * 1024**3)", memory_limit_bytes=512 * 1024**2)


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(MissingInputError, match="no-such-program"):
        run_child(["no-such-program"], timeout_s=1)


def test_an_interrupt_in_the_parent_ends_the_child(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = (
        "import os, sys, time\n"
        "with open(sys.argv[1] + '.new', 'w') as f: f.write(str(os.getpid()))\n"
        "os.rename(sys.argv[1] + '.new', sys.argv[1])\n"
        "time.sleep(600)\n"
    )

    def interrupt() -> None:
        eventually(pid_file.exists)
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(code, str(pid_file), timeout_s=600)
    thread.join()
    assert gone(int(pid_file.read_text()))


def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    inner = (
        "import os, sys, time\n"
        f"with open({str(pid_file) + '.new'!r}, 'w') as f: f.write(str(os.getpid()))\n"
        f"os.rename({str(pid_file) + '.new'!r}, {str(pid_file)!r})\n"
        "time.sleep(600)\n"
    )
    outer = (
        "import sys; from edgellm.process import run_child; "
        f"run_child([sys.executable, '-c', {inner!r}], timeout_s=600)"
    )
    env = {**os.environ, "PYTHONPATH": TOOLKIT}
    with subprocess.Popen(python(outer), env=env) as parent:
        assert eventually(pid_file.exists)
        child = int(pid_file.read_text())
        assert not gone(child)
        parent.kill()
    assert eventually(lambda: gone(child))


def test_several_children_at_once() -> None:
    outcomes: list[bytes] = []
    threads = [
        threading.Thread(target=lambda n=n: outcomes.append(run(f"print({n})").stdout)) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [f"{n}\n".encode() for n in range(8)]


def test_the_command_of_a_child_of_ours() -> None:
    assert python_argv(["_measure", "-"]) == [sys.executable, "-P", "-m", "edgellm", "_measure", "-"]


def test_every_error_class_survives_the_way() -> None:
    def all_classes(root: type[EdgeLLMError]) -> list[type[EdgeLLMError]]:
        return [root, *(found for child in root.__subclasses__() for found in all_classes(child))]

    for kind in all_classes(EdgeLLMError):
        line = json.dumps({"error": {"type": kind.__name__, "message": "m", "hint": None}})
        with pytest.raises(kind) as caught:
            run_child(["sh", "-c", 'echo "$1" >&2; exit 1', "sh", line], timeout_s=60)
        assert type(caught.value) is kind

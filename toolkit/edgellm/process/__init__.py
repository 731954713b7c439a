"""A child process with limits, a deadline and a death signal; what happens to it becomes an exception here.

The child leads a process group of its own, which is killed as a whole at the deadline and whenever the parent
leaves `run_child`, by Ctrl-C too. On Linux the kernel also kills the child if the parent dies. Nothing here
retries, and nothing goes through a shell.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from edgellm.errors import (
    DeadlineError,
    EdgeLLMError,
    MissingInputError,
    NativeCrash,
    ResourceError,
    error_named,
    said_elsewhere,
)
from edgellm.process import frozen
from edgellm.units import format_bytes

MAX_STDOUT_BYTES = 64 * 1024**2
STDERR_TAIL_BYTES = 64 * 1024
_CHUNK_BYTES = 64 * 1024
_DRAIN_S = 5.0
_PR_SET_PDEATHSIG = 1
_OUT_OF_MEMORY = ("MemoryError", "bad_alloc", "Cannot allocate memory", "failed to allocate")
_WINDOWS_FAULTS = {0xC0000005: "ACCESS_VIOLATION", 0xC000001D: "ILLEGAL_INSTRUCTION", 0xC0000409: "FAST_FAIL"}


Child = subprocess.Popen[bytes]


class Streams(NamedTuple):
    """Standard streams of a child: None for this process's own, else a descriptor or one of subprocess's constants."""

    stdin: int | None
    stdout: int | None
    stderr: int | None


PIPE = subprocess.PIPE
PIPES = Streams(PIPE, PIPE, PIPE)


@dataclass(frozen=True)
class ChildResult:
    """A child that ended well.

    Attributes:
        stdout: all it printed.  stderr_tail: the end of what it said, at most 64 KiB.
        seconds: from start to end.
    """

    stdout: bytes
    stderr_tail: str
    seconds: float


def python_argv(arguments: Sequence[str]) -> list[str]:
    """The command that runs `edgellm ARGUMENTS` with this interpreter, or with a frozen application itself.

    `-P` keeps the current directory, which may hold foreign files, off the child's import path.

    Raises:
        BackendError: a frozen application that has not called `edgellm.freeze_support`.
    """
    if frozen.is_frozen():
        return frozen.child_argv(arguments)
    return [sys.executable, "-P", "-m", "edgellm", *arguments]


def run_child(
    argv: Sequence[str],
    *,
    stdin: bytes = b"",
    timeout_s: float,
    memory_limit_bytes: int | None = None,
    env: Mapping[str, str] | None = None,
    max_stdout_bytes: int = MAX_STDOUT_BYTES,
) -> ChildResult:
    """Run a command to its end, feeding it `stdin`.

    Args:
        timeout_s: after this the child and its group are killed.
        memory_limit_bytes: limit of its address space (RLIMIT_AS); not enforced on Windows.
        env: the whole environment; None inherits.
        max_stdout_bytes: a child that prints more is killed.

    Raises:
        MissingInputError: the program cannot be started.
        DeadlineError: the deadline passed.  ResourceError: the memory limit was hit, or it printed too much.
        NativeCrash: it died of a signal, or exited with another status than 0 and no error of ours.
        EdgeLLMError: the error in the last line of its stderr, `{"error": {"type", "message", "hint"}}`, where no signal
            killed it.
    """
    name = " ".join(" ".join([Path(argv[0]).name, *argv[1:4]]).split())[:120]
    started_s = time.monotonic()
    child = start(argv, env, memory_limit_bytes)
    group = Group(child)
    pipes = _Pipes(child, stdin, max_stdout_bytes, on_overflow=group.kill)
    in_time = False
    try:
        pipes.start()
        in_time = _wait(child, started_s + timeout_s)
    finally:
        group.kill()  # after a normal end this reaches what the child left behind
        group.reap()
        pipes.finish()
    seconds = time.monotonic() - started_s
    if pipes.overflowed:
        raise ResourceError(f"{name}: printed more than {format_bytes(max_stdout_bytes)}, killed")
    if not in_time:
        raise DeadlineError(
            f"{name}: not done after {timeout_s:g} s, killed", hint="try a smaller model, or allow more time"
        )
    stderr = bytes(pipes.stderr).decode("utf-8", "replace")
    if child.returncode != 0:
        raise failure(name, child.returncode, stderr, memory_limit_bytes)
    return ChildResult(bytes(pipes.stdout), stderr, seconds)


class Group:
    """The child and what it started; killed only while the child is unreaped, so its id is still its own."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self._lock = threading.Lock()
        self._reaped = False

    def kill(self) -> None:
        """End all of it now."""
        with self._lock:
            if self._reaped:
                return
            if sys.platform == "win32":
                _kill_tree(self._child)
            else:
                with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for zombies
                    os.killpg(self._child.pid, signal.SIGKILL)

    def reap(self) -> None:
        """Take the exit status of the ended child."""
        with self._lock:
            self._child.wait()
            self._reaped = True


class _Pipes:
    """Feeds stdin and collects stdout and the tail of stderr, each in a thread, so that no pipe can block."""

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        stdin: bytes,
        max_stdout_bytes: int,
        on_overflow: Callable[[], None],
    ) -> None:
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.overflowed = False
        self._child = child
        self._stdin = stdin
        self._max_stdout_bytes = max_stdout_bytes
        self._on_overflow = on_overflow
        tasks = (self._feed, self._collect_stdout, self._collect_stderr)
        self._threads = [threading.Thread(target=task, daemon=True) for task in tasks]

    def start(self) -> None:
        """Begin to move bytes."""
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Wait until the pipes are dry, but not for a process that left the group and holds one open."""
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(_DRAIN_S)
        for pipe, thread in zip(
            (self._child.stdin, self._child.stdout, self._child.stderr), self._threads, strict=True
        ):
            if pipe is not None and not thread.is_alive():
                with contextlib.suppress(OSError):
                    pipe.close()

    def _feed(self) -> None:
        pipe = self._child.stdin
        assert pipe is not None
        with contextlib.suppress(OSError):  # a child need not read all of it
            pipe.write(self._stdin)
            pipe.close()

    def _collect_stdout(self) -> None:
        for chunk in chunks(self._child.stdout):
            if len(self.stdout) + len(chunk) > self._max_stdout_bytes:
                self.overflowed = True
                self._on_overflow()
                return
            self.stdout += chunk

    def _collect_stderr(self) -> None:
        for chunk in chunks(self._child.stderr):
            self.stderr += chunk
            del self.stderr[:-STDERR_TAIL_BYTES]


def chunks(pipe: IO[bytes] | None) -> Iterator[bytes]:
    """What comes out of a pipe, as it comes."""
    assert pipe is not None
    descriptor = pipe.fileno()
    with contextlib.suppress(OSError):
        while chunk := os.read(descriptor, _CHUNK_BYTES):
            yield chunk


def start(
    argv: Sequence[str],
    env: Mapping[str, str] | None,
    memory_limit_bytes: int | None,
    *,
    before_exec: Callable[[], None] | None = None,
    streams: Streams = PIPES,
    own_group: bool = True,
) -> Child:
    """Start a command, by default in a group of its own and with pipes.

    Args:
        before_exec: called in the child before it becomes the command; not on Windows.
        streams: as subprocess.Popen takes them; None is this process's own.

    Raises:
        MissingInputError: the program cannot be started.
    """
    options: dict[str, Any] = {}
    if sys.platform == "win32":
        options["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP if own_group else 0
    else:
        options["process_group"] = 0 if own_group else None
        # The death signal has to be set between fork and exec: subprocess offers only preexec_fn for that.
        # All it calls is looked up beforehand, so it takes no lock that another thread may hold.
        options["preexec_fn"] = _leash(memory_limit_bytes, before_exec)
    try:
        return subprocess.Popen(
            list(argv), stdin=streams.stdin, stdout=streams.stdout, stderr=streams.stderr,
            env=None if env is None else dict(env), **options,
        )  # fmt: skip
    except OSError as err:
        raise MissingInputError(f"cannot start {argv[0]}: {err.strerror}") from err


def _leash(
    memory_limit_bytes: int | None, before_exec: Callable[[], None] | None = None
) -> Callable[[], None]:
    """What the child does before it becomes the command: no core dump, its memory limit, its death signal."""
    if sys.platform == "win32":
        raise NotImplementedError
    import resource

    parent = os.getpid()
    setrlimit, getppid, leave = resource.setrlimit, os.getppid, os._exit
    limits = [(resource.RLIMIT_CORE, (0, 0))]
    if memory_limit_bytes is not None:
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = memory_limit_bytes if hard == resource.RLIM_INFINITY else min(memory_limit_bytes, hard)
        limits.append((resource.RLIMIT_AS, (limit, limit)))
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
    death_signal = int(signal.SIGKILL)

    def prepare() -> None:
        for kind, value in limits:
            setrlimit(kind, value)
        if before_exec is not None:
            before_exec()
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, death_signal)
            if getppid() != parent:  # it died before the call
                leave(1)

    return prepare


def has_ended(child: subprocess.Popen[bytes]) -> bool:
    """Whether it has; where the system can, it is not reaped yet, so that its group's id cannot be taken by another."""
    if child.returncode is not None:
        return True
    if sys.platform == "win32" or not hasattr(os, "waitid"):
        return child.poll() is not None
    try:
        return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # another thread has just reaped it
        return True


def _wait(child: subprocess.Popen[bytes], deadline_s: float) -> bool:
    """True once the child has ended, False at the deadline (monotonic clock)."""
    pause_s = 0.001
    while True:
        ended = has_ended(child)
        left_s = deadline_s - time.monotonic()
        if ended or left_s <= 0:
            return ended
        time.sleep(min(pause_s, left_s))
        pause_s = min(2 * pause_s, 0.05)


def _kill_tree(child: subprocess.Popen[bytes]) -> None:
    import psutil  # type: ignore[import-untyped,unused-ignore]

    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(child.pid)
        for process in [*parent.children(recursive=True), parent]:
            with contextlib.suppress(psutil.Error):
                process.kill()


def failure(name: str, status: int, stderr: str, memory_limit_bytes: int | None) -> EdgeLLMError:
    """What a status other than 0 means. What a child said before a signal killed it may be a file's own words."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    name_of_signal = signal_name(status)
    if name_of_signal is None and (error := _our_error(last)):
        return error
    if memory_limit_bytes is not None and any(word in line for word in _OUT_OF_MEMORY for line in lines[-5:]):
        limit = format_bytes(memory_limit_bytes)
        return ResourceError(
            f"{name}: ran out of memory below its limit of {limit}", hint="allow more memory"
        )
    said = f": {said_elsewhere(last)[:300]}" if last else ""
    if name_of_signal is None:
        return NativeCrash(f"{name}: exited with status {status}{said}")
    hint = "the kernel may have run out of memory" if name_of_signal == "SIGKILL" else None
    return NativeCrash(f"{name}: died of {name_of_signal}{said}", hint=hint, signal_name=name_of_signal)


def signal_name(status: int) -> str | None:
    """The signal that ended a process with this status (as subprocess gives it); None where none did."""
    if sys.platform == "win32":
        return _WINDOWS_FAULTS.get(status & 0xFFFFFFFF)
    if status >= 0:
        return None
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _our_error(line: str) -> EdgeLLMError | None:
    """The error that a child of ours printed, as the class it was; None if the line is something else."""
    try:
        error = json.loads(line)["error"]
        kind, message, hint = error["type"], error["message"], error.get("hint")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(kind, str) or not isinstance(message, str) or not isinstance(hint, str | None):
        return None
    found = error_named(kind)
    if found is None:
        return None
    return found(said_elsewhere(message), hint=None if hint is None else said_elsewhere(hint))

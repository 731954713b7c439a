"""A child that stays and answers questions: a line in, a known number of bytes out."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from edgellm import process
from edgellm.errors import ResourceError


class Conversation:
    """A running child; ended with its whole group when the block is left.

    Args:
        argv: the command.  env: the whole environment; None inherits.
        memory_limit_bytes: limit of its address space; not enforced on Windows.

    Raises:
        MissingInputError: the program cannot be started.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        memory_limit_bytes: int | None = None,
    ) -> None:
        self._name = Path(argv[0]).name
        self._memory_limit_bytes = memory_limit_bytes
        self._child = process.start(argv, env, memory_limit_bytes)
        self._group = process.Group(self._child)
        self._stderr = bytearray()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._late = False

    def __enter__(self) -> Conversation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, line: bytes, n_bytes: int, *, timeout_s: float) -> bytearray:
        """Send a line and read exactly n_bytes of the answer.

        Raises:
            ResourceError: no whole answer in time; the child is killed.
            NativeCrash: it died.  EdgeLLMError: the error in the last line of its stderr.
        """
        watchdog = threading.Timer(timeout_s, self._too_late)
        watchdog.daemon = True
        watchdog.start()
        answer = bytearray(n_bytes)
        done = 0
        try:
            assert self._child.stdin is not None
            assert self._child.stdout is not None
            with contextlib.suppress(OSError):  # a child that is gone is noticed below
                self._child.stdin.write(line + b"\n")
                self._child.stdin.flush()
            view = memoryview(answer)
            while done < n_bytes:
                got = self._child.stdout.readinto(view[done:])  # type: ignore[attr-defined]
                if not got:
                    break
                done += got
        finally:
            watchdog.cancel()
        if done < n_bytes:
            raise self._failure(timeout_s)
        return answer

    def close(self) -> None:
        """End the child; safe to call twice."""
        self._group.kill()
        self._group.reap()
        self._listener.join(5.0)
        for pipe in (self._child.stdin, self._child.stdout, self._child.stderr):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def _too_late(self) -> None:
        self._late = True
        self._group.kill()

    def _listen(self) -> None:
        for chunk in process.chunks(self._child.stderr):
            self._stderr += chunk
            del self._stderr[: -process.STDERR_TAIL_BYTES]

    def _failure(self, timeout_s: float) -> Exception:
        if not self._late:
            self._child.wait()  # it closed its output: it is ending
        self.close()
        if self._late:
            return ResourceError(f"{self._name}: no answer after {timeout_s:g} s, killed")
        stderr = bytes(self._stderr).decode("utf-8", "replace")
        return process.failure(self._name, self._child.returncode, stderr, self._memory_limit_bytes)

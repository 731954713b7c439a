"""A child that stays, with messages both ways at any time: four bytes of length, then the message."""

from __future__ import annotations

import contextlib
import os
import queue
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import IO

from edgellm import process
from edgellm.errors import EdgeLLMError, NativeCrash

MAX_MESSAGE_BYTES = 256 * 1024**2
_LENGTH = struct.Struct("<I")
Start = Callable[[Sequence[str], Mapping[str, str] | None, int | None], process.Child]


class Channel:
    """A running child, ended with its whole group by `close`.

    Args:
        argv: the command.  env: the whole environment; None inherits.
        memory_limit_bytes: limit of its address space; not enforced on Windows.
        max_message_bytes: a child that sends a longer one is ended.
        start: what starts it, as `process.start` does.
        on_message: called in a thread of its own with each message of the child. What it raises ends the child.
        on_end: called once in that thread when the child is gone, with the error that this is.

    Raises:
        MissingInputError: the program cannot be started.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        on_message: Callable[[bytes], None],
        on_end: Callable[[EdgeLLMError], None],
        env: Mapping[str, str] | None = None,
        memory_limit_bytes: int | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        start: Start = process.start,
    ) -> None:
        self._name = " ".join([Path(argv[0]).name, *argv[1:4]])
        self._memory_limit_bytes = memory_limit_bytes
        self._max_message_bytes = max_message_bytes
        self._on_message, self._on_end = on_message, on_end
        self._stderr = bytearray()
        self._why: EdgeLLMError | None = None
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._listening = threading.Event()
        # On Linux a child dies with the thread that started it, not with the process: so that thread stays with it.
        started: Future[None] = Future()
        self._reader = threading.Thread(
            target=self._run, args=(started, start, argv, env), name="edgellm-channel", daemon=True
        )
        self._reader.start()
        try:
            started.result()
        except BaseException:  # Ctrl-C too: nobody will ever listen
            self._on_message, self._on_end = _ignore, _ignore
            self._outbox.put(None)
            self._listening.set()
            raise

    def listen(self) -> None:
        """Begin to call `on_message` and `on_end`."""
        self._listening.set()

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    def send(self, message: bytes) -> None:
        """Send one message, without waiting until it is read. A child that is gone is noticed by `on_end`, not here.

        Raises:
            ValueError: it is longer than the child reads.
        """
        if len(message) > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message of {len(message)} bytes, at most {MAX_MESSAGE_BYTES} are sent")
        self._outbox.put(message)

    def kill(self, why: EdgeLLMError) -> None:
        """End the child now; `on_end` gets this error."""
        self._why = self._why or why
        self._group.kill()

    def close(self, grace_s: float = 0.0) -> None:
        """End the child; safe to call twice. Its standard input is closed, and after `grace_s` it is killed."""
        self._outbox.put(None)
        self._listening.set()
        if threading.current_thread() is not self._reader:
            self._reader.join(grace_s)
            self._group.kill()
            self._reader.join()

    def _run(
        self, started: Future[None], start: Start, argv: Sequence[str], env: Mapping[str, str] | None
    ) -> None:
        """From the child's start to its end."""
        try:
            self._child = start(argv, env, self._memory_limit_bytes)
        except BaseException as err:
            started.set_exception(err)
            return
        self._group = process.Group(self._child)
        helpers = [
            threading.Thread(target=self._listen, name="edgellm-stderr", daemon=True),
            threading.Thread(target=self._write, name="edgellm-outbox", daemon=True),
        ]
        for helper in helpers:
            helper.start()
        started.set_result(None)
        self._listening.wait()
        self._read()
        self._group.kill()
        self._group.reap()
        self._outbox.put(None)
        for helper in helpers:
            helper.join(5.0)
        self._on_end(self._why or self._failure())

    def _read(self) -> None:
        assert self._child.stdout is not None
        try:
            with self._child.stdout as pipe:
                while (message := read_message(pipe, self._max_message_bytes)) is not None:
                    self._on_message(message)
        except Exception as err:  # whatever a message does, those who wait for others are told
            self._why = self._why or NativeCrash(f"{self._name}: sent nonsense: {err}")

    def _write(self) -> None:
        """Write what is sent, so that nobody else waits for a child that does not read."""
        pipe = self._child.stdin
        assert pipe is not None
        with contextlib.suppress(OSError, ValueError):
            while (message := self._outbox.get()) is not None:
                pipe.write(_LENGTH.pack(len(message)) + message)
                pipe.flush()
        with contextlib.suppress(OSError, ValueError):
            pipe.close()

    def _failure(self) -> EdgeLLMError:
        stderr = bytes(self._stderr).decode("utf-8", "replace")
        if self._child.returncode == 0:
            return NativeCrash(f"{self._name}: ended")
        return process.failure(self._name, self._child.returncode, stderr, self._memory_limit_bytes)

    def _listen(self) -> None:
        for chunk in process.chunks(self._child.stderr):
            self._stderr += chunk
            del self._stderr[: -process.STDERR_TAIL_BYTES]
        with contextlib.suppress(OSError):
            if self._child.stderr is not None:
                self._child.stderr.close()


def _ignore(_: object) -> None:
    pass


def read_message(pipe: IO[bytes], max_bytes: int = MAX_MESSAGE_BYTES) -> bytes | None:
    """The next message; None at the end.

    Raises:
        ValueError: a length out of bounds, or an end in the middle.
    """
    head = _read_exactly(pipe, _LENGTH.size)
    if not head:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > max_bytes:
        raise ValueError(f"a message of {length} bytes, at most {max_bytes} are read")
    message = _read_exactly(pipe, length)
    if len(message) < length:
        raise ValueError("it ends within a message")
    return message


def write_message(descriptor: int, message: bytes) -> None:
    """Write one message at once, past any buffer.

    Raises:
        OSError: nobody reads.
    """
    data = memoryview(_LENGTH.pack(len(message)) + message)
    while data:
        data = data[os.write(descriptor, data) :]


def _read_exactly(pipe: IO[bytes], n_bytes: int) -> bytes:
    data = pipe.read(n_bytes)
    if data and len(data) < n_bytes and n_bytes == _LENGTH.size:
        raise ValueError("it ends within a length")
    return data or b""

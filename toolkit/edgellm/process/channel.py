"""A child that stays, with messages both ways at any time: four bytes of length, then the message."""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from edgellm import process
from edgellm.errors import EdgeLLMError, NativeCrash

MAX_MESSAGE_BYTES = 256 * 1024**2
_LENGTH = struct.Struct("<I")


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
        start: Callable[[Sequence[str], Mapping[str, str] | None, int | None], process.Child] = process.start,
    ) -> None:
        self._name = " ".join([Path(argv[0]).name, *argv[1:4]])
        self._memory_limit_bytes = memory_limit_bytes
        self._max_message_bytes = max_message_bytes
        self._on_message, self._on_end = on_message, on_end
        self._child = start(argv, env, memory_limit_bytes)
        self._group = process.Group(self._child)
        self._stderr = bytearray()
        self._lock = threading.Lock()
        self._why: EdgeLLMError | None = None
        self._listener = threading.Thread(target=self._listen, name="edgellm-stderr", daemon=True)
        self._reader = threading.Thread(target=self._read, name="edgellm-channel", daemon=True)
        self._listener.start()

    def listen(self) -> None:
        """Begin to call `on_message` and `on_end`."""
        self._reader.start()

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    def send(self, message: bytes) -> None:
        """Send one message. A child that is gone is noticed by `on_end`, not here.

        Raises:
            ValueError: it is longer than the child reads.
        """
        if len(message) > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message of {len(message)} bytes, at most {MAX_MESSAGE_BYTES} are sent")
        assert self._child.stdin is not None
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._child.stdin.write(_LENGTH.pack(len(message)) + message)
            self._child.stdin.flush()

    def kill(self, why: EdgeLLMError) -> None:
        """End the child now; `on_end` gets this error."""
        self._why = self._why or why
        self._group.kill()

    def close(self, grace_s: float = 0.0) -> None:
        """End the child; safe to call twice. Its standard input is closed, and after `grace_s` it is killed."""
        self._hang_up()
        if self._reader.ident is not None and threading.current_thread() is not self._reader:
            self._reader.join(grace_s)
            self._group.kill()
            self._reader.join()

    def _hang_up(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._child.stdin is not None:
                self._child.stdin.close()

    def _read(self) -> None:
        assert self._child.stdout is not None
        try:
            with self._child.stdout as pipe:
                while (message := read_message(pipe, self._max_message_bytes)) is not None:
                    self._on_message(message)
        except Exception as err:  # whatever it was: nobody may wait for a child that is not listened to
            self._why = self._why or NativeCrash(f"{self._name}: sent nonsense: {err}")
        self._group.kill()
        self._group.reap()
        self._listener.join(5.0)
        self._hang_up()
        self._on_end(self._why or self._failure())

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

"""Python's audit hook: what Python code asks of the network is refused, and written to a file with the place it was asked.

It sees no native code and no other program, but it sees names: the host that is looked up, the module that asks. It
cannot be taken off again.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from typing import Any

MAX_WORDS = 200
BEGUN = {"watching": True}  # the first line
_watched = False


def is_watched() -> bool:
    """Whether this process is."""
    return _watched


def install(path: str) -> None:
    """Watch this process from now on.

    Args:
        path: where attempts are written, one JSON object a line: `what`, `by`.

    Raises:
        OSError: it cannot be written.
    """
    global _watched
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, json.dumps(BEGUN).encode() + b"\n")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        describe = _EVENTS.get(event)
        if describe is None:
            return
        what = describe(arguments)
        if what:
            line = json.dumps({"what": what[:MAX_WORDS], "by": _caller()[:MAX_WORDS]})
            os.write(descriptor, line.encode() + b"\n")
            raise OSError(errno.ENETUNREACH, f"refused, this process is to stay offline: {what[:MAX_WORDS]}")

    sys.addaudithook(hook)
    _watched = True


def _caller() -> str:
    """The place in Python code that asked, the standard library's sockets aside."""
    frame = sys._getframe(2)
    while frame.f_back is not None and os.path.basename(frame.f_code.co_filename) == "socket.py":  # noqa: PTH119
        frame = frame.f_back
    place = "/".join(frame.f_code.co_filename.replace("\\", "/").split("/")[-3:])
    return f"{place} line {frame.f_lineno} (process {os.getpid()})"


def _address(value: object) -> str:
    if isinstance(value, tuple) and len(value) >= 2:
        return f"{value[0]} port {value[1]}"
    return ascii(value)


def _sent(arguments: tuple[Any, ...]) -> str:
    return f"send to {_address(arguments[1])}" if arguments[1] is not None else ""


_EVENTS: dict[str, Callable[[tuple[Any, ...]], str]] = {
    "socket.connect": lambda a: f"connect to {_address(a[1])}",
    "socket.bind": lambda a: f"bind to {_address(a[1])}",
    "socket.sendto": _sent,
    "socket.sendmsg": _sent,
    "socket.getaddrinfo": lambda a: f"look up {a[0]!r}",
    "socket.gethostbyname": lambda a: f"look up {a[0]!r}",
    "socket.gethostbyaddr": lambda a: f"look up {a[0]!r}",
    "socket.getnameinfo": lambda a: f"look up {_address(a[0])}",
}

"""A command of ours run to its end as a child that is to stay offline, on the streams of this process."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType

from edgellm import process
from edgellm.errors import ResourceError
from edgellm.process.offline import Watch
from edgellm.process.proof import OfflineProof
from edgellm.units import format_bytes


@dataclass(frozen=True)
class Watched:
    """A command that has ended.

    Attributes:
        status: its exit status, as subprocess gives it: negative where a signal ended it.
        stdout: what it printed, if that was asked for; else nothing.
    """

    status: int
    stdout: bytes
    proof: OfflineProof


def run_watched(arguments: Sequence[str], *, capture: bool) -> Watched:
    """Run `edgellm ARGUMENTS`. SIGTERM, and a SIGINT that no terminal sent to both, are passed on.

    Args:
        capture: keep what it prints on its standard output, instead of printing it.

    Raises:
        MissingInputError: it cannot be started.  ResourceError: it printed more than can be kept.
    """
    watch = Watch()
    child = watch.start(
        lambda first: process.python_argv([*first, *arguments]),
        streams=process.Streams(None, process.PIPE if capture else None, None),
        own_group=False,
    )
    stdout = bytearray()
    with _passed_on(child):
        if capture:
            for chunk in process.chunks(child.stdout):
                stdout += chunk
                if len(stdout) > process.MAX_STDOUT_BYTES:
                    child.kill()
                    child.wait()
                    limit = format_bytes(process.MAX_STDOUT_BYTES)
                    raise ResourceError(f"the watched command printed more than {limit}, killed")
        status = child.wait()
    return Watched(status, bytes(stdout), watch.proof())


@contextlib.contextmanager
def _passed_on(child: process.Child) -> Iterator[None]:
    def terminate(number: int, _: FrameType | None) -> None:
        child.send_signal(number)

    def interrupt(number: int, _: FrameType | None) -> None:
        if not _has_terminal():
            child.send_signal(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _has_terminal() -> bool:
    """Whether keys of a terminal go to this process and its children together."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)

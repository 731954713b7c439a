"""The command line: flags and words over `edgellm.api`; no logic.

stdout is the result, stderr is words and progress. Commands are imported when they are called, so `--help` is fast.
"""

from __future__ import annotations

import sys
from typing import NoReturn


def _open_missing_streams() -> None:
    """Standard streams that the caller closed become the null device; words that a terminal cannot show become `?`."""
    import os

    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _leave(code: int) -> NoReturn:
    """End the process with this code, whatever Ctrl-C does meanwhile.

    A Ctrl-C that struck while Python ran source from a string (namedtuple makes classes that way during imports) makes
    the interpreter end by the signal although it was handled; one that comes while it shuts down does the same.
    """
    import contextlib
    import os
    import signal
    import threading

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if code == 130:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _watched(arguments: list[str]) -> list[str]:
    """The arguments of the command itself; before them `edgellm.process.offline` says where to note attempts."""
    if arguments[:1] != ["_watched"]:
        return arguments
    from edgellm.process import audit

    audit.install(arguments[1])
    return arguments[2:]


def main() -> None:
    """The command `edgellm`; ends the process with an exit code of `edgellm.errors`."""
    _open_missing_streams()
    try:
        arguments = _watched(sys.argv[1:])
        from edgellm.cli.main import run

        code = run(arguments)
    except KeyboardInterrupt:  # while importing, or while an error is being said
        code = 130
    except (MemoryError, ImportError) as err:
        if isinstance(err, ImportError) and "failed to map segment" not in str(err):
            raise
        sys.stderr.write("error: out of memory: less is allowed than the command needs to start\n")
        code = 75
    _leave(code)

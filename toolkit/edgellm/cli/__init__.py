"""The command line: flags and words over `edgellm.api`; no logic.

stdout is the result, stderr is words and progress. Commands are imported when they are called, so `--help` is fast.
"""

from __future__ import annotations

import sys


def _open_missing_streams() -> None:
    """Standard streams that the caller closed become the null device; words that a terminal cannot show become `?`."""
    import os

    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _ignore_interrupts() -> None:
    """The work is over and its exit code is known: Ctrl-C while Python shuts down must not change it."""
    import signal
    import threading

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def main() -> None:
    """The command `edgellm`; ends the process with an exit code of `edgellm.errors`."""
    _open_missing_streams()
    try:
        from edgellm.cli.main import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # while importing, or while an error is being said
        code = 130
    _ignore_interrupts()
    sys.exit(code)

"""How the developer scripts speak: one line per decision on stderr, and a clear last line when they stop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NoReturn


def say(text: str) -> None:
    """One line of progress."""
    print(f"setup: {text}", file=sys.stderr, flush=True)


def stop(what: str, hint: str) -> NoReturn:
    """End with one line of error and one of advice."""
    print(f"error: {what}\nhint: {hint}", file=sys.stderr, flush=True)
    sys.exit(1)


def run(argv: list[str | Path], *, what: str, log: Path | None = None, **options: object) -> None:
    """Run a command; when it fails, show the end of its output and stop."""
    if log:
        with log.open("ab") as sink:
            done = subprocess.run([str(a) for a in argv], stdout=sink, stderr=subprocess.STDOUT, **options)  # type: ignore[call-overload]
        tail = log.read_bytes()[-3000:].decode(errors="replace")
    else:
        done = subprocess.run(
            [str(a) for a in argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
        )  # type: ignore[call-overload]
        tail = done.stdout[-3000:].decode(errors="replace")
    if done.returncode:
        print(tail, file=sys.stderr)
        stop(
            f"{what} failed with exit code {done.returncode}", f"the command was: {' '.join(map(str, argv))}"
        )

"""Reads of small files in /sys by meters: what cannot be read is an error, never a zero."""

from __future__ import annotations

from pathlib import Path

from edgellm.errors import MeterError

_MAX_BYTES = 4096


def read_text(path: Path) -> str:
    """The file without surrounding blanks, at most 4 KiB of it.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return file.read(_MAX_BYTES).decode("ascii", "replace").strip()


def number(text: str, path: Path) -> int:
    """The text of a counter as a number.

    Raises:
        MeterError: it is not one.
    """
    try:
        return int(text)
    except ValueError as err:
        raise MeterError(f"{path}: {text[:40]!r} is not a number") from err

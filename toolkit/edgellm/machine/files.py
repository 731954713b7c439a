"""Small reads from /proc and /sys: an absent or unreadable file is None."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/")
_MAX_BYTES = 4 * 1024**2


def is_live(root: Path) -> bool:
    """True where `root` is the running system, so that system calls speak of the machine in its files."""
    return root == ROOT


def read_text(path: Path) -> str | None:
    """The file without surrounding blanks and NULs, at most 4 MiB of it; None if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode("utf-8", "replace").strip(" \t\r\n\0")
    except (OSError, ValueError):
        return None


def read_int(path: Path) -> int | None:
    """The file as one decimal number; None if it is anything else (such as `max`)."""
    text = read_text(path)
    try:
        return int(text) if text else None
    except ValueError:
        return None


def list_paths(directory: Path, pattern: str) -> list[Path]:
    """Paths in a directory that match, sorted; none if there is no such directory."""
    try:
        return sorted(directory.glob(pattern))
    except OSError:
        return []

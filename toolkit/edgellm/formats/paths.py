"""Names that come out of an artifact or a model repository, and the opening of foreign files.

`safe_join` is the only way such a name becomes a path. It refuses by form (everywhere what is unsafe
anywhere) and then by place: the resolved path must lie inside the directory. Hard links are not checked.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from edgellm.errors import BadInputError, MissingInputError, UnsafeInputError

MAX_NAME_BYTES = 1024
MAX_PART_BYTES = 255

_DEVICE_NAMES = frozenset(
    ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", "CLOCK$"]
    + [f"{port}{digit}" for port in ("COM", "LPT") for digit in "0123456789\u00b9\u00b2\u00b3"]
)


def safe_join(directory: Path, name: str) -> Path:
    """The path of `name` inside `directory`; `/` separates folders. The file need not exist.

    Symbolic links are followed and must end inside the directory. One exception: in a hub cache
    (`.../snapshots/<revision>`) a link may end in the sibling folder `blobs`.

    Returns:
        directory / name, not resolved, so that its suffix is still the name's.

    Raises:
        UnsafeInputError: the name is empty, absolute, has a drive, a backslash, `.` or `..`, a control
            character, a reserved Windows name, or leads out of the directory.
    """
    problem = _bad_form(name)
    if problem:
        raise UnsafeInputError(f"name {_shown(name)} escapes the model directory: {problem}")
    path = directory.joinpath(*name.split("/"))
    try:
        root, target = directory.resolve(), path.resolve()
    except (OSError, RuntimeError) as err:  # a loop of links is a RuntimeError up to Python 3.12
        raise UnsafeInputError(f"name {_shown(name)} in {directory} cannot be resolved: {err}") from err
    if not target.is_relative_to(root) and not _is_hub_blob(root, target):
        raise UnsafeInputError(
            f"name {_shown(name)} escapes the model directory {directory}: it leads to {target}"
        )
    return path


def _bad_form(name: str) -> str | None:
    """Why the name is refused by its form alone, or None."""
    try:
        n_bytes = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    if not name or n_bytes > MAX_NAME_BYTES:
        return "it is empty" if not name else f"it has {n_bytes} bytes, more than {MAX_NAME_BYTES}"
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        return "it holds a control character"
    for character, problem in (("\\", "a backslash"), (":", "a colon (a drive or a stream)")):
        if character in name:
            return f"it holds {problem}"
    if name.startswith("/"):
        return "it is absolute"
    for part in name.split("/"):
        if part in ("", ".", ".."):
            return f"it has the part {part!a}"
        if part[-1] in ". " or part[0] == " ":
            return "a part of it begins or ends with a space or ends with a dot"
        if part.split(".")[0].rstrip(" ").upper() in _DEVICE_NAMES:
            return f"{part!a} is a device name on Windows"
        if len(part.encode("utf-8")) > MAX_PART_BYTES:
            return f"a part of it is longer than {MAX_PART_BYTES} bytes"
    return None


def _is_hub_blob(root: Path, target: Path) -> bool:
    """Whether `root` is a snapshot in a hub cache and `target` a file in that model's `blobs`."""
    for folder in (root, *root.parents):
        if folder.parent.name == "snapshots":
            return target.parent == folder.parent.parent / "blobs"
    return False


def _shown(name: str) -> str:
    return ascii(name) if len(name) <= 80 else f"{name[:77]!a}... ({len(name)} characters)"


@contextmanager
def open_regular(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file for reading, with its size in bytes. A pipe or a device is refused, not waited for.

    Raises:
        MissingInputError: there is no such file.
        BadInputError: not a regular file, or the system refuses to open it or fails while it is read.
    """
    if "\0" in str(path):
        raise BadInputError(f"path {str(path)!a:.80} holds a NUL character")

    def open_at_once(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    try:
        with open(path, "rb", opener=open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BadInputError(f"{path}: not a regular file")
            yield file, status.st_size
    except (FileNotFoundError, NotADirectoryError) as err:
        raise MissingInputError(f"no such file: {path}") from err
    except IsADirectoryError as err:
        raise BadInputError(f"{path}: is a directory, expected a file") from err
    except OSError as err:
        raise BadInputError(f"{path}: cannot be read: {err.strerror or err}") from err

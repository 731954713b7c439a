"""The key that this user's saved caches are signed with: 32 random bytes in a file that nobody else may read."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from pathlib import Path

from edgellm import locks
from edgellm.errors import BadInputError, OutputError, UnsafeInputError
from edgellm.resources import DATA_VARIABLE, user_directory

KEY_BYTES = 32
KEY_ID_BYTES = 8
_NAME = "cache.key"
_NEW_ONE = "remove it: a new one is made, and what was signed with it is computed anew"


def find() -> bytes | None:
    """The key; None where none was made yet.

    Raises:
        UnsafeInputError: others may read or change it.  BadInputError: it is no key, or cannot be read.
    """
    path = user_directory() / _NAME
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as err:
        raise BadInputError(f"{path}: cannot be read: {err.strerror or err}", hint=_NEW_ONE) from err
    with os.fdopen(descriptor, "rb") as file:
        _check_private(path, os.fstat(file.fileno()))
        key = file.read(KEY_BYTES + 1)
    if len(key) != KEY_BYTES:
        raise BadInputError(f"{path}: no key of {KEY_BYTES} bytes", hint=_NEW_ONE)
    return key


def find_or_make() -> bytes:
    """The key, made on first use; two processes that begin at once agree on one.

    Raises:
        OutputError: the user's directory cannot be written.  Otherwise as in `find`.
    """
    if key := find():
        return key
    place = user_directory()
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locks.held_name(place, f".{_NAME}.") as temporary:
            _write(temporary, secrets.token_bytes(KEY_BYTES))
            _publish(temporary, place / _NAME)
    except OSError as err:
        raise OutputError(
            f"{place / _NAME}: the key that saved caches are signed with cannot be written: {err.strerror or err}",
            hint=f"set {DATA_VARIABLE} to a directory of your own that can be written",
        ) from err
    key = find()
    if key is None:
        raise BadInputError(f"{place / _NAME}: was removed just now", hint="try again")
    return key


def key_id(key: bytes) -> bytes:
    """Tells one key from another without telling the key."""
    return hashlib.sha256(b"edgellm key id\n" + key).digest()[:KEY_ID_BYTES]


def _check_private(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeInputError(f"{path}: not a regular file", hint=_NEW_ONE)
    if os.name != "posix":
        return
    if status.st_uid != os.geteuid():
        raise UnsafeInputError(f"{path}: belongs to user {status.st_uid}, not to you", hint=_NEW_ONE)
    if status.st_mode & 0o077:
        raise UnsafeInputError(
            f"{path}: others may read or change it (mode {stat.S_IMODE(status.st_mode):04o})", hint=_NEW_ONE
        )


def _write(path: Path, key: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())


def _publish(temporary: Path, final: Path) -> None:
    """Give it its name, unless another process was quicker."""
    try:
        os.link(temporary, final)
    except FileExistsError:
        return
    except OSError:  # a file system without links
        temporary.replace(final)

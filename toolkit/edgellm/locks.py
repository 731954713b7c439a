"""Names of work in progress, each with a lock that its process holds for as long as it lives.

    <place>/<name>         a file or a directory
    <place>/<name>.lock    locked by the process that has the name

A process that is killed removes nothing, but the system takes its locks away: whoever comes next sees from the lock
that what lies there belongs to nobody, and removes it. What a live process holds is never touched, also where its id
means nothing here, as between containers that share a disk. What has no lock is not ours to remove.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed: that is lock enough
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".lock"
RANDOM = "[0-9a-f]{12}"  # how a name ends
_ATTEMPTS = 100


@contextlib.contextmanager
def held_name(place: Path, prefix: str) -> Iterator[Path]:
    """A new name in `place` that is ours until the block is left; then what bears it is removed.

    Raises:
        OSError: no lock can be had there.
    """
    lock, held = _locked_name(place, prefix)
    path = lock.with_suffix("")
    try:
        yield path
    finally:
        _remove(path, lock)
        os.close(held)
        with contextlib.suppress(OSError):  # where it could not be removed while open
            lock.unlink(missing_ok=True)


def sweep(locks: Iterable[Path]) -> None:
    """Remove what killed processes left; nothing that is in use, and no error where it cannot be removed.

    Args:
        locks: lock files, of live processes and of dead ones.
    """
    with contextlib.suppress(OSError):
        for lock in locks:
            with contextlib.suppress(OSError):
                _sweep_one(lock)


def _locked_name(place: Path, prefix: str) -> tuple[Path, int]:
    """A lock file of a new name, locked, and its descriptor."""
    for _ in range(_ATTEMPTS):
        lock = place / f"{prefix}{secrets.token_hex(6)}{SUFFIX}"
        held = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        # A sweep that came between the two steps has the lock, or has removed the file: another name, then.
        if _try_lock(held) and lock.exists() and os.path.samestat(os.fstat(held), lock.stat()):
            return lock, held
        os.close(held)
    raise OSError(f"no lock can be had in {place}")


def _try_lock(descriptor: int) -> bool:
    """Whether the lock is ours now; True where the file system knows no locks."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _sweep_one(lock: Path) -> None:
    path = lock.with_suffix("")
    if fcntl is None:
        lock.unlink()  # fails while its owner lives
        _discard(path)
        return
    held = os.open(lock, os.O_RDWR)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # without locks, or while its owner lives: an error
        _remove(path, lock)
    finally:
        os.close(held)


def _remove(path: Path, lock: Path) -> None:
    """What bears the name first, so that nothing lies there without a lock; what stays keeps it for the next sweep."""
    _discard(path)
    if not os.path.lexists(path):
        with contextlib.suppress(OSError):
            lock.unlink(missing_ok=True)


def _discard(path: Path) -> None:
    """Remove a file, a directory or a link, not what the link leads to; what cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)

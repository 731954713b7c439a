"""Scratch: files that are made only to be read again in the same run. All of it lies in one place of the cache.

    <cache>/scratch/<name>-<random>/        the files
    <cache>/scratch/<name>-<random>.lock    locked by the process that made them, for as long as it lives

A process that is killed removes nothing, but the system takes its locks away: whoever comes next sees from the lock
that the files belong to nobody, and removes them. What a live process holds is never touched, also where its id means
nothing here, as between containers that share a cache.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from edgellm import resources, staging

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed: that is lock enough
    fcntl = None  # type: ignore[assignment]

_LOCK = ".lock"
_ATTEMPTS = 100


def root() -> Path:
    """Where all scratch is; it need not exist."""
    return resources.cache_directory() / "scratch"


@contextlib.contextmanager
def directory(name: str) -> Iterator[Path]:
    """A new directory that is removed when the block is left; what killed processes left behind goes first.

    Raises:
        OutputError: the cache cannot be written; the hint says how to choose another.
    """
    place = root()
    with write_errors(place):
        place.mkdir(parents=True, exist_ok=True)
        sweep()
        lock, held = _locked_name(place, name)
    folder = lock.with_suffix("")
    try:
        with write_errors(folder):
            folder.mkdir()
        yield folder
    finally:
        _remove(folder, lock)
        os.close(held)
        with contextlib.suppress(OSError):  # where it could not be removed while open
            lock.unlink(missing_ok=True)


def sweep() -> None:
    """Remove what killed processes left; nothing that is in use, and no error where it cannot be removed."""
    with contextlib.suppress(OSError):
        for lock in root().glob(f"*{_LOCK}"):
            with contextlib.suppress(OSError):
                _sweep_one(lock)


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of writing scratch into one line whose hint names the cache.

    Raises:
        OutputError: for every OSError in the block.
    """
    try:
        yield
    except OSError as err:
        raise staging.write_error(path, err, in_cache=True) from err


def _locked_name(place: Path, name: str) -> tuple[Path, int]:
    """A lock file of a new name, locked, and its descriptor."""
    for _ in range(_ATTEMPTS):
        lock = place / f"{name}-{secrets.token_hex(6)}{_LOCK}"
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
    folder = lock.with_suffix("")
    if fcntl is None:
        lock.unlink()  # fails while its owner lives
        shutil.rmtree(folder, ignore_errors=True)
        return
    held = os.open(lock, os.O_RDWR)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # without locks, or while its owner lives: an error
        _remove(folder, lock)
    finally:
        os.close(held)


def _remove(folder: Path, lock: Path) -> None:
    """The files first, so that nothing lies there without a lock; what cannot be removed keeps it for the next sweep."""
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        with contextlib.suppress(OSError):
            lock.unlink(missing_ok=True)

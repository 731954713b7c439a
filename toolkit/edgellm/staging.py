"""How output appears: whole under its final name, or not at all.

Work is done under a name beside the final one and takes that name in a single step. What a killed process left behind
is removed by the next run for the same name; how it is known from what another one is writing now stands in `locks`.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from edgellm import locks
from edgellm.artifact import MANIFEST_NAME, holds_nothing_else
from edgellm.errors import OutputError, OutputExistsError
from edgellm.resources import CACHE_VARIABLE


@contextlib.contextmanager
def staged_directory(final: Path, *, force: bool = False) -> Iterator[Path]:
    """A directory that appears under its final name whole, or not at all.

    Yields a new directory beside `final`. On a clean exit it takes the final name in one step (with `force`, an older
    artifact keeps its name until that step); on any error it is removed. What an earlier, killed process left
    behind for this name is removed first.

    Raises:
        OutputExistsError: `final` exists and `force` is false, or it is not an artifact and must not be replaced.
        OutputError: the place cannot be written.
    """
    check_output_free(final, force=force)
    with contextlib.ExitStack() as stack:
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            staging = stack.enter_context(_partial(final))
            staging.mkdir()
        except OSError as err:
            raise write_error(final, err) from err
        yield staging
        try:
            _sync_directory(staging)
            _take_name(staging, final, force=force)
        except OSError as err:
            raise write_error(final, err) from err


def check_output_free(final: Path, *, force: bool) -> None:
    """Refuse early what `staged_directory` would refuse at the end.

    Raises:
        OutputExistsError: as in `staged_directory`.
    """
    if not os.path.lexists(final):
        return
    if not force:
        raise OutputExistsError(
            f"{final}: exists already", hint="choose another -o, or --force to replace it"
        )
    if final.is_symlink():
        raise OutputExistsError(
            f"{final}: is a symbolic link, so --force does not replace it",
            hint=f"name the directory itself: -o {final.resolve()}",
        )
    if not holds_nothing_else(final):
        what = (
            "holds more than an artifact"
            if (final / MANIFEST_NAME).is_file()
            else "is not an artifact of edgellm"
        )
        raise OutputExistsError(
            f"{final}: exists and {what}, so --force does not replace it",
            hint="choose another -o, or remove it yourself",
        )


def check_place(final: Path) -> None:
    """Refuse early a place where no directory can be made: below a file, or one that may not be written to.

    Raises:
        OutputError: it says why.
    """
    import errno

    place = final.parent
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise write_error(final, OSError(errno.ENOTDIR, ""))
    if not os.access(place, os.W_OK | os.X_OK):
        read_only = bool(os.statvfs(place).f_flag & os.ST_RDONLY) if hasattr(os, "statvfs") else False
        raise write_error(final, OSError(errno.EROFS if read_only else errno.EACCES, ""))


@contextlib.contextmanager
def staged_file(final: Path, *, place: str = "-o") -> Iterator[Path]:
    """Like `staged_directory`, for one file that replaces an older one.

    Args:
        place: what the caller chooses the place with, for hints.

    Raises:
        OutputError: the place cannot be written, or that name is a device, a pipe or a directory.
    """
    final = final.resolve() if final.is_symlink() else final
    if final.exists() and not final.is_file():
        raise OutputError(f"{final}: exists and is not a regular file", hint=f"choose another {place}")
    try:
        with _partial(final) as temporary:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(final)
    except OSError as err:
        raise write_error(final, err, place=place) from err


def write_error(path: Path, err: OSError, *, in_cache: bool = False, place: str = "-o") -> OutputError:
    """An OSError while writing, as ours, with a hint that fits the cause.

    Args:
        in_cache: the place is chosen by EDGELLM_CACHE.
        place: what it is chosen with otherwise.
    """
    import errno

    choose = f"set {CACHE_VARIABLE} to a place" if in_cache else f"choose a {place}"
    another = f"set {CACHE_VARIABLE} to another place" if in_cache else f"choose another {place}"
    hints = {
        errno.ENOSPC: f"free some space or {choose} on another disk",
        errno.EDQUOT: f"your quota is used up: {choose} elsewhere",
        errno.EACCES: f"{choose} that you may write to",
        errno.EPERM: f"{choose} that you may write to",
        errno.EROFS: f"that file system is read-only: {choose} elsewhere",
        errno.ENOTDIR: f"a part of that path is a file: {another}",
        errno.EEXIST: f"something else made that name meanwhile: {another}",
    }
    number = err.errno or 0
    whole = (path, *path.parents) if in_cache else path.parents
    if number == errno.EEXIST and any(part.exists() and not part.is_dir() for part in whole):
        number = errno.ENOTDIR
    what = f"{path} (in the cache)" if in_cache else str(path)
    return OutputError(
        f"{what}: cannot be written: {os.strerror(number) if number else err}",
        hint=hints.get(number, another if in_cache else None),
    )


def _take_name(staging: Path, final: Path, *, force: bool) -> None:
    if not os.path.lexists(final):
        staging.rename(final)
    elif force:
        check_output_free(final, force=True)
        if not _exchange(staging, final):
            _replace_in_two_steps(staging, final)
    else:
        raise OutputExistsError(f"{final}: appeared while converting", hint="choose another -o, or --force")
    _sync_directory(final.parent)


def _replace_in_two_steps(staging: Path, final: Path) -> None:
    """Where names cannot be swapped: the old directory is set aside, and put back if the new one does not arrive."""
    aside = final.parent / f".{final.name}.previous-{secrets.token_hex(4)}"
    final.rename(aside)
    try:
        staging.rename(final)
    except BaseException:
        if not os.path.lexists(final):
            aside.rename(final)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names atomically where the kernel can (Linux renameat2); False where it cannot."""
    import ctypes

    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    at_fdcwd, rename_exchange = -100, 2
    done: int = renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange)
    return done == 0


@contextlib.contextmanager
def _partial(final: Path) -> Iterator[Path]:
    """A name beside the final one that is ours for the block; what killed processes left under such names goes first."""
    prefix = f".{final.name}.partial-"
    of_final = re.compile(re.escape(prefix) + locks.RANDOM + re.escape(locks.SUFFIX))
    locks.sweep(path for path in _entries(final.parent) if of_final.fullmatch(path.name))
    with locks.held_name(final.parent, prefix) as path:
        yield path


def _entries(directory: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):  # whether it can be written shows in the next step
        yield from directory.iterdir()


def _sync_directory(path: Path) -> None:
    if os.name != "posix":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

"""Scratch: files that are made only to be read again in the same run. All of it lies in one place of the cache.

<cache>/scratch/<name>-<random>/        the files
<cache>/scratch/<name>-<random>.lock    see `locks`
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from edgellm import locks, resources, staging


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
    with contextlib.ExitStack() as stack:
        with write_errors(place):
            place.mkdir(parents=True, exist_ok=True)
            sweep()
            folder = stack.enter_context(locks.held_name(place, f"{name}-"))
            folder.mkdir()
        yield folder


def sweep() -> None:
    """Remove what killed processes left; nothing that is in use, and no error where it cannot be removed."""
    locks.sweep(root().glob(f"*{locks.SUFFIX}"))


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

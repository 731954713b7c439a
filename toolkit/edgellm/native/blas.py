"""The threads of numpy's linear algebra, which OpenBLAS otherwise takes from the machine by itself."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

# As numpy's wheels have named OpenBLAS's functions over time.
_NAMES = ("scipy_openblas_{}_num_threads64_", "scipy_openblas_{}_num_threads", "openblas_{}_num_threads64_")


class _Functions(NamedTuple):
    library: ctypes.CDLL
    pattern: str

    def get(self) -> int:
        return int(self.library[self.pattern.format("get")]())

    def set(self, n_threads: int) -> None:
        self.library[self.pattern.format("set")](ctypes.c_int(n_threads))


@contextlib.contextmanager
def limited(n_threads: int | None) -> Iterator[None]:
    """At most so many threads for numpy's linear algebra, in the whole process, until the block is left.

    Without effect for None, and where numpy has another library than the OpenBLAS of its wheels.
    """
    found = _functions() if n_threads is not None else None
    if found is None or n_threads is None:
        yield
        return
    before = found.get()
    found.set(min(n_threads, before))
    try:
        yield
    finally:
        found.set(before)


def threads() -> int | None:
    """Threads that numpy's linear algebra takes now; None where that cannot be told."""
    found = _functions()
    return found.get() if found else None


@functools.cache
def _functions() -> _Functions | None:
    package = Path(np.__file__).parent
    for path in (*package.parent.glob("numpy.libs/*openblas*"), *package.glob(".dylibs/*openblas*")):
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(str(path))  # loaded already: the same one
            for pattern in _NAMES:
                if hasattr(library, pattern.format("set")):
                    return _Functions(library, pattern)
    return None

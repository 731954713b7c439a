"""Lookup by name, with messages that say what there is."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

from edgellm.errors import SpecError

T = TypeVar("T")


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """The row called `name`.

    Args:
        what: the kind of thing, for the error message: "target", "quantization type".

    Raises:
        SpecError: there is none; the hint names the nearest and lists all.
    """
    try:
        return table[name]
    except KeyError:
        raise unknown(name, list(table), what) from None


def unknown(name: str, known: list[str], what: str) -> SpecError:
    """The error for a name that is not among `known`."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return SpecError(f"unknown {what} {name!r}", hint=f"{guess}known: {', '.join(known)}")

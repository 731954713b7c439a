"""Finds the data that ships with edgellm: targets/ and profiles/.

The same call works in a checkout (folders beside toolkit/), in an installed wheel (copied to
edgellm/_data) and in a PyInstaller bundle (the same folder below sys._MEIPASS).
"""

from __future__ import annotations

import sys
from pathlib import Path

from edgellm.errors import EdgeLLMError

_PACKAGE = Path(__file__).resolve().parent


def data_directory(name: str) -> Path:
    """The directory `targets` or `profiles`.

    Raises:
        EdgeLLMError: this installation lacks it.
    """
    bundle = getattr(sys, "_MEIPASS", None)
    places = [_PACKAGE / "_data" / name]
    if bundle:
        places.append(Path(bundle) / "edgellm" / "_data" / name)
    if _PACKAGE.parent.name == "toolkit":
        places.append(_PACKAGE.parent.parent / name)
    for place in places:
        if place.is_dir():
            return place
    raise EdgeLLMError(
        f"data directory {name!r} is not part of this installation of edgellm",
        hint="install edgellm again from its wheel or a checkout",
    )

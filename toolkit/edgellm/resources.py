"""Finds the data that ships with edgellm (targets/ and profiles/), the place for what it may throw away, and the user's.

The same call works in a checkout (folders beside toolkit/), in an installed wheel (copied to
edgellm/_data) and in a PyInstaller bundle (the same folder below sys._MEIPASS).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from edgellm.errors import EdgeLLMError

CACHE_VARIABLE = "EDGELLM_CACHE"
DATA_VARIABLE = "EDGELLM_DATA"
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


def cache_directory() -> Path:
    """Where large files that can be made again are kept: EDGELLM_CACHE, else the system's place for caches."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("edgellm"))


def user_directory() -> Path:
    """Where small files are kept that cannot be made again: EDGELLM_DATA, else the system's place for a user's data."""
    chosen = os.environ.get(DATA_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("edgellm"))


def export_environments() -> list[Path]:
    """Where an environment with torch and transformers may be: in the cache, and beside a checkout's own."""
    places = [cache_directory() / "export"]
    if _PACKAGE.parent.name == "toolkit":
        places.append(_PACKAGE.parent.parent / ".venv-oracle")
    return places

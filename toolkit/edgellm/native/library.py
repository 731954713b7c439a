"""Where llama.cpp's libraries are, and what is known of how they were built; finding them imports nothing native."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

from edgellm.errors import BackendUnavailable

INSTALL_HINT = "in a checkout: scripts/setup; elsewhere: pip install llama-cpp-python"
_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")


def install_hint() -> str:
    """What to do when the libraries are absent or do not load."""
    if os.environ.get("LLAMA_CPP_LIB_PATH"):
        return "unset LLAMA_CPP_LIB_PATH, or let it name the directory of libllama"
    return INSTALL_HINT


def library_directory() -> Path:
    """The directory of libllama and libggml: LLAMA_CPP_LIB_PATH, else the one inside llama_cpp.

    Raises:
        BackendUnavailable: llama-cpp-python is not installed, or its libraries are not there.
    """
    override = os.environ.get("LLAMA_CPP_LIB_PATH")
    if override:
        directory = Path(override)
    else:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None or not spec.submodule_search_locations:
            raise BackendUnavailable("llama-cpp-python is not installed", hint=INSTALL_HINT)
        directory = Path(spec.submodule_search_locations[0]) / "lib"
    if not directory.is_dir():
        raise BackendUnavailable(f"{directory}: no native libraries there", hint=install_hint())
    return directory


@functools.cache
def load(name: str) -> ctypes.CDLL:
    """One of llama.cpp's libraries by short name, for example `ggml-base`.

    Raises:
        BackendUnavailable: absent, or the loader refuses it.
    """
    directory = library_directory()
    for stem in (f"lib{name}", name):
        path = directory / f"{stem}{_SUFFIX}"
        if path.exists():
            try:
                return ctypes.CDLL(str(path))
            except OSError as err:
                raise BackendUnavailable(f"{path}: does not load: {err}", hint=install_hint()) from err
    raise BackendUnavailable(f"{directory}: no library {name!r}", hint=install_hint())


def build_record() -> dict[str, Any] | None:
    """What scripts/setup wrote about the build (flags, compiler, key); None for a library from elsewhere."""
    try:
        record = json.loads((library_directory() / "edgellm-build.json").read_bytes())
    except (OSError, ValueError, BackendUnavailable):
        return None
    return record if isinstance(record, dict) else None

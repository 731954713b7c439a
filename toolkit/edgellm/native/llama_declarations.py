"""llama-cpp-python's declarations of llama.cpp's functions, without the package around them.

`import llama_cpp` also imports an interpreter of chat formats, a disk cache and more, which takes longer than loading a
small model. The package itself stays as it is for a program that imports it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import Any

_PACKAGE = "llama_cpp"


class _Shell(types.ModuleType):
    """Stands in for the package while its declarations are imported; another thread that asks it gets the package."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(_PACKAGE) is self:
            del sys.modules[_PACKAGE]
        return getattr(importlib.import_module(_PACKAGE), name)


def declarations() -> types.ModuleType:
    """The module llama_cpp.llama_cpp.

    Raises:
        ImportError, OSError, RuntimeError, AttributeError: it, or the native library, does not load.
    """
    name = f"{_PACKAGE}.{_PACKAGE}"
    spec = None if _PACKAGE in sys.modules else importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        return importlib.import_module(name)
    shell = _Shell(_PACKAGE)
    shell.__spec__ = spec
    shell.__path__ = list(spec.submodule_search_locations)
    sys.modules[_PACKAGE] = shell
    try:
        return importlib.import_module(name)
    finally:
        if sys.modules.get(_PACKAGE) is shell:
            for loaded in [other for other in sys.modules if other.partition(".")[0] == _PACKAGE]:
                del sys.modules[loaded]

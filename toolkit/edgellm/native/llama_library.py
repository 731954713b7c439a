"""llama-cpp-python's low-level declarations, loaded on first use, and what llama.cpp last logged as an error."""

from __future__ import annotations

import ctypes
import functools
import os
import types
from collections import deque
from collections.abc import Mapping
from typing import Any

from edgellm.errors import BackendError, BackendUnavailable, EdgeLLMError, ResourceError
from edgellm.native import library
from edgellm.native.llama_declarations import declarations

_LOG_WARNING = 3
_OUT_OF_MEMORY = ("Cannot allocate memory", "failed to allocate", "unable to allocate")
_errors: deque[str] = deque(maxlen=20)


@functools.cache
def bindings() -> types.ModuleType:
    """The module of declarations, with the backend initialised.

    Raises:
        BackendUnavailable: it is not installed, or the native libraries do not load or were built for another CPU.
    """
    library.library_directory()
    library.check_cpu()
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # an abort would start a debugger on this process
    try:
        lib = declarations()
    except (ImportError, OSError, RuntimeError, AttributeError) as err:
        raise BackendUnavailable(f"llama_cpp does not load: {err}", hint=library.install_hint()) from err
    lib.llama_log_set(_log_callback, None)
    lib.llama_backend_init()
    return lib


@functools.cache
def binding_version() -> str:
    """The version of llama-cpp-python."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("llama-cpp-python")
    except PackageNotFoundError:
        return "unknown"


def header_overrides(lib: types.ModuleType, values: Mapping[str, str | bool]) -> Any:
    """A native array of header keys and values, ended by an empty key; names and texts have at most 127 bytes."""
    array = (lib.llama_model_kv_override * (len(values) + 1))()
    for entry, (key, value) in zip(array, values.items(), strict=False):
        entry.key = key.encode("utf-8")
        if isinstance(value, bool):
            entry.tag, entry.value.val_bool = lib.LLAMA_KV_OVERRIDE_TYPE_BOOL, value
        else:
            entry.tag, entry.value.val_str = lib.LLAMA_KV_OVERRIDE_TYPE_STR, value.encode("utf-8")
    return array


def forget_errors() -> None:
    """Begin an operation whose failure `last_error` will explain."""
    _errors.clear()


def last_error() -> str:
    """The last two lines that llama.cpp logged as warning or error."""
    lines = [line for line in _errors if line.strip(". ")]
    return " / ".join(lines[-2:]) if lines else "it gave no reason"


def failure(message: str, *, hint: str) -> EdgeLLMError:
    """An error with llama.cpp's own words; a ResourceError where they say that memory ran out."""
    said = last_error()
    if any(words in said for words in _OUT_OF_MEMORY):
        return ResourceError(f"{message}: {said}", hint="try a smaller model or --context")
    return BackendError(f"{message}: {said}", hint=hint)


def _log(level: int, text: bytes, _: object) -> None:
    if level >= _LOG_WARNING and text:
        _errors.append(text.decode("utf-8", errors="replace").strip())


_log_callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(_log)

"""Where llama.cpp's libraries are, and what is known of how they were built; finding them imports nothing native."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgellm import machine
from edgellm.errors import BackendUnavailable

INSTALL_HINT = "in a checkout: scripts/setup; elsewhere: pip install llama-cpp-python"
_GPU = re.compile(r"ggml-(cuda|hip|vulkan|sycl|opencl|cann|musa|metal|webgpu)")
BUILD_RECORD = "edgellm-build.json"
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


def files() -> list[Path]:
    """All of llama.cpp's shared libraries with their links, and the record of their build; for whoever copies them.

    Raises:
        BackendUnavailable: as in `library_directory`.
    """
    names = (f"{prefix}{stem}" for stem in ("llama", "ggml", "mtmd") for prefix in ("lib", ""))
    starts = tuple(names)
    return [
        path
        for path in sorted(library_directory().iterdir())
        if path.name == BUILD_RECORD or (path.name.startswith(starts) and _SUFFIX in path.suffixes)
    ]


@functools.cache
def load(name: str) -> ctypes.CDLL:
    """One of llama.cpp's libraries by short name, for example `ggml-base`.

    Raises:
        BackendUnavailable: absent, the loader refuses it, or it was built for another CPU.
    """
    directory = library_directory()
    check_cpu()
    for stem in (f"lib{name}", name):
        path = directory / f"{stem}{_SUFFIX}"
        if path.exists():
            try:
                return ctypes.CDLL(str(path))
            except OSError as err:
                raise BackendUnavailable(f"{path}: does not load: {err}", hint=install_hint()) from err
    raise BackendUnavailable(f"{directory}: no library {name!r}", hint=install_hint())


def has_gpu_library() -> bool:
    """Whether a GPU's backend lies beside the others; on macOS it is always there."""
    names = (path.name for path in library_directory().iterdir())
    return sys.platform == "darwin" or any(_GPU.search(name) for name in names)


def build_record() -> dict[str, Any] | None:
    """What scripts/setup wrote about the build (flags, compiler, key); None for a library from elsewhere."""
    try:
        record = json.loads((library_directory() / BUILD_RECORD).read_bytes())
    except (OSError, ValueError, BackendUnavailable):
        return None
    return record if isinstance(record, dict) else None


@functools.cache
def check_cpu() -> None:
    """Refuse libraries whose record says that they need instructions this CPU lacks: they would die of SIGILL.

    Of a library without a record nothing is known beforehand.

    Raises:
        BackendUnavailable: it lacks some; they are named.
    """
    has = set(machine.isa())
    missing = [name for name in _isa_of_build(build_record() or {}) if name not in has]
    if has and missing:
        raise BackendUnavailable(
            f"{library_directory()}: built for a CPU with {', '.join(missing)}, which {machine.cpu_name()} lacks",
            hint=install_hint(),
        )


def _isa_of_build(record: Mapping[str, Any]) -> list[str]:
    """What the compiler may have used: the instruction sets of the CPU it was built on, but for those left out."""
    cpu, left_out = record.get("cpu"), record.get("flags")
    if not isinstance(cpu, dict):
        return []
    flags = {word for key in ("flags", "Features") for word in str(cpu.get(key, "")).split()}
    without = {str(flag) for flag in left_out} if isinstance(left_out, list) else set()
    return [
        name
        for name in machine.isa_of_flags(flags)
        if f"-mno-{name.lower().replace('_', '-')}" not in without
    ]

"""LoRA adapters of one model: loaded once, chosen per native call."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

from edgellm.errors import SpecError
from edgellm.native.llama_library import bindings, failure, forget_errors
from edgellm.protocols import Adapters

MAX_SCALE = 100.0


class LoadedAdapters:
    """Adapters by name. They are freed with the model."""

    def __init__(self) -> None:
        self._handles: dict[str, Any] = {}

    def load(self, model: Any, name: str, path: Path) -> None:
        """Load a GGUF adapter under a name.

        Raises:
            SpecError: the name is taken.  BackendError: llama.cpp refuses the file for this model.
        """
        if name in self._handles:
            raise SpecError(f"an adapter named {name!r} is loaded already", hint="choose another name")
        forget_errors()
        handle = bindings().llama_adapter_lora_init(model, os.fsencode(path))
        if not handle:
            raise failure(
                f"{path}: llama.cpp cannot use it as an adapter of this model", hint="is it of another base?"
            )
        self._handles[name] = handle

    def check(self, adapters: Adapters) -> None:
        """Refuse names that are not loaded, and scales out of bounds.

        Raises:
            ValueError: one is.
        """
        for name, scale in adapters:
            if name not in self._handles:
                known = ", ".join(self._handles) or "none is loaded"
                raise ValueError(f"unknown adapter {name!r} ({known})")
            if not abs(scale) <= MAX_SCALE:
                raise ValueError(
                    f"scale of adapter {name!r} is {scale}, outside -{MAX_SCALE:g} to {MAX_SCALE:g}"
                )

    def of_context(self, context: Any) -> ContextAdapters:
        """What switches the adapters of one llama_context."""
        return ContextAdapters(context, self)

    def handle(self, name: str) -> Any:
        """The native handle of a loaded adapter."""
        return self._handles[name]


class ContextAdapters:
    """Which adapters one llama_context computes with; changed only where they differ."""

    def __init__(self, context: Any, loaded: LoadedAdapters) -> None:
        self._context, self._loaded = context, loaded
        self._in_use: Adapters = ()

    def check(self, adapters: Adapters) -> None:
        """As `LoadedAdapters.check`."""
        self._loaded.check(adapters)

    def use(self, adapters: Adapters) -> None:
        """Compute with these from now on."""
        if adapters == self._in_use:
            return
        lib = bindings()
        handles = (lib.llama_adapter_lora_p_ctypes * len(adapters))(
            *(self._loaded.handle(name) for name, _ in adapters)
        )
        scales = (ctypes.c_float * len(adapters))(*(scale for _, scale in adapters))
        if lib.llama_set_adapters_lora(self._context, handles, len(adapters), scales):
            raise failure("llama.cpp cannot switch adapters", hint="load the model again")
        self._in_use = adapters

"""edgellm: convert a language model for a device you own, run it there, and measure what a token costs.

    import edgellm

    artifact = edgellm.convert("builtin:smollm2", target="host", output="smollm2")
    with edgellm.load("smollm2") as model:
        for piece in model.stream([{"role": "user", "content": "Hello"}], max_tokens=64):
            print(piece.text, end="")

Importing this module imports nothing native; that happens on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "convert": "edgellm.api",
    "load": "edgellm.api",
    "profile": "edgellm.api",
    "verify": "edgellm.api",
    "EdgeLLMError": "edgellm.errors",
    "Model": "edgellm.runtime.model",
    "Session": "edgellm.runtime.session",
    "freeze_support": "edgellm.cli.frozen",
}

__all__ = [
    "EdgeLLMError", "Model", "Session", "__version__", "convert", "freeze_support", "load", "profile", "verify"
]  # fmt: skip

if TYPE_CHECKING:
    from edgellm.api import convert, load, profile, verify
    from edgellm.cli.frozen import freeze_support
    from edgellm.errors import EdgeLLMError
    from edgellm.runtime.model import Model
    from edgellm.runtime.session import Session


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'edgellm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

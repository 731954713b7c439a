"""Where rooms meet: the functions behind the commands and the library. Each comes with its module, on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

_HOMES = {
    "convert": "conversion",
    "convert_adapter": "adapters",
    "load": "loading",
    "open_artifact": "models",
    "plan_conversion": "planning",
    "profile": "profiling",
    "resolve": "models",
    "verify": "verification",
}

__all__ = [
    "convert", "convert_adapter", "load", "open_artifact", "plan_conversion", "profile", "resolve", "verify"
]  # fmt: skip

if TYPE_CHECKING:
    from edgellm.api.adapters import convert_adapter
    from edgellm.api.conversion import convert
    from edgellm.api.loading import load
    from edgellm.api.models import open_artifact, resolve
    from edgellm.api.planning import plan_conversion
    from edgellm.api.profiling import profile
    from edgellm.api.verification import verify


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(f"edgellm.api.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'edgellm.api' has no attribute {name!r}")

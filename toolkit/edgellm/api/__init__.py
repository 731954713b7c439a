"""Where rooms meet: the functions behind the commands and the library."""

from edgellm.api.adapters import convert_adapter
from edgellm.api.conversion import convert, plan_conversion
from edgellm.api.models import load, open_artifact, resolve
from edgellm.api.profiling import profile
from edgellm.api.verification import verify

__all__ = [
    "convert",
    "convert_adapter",
    "load",
    "open_artifact",
    "plan_conversion",
    "profile",
    "resolve",
    "verify",
]

"""Where rooms meet: the functions behind the commands and the library."""

from edgellm.api.conversion import convert, plan_conversion, verify
from edgellm.api.models import load, open_artifact, resolve
from edgellm.api.profiling import profile

__all__ = ["convert", "load", "open_artifact", "plan_conversion", "profile", "resolve", "verify"]

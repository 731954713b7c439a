"""Settings of the whole suite."""

from __future__ import annotations

from hypothesis import settings

# Repeatable, and without a time limit per example: a busy machine is not a bug.
settings.register_profile("edgellm", deadline=None, derandomize=True)
settings.load_profile("edgellm")

"""Keys of what edgellm itself writes into a model's GGUF header."""

from __future__ import annotations

MIX_KEY = "edgellm.mix"
MANIFEST_KEY = "edgellm.manifest.sha256"
PARENT_KEY = "edgellm.parent.sha256."

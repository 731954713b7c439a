"""Models from the Hugging Face hub: named, planned from headers, downloaded, checked, kept.

The only room that imports huggingface_hub, and only when a model of the hub is asked for. Safetensors and GGUF only:
a repository that has nothing but pickles is refused, with no flag to allow them.
"""

from edgellm.hub.names import ModelId, looks_like_id, parse_id
from edgellm.hub.snapshot import Snapshot, finish, plan, pull
from edgellm.hub.store import Kept, kept, matching, remove

__all__ = [
    "Kept", "ModelId", "Snapshot", "finish", "kept", "looks_like_id", "matching", "parse_id", "plan", "pull", "remove",
]  # fmt: skip

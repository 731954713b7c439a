"""LoRA adapters of PEFT: merged into a model while it is converted, or written as an adapter for llama.cpp."""

from edgellm.convert.lora.adapter import Adapter, read_adapter
from edgellm.convert.lora.gguf_file import write_adapter
from edgellm.convert.lora.merge import merge, say_merged

__all__ = ["Adapter", "merge", "read_adapter", "say_merged", "write_adapter"]

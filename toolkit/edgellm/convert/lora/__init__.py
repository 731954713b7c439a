"""LoRA adapters of PEFT: merged into a model while it is converted, or written as an adapter for llama.cpp."""

from edgellm.convert.lora.adapter import WEIGHTS_NAME, Adapter, read_adapter
from edgellm.convert.lora.gguf_file import write_adapter
from edgellm.convert.lora.merge import merge, merged_name, say_merged

__all__ = ["WEIGHTS_NAME", "Adapter", "merge", "merged_name", "read_adapter", "say_merged", "write_adapter"]

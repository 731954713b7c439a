"""Mistral: Llama with a window in every layer."""

from __future__ import annotations

import dataclasses

from edgellm.convert.architectures import llama

FAMILY = dataclasses.replace(
    llama.FAMILY,
    classes=("MistralForCausalLM",),
    defaults={"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
    optional=(),
    per_layer=llama.NORMS | llama.without_biases(llama.ATTENTION | llama.MLP),
)

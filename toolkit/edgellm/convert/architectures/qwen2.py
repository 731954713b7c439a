"""Qwen 2 and 2.5: Llama with biases in the attention, and a rotary order that needs no change."""

from __future__ import annotations

from edgellm.convert.architectures import llama
from edgellm.convert.architectures.family import Family
from edgellm.convert.architectures.hyper import Hyper, check_square, read_hyper
from edgellm.convert.architectures.rope import WITHOUT_FACTORS
from edgellm.convert.architectures.windows import switched_window
from edgellm.formats.plain_json import Fields

DEFAULTS = {"num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096}
BIASES = ("attn_q.bias", "attn_k.bias", "attn_v.bias")
ATTENTION = {hf: gguf for hf, gguf in llama.ATTENTION.items() if gguf.endswith(".weight") or gguf in BIASES}


def windowed(fields: Fields) -> Hyper:
    """Hyper-parameters with a window in the upper layers, where that is switched on."""
    return switched_window(fields, read_hyper(fields), "max_window_layers")


def check(fields: Fields, hyper: Hyper) -> list[str]:
    """What llama.cpp's graph without rope factors and with square attention computes."""
    check_square(fields, hyper)
    return llama.check_decoder(fields, hyper, WITHOUT_FACTORS)


FAMILY = Family(
    architecture="qwen2",
    classes=("Qwen2ForCausalLM",),
    hyper=windowed,
    defaults={**DEFAULTS, "max_window_layers": 28},
    outside=llama.OUTSIDE,
    per_layer=llama.NORMS | ATTENTION | llama.without_biases(llama.MLP),
    header=llama.rms_header,
    ignored=llama.IGNORED,
    check=check,
)

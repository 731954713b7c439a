"""Qwen 3: norms on every query and key head, no biases."""

from __future__ import annotations

from edgellm.convert.architectures import llama, qwen2
from edgellm.convert.architectures.family import Family
from edgellm.convert.architectures.hyper import Hyper, refuse
from edgellm.convert.architectures.rope import WITHOUT_FACTORS
from edgellm.formats.plain_json import Fields

HEAD_NORMS = {
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
}
HEAD_NORM_SHAPES = dict.fromkeys(HEAD_NORMS.values(), ("head_size",))
ATTENTION = llama.without_biases(llama.ATTENTION) | HEAD_NORMS


def check(fields: Fields, hyper: Hyper) -> list[str]:
    """What llama.cpp's graph computes: no biases, no rope factors."""
    refuse(fields, {"attention_bias": False})
    return llama.check_decoder(fields, hyper, WITHOUT_FACTORS)


FAMILY = Family(
    architecture="qwen3",
    classes=("Qwen3ForCausalLM",),
    hyper=qwen2.windowed,
    defaults={**qwen2.DEFAULTS, "max_window_layers": 28, "head_dim": 128},
    outside=llama.OUTSIDE,
    per_layer=llama.NORMS | ATTENTION | llama.without_biases(llama.MLP),
    shapes=HEAD_NORM_SHAPES,
    header=llama.rms_header,
    ignored=llama.IGNORED,
    check=check,
)

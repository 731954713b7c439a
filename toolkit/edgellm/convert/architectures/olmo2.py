"""OLMo 2: norms behind attention and feed-forward, and over all queries and all keys."""

from __future__ import annotations

import dataclasses

from edgellm.convert.architectures import llama, qwen2
from edgellm.convert.architectures.family import Family
from edgellm.convert.architectures.hyper import Hyper, read_hyper, refuse
from edgellm.formats.plain_json import Fields

NORMS = {
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
}


def _hyper(fields: Fields) -> Hyper:
    return dataclasses.replace(
        read_hyper(fields), window=None
    )  # the class has none, whatever config.json says


def _check(fields: Fields, hyper: Hyper) -> list[str]:
    refuse(fields, {"attention_bias": False})
    return qwen2.check(fields, hyper)


FAMILY = Family(
    architecture="olmo2",
    classes=("Olmo2ForCausalLM",),
    hyper=_hyper,
    defaults={"rms_norm_eps": 1e-5},
    outside=llama.OUTSIDE,
    per_layer=NORMS | llama.without_biases(llama.ATTENTION | llama.MLP),
    shapes={"attn_q_norm.weight": ("q_size",), "attn_k_norm.weight": ("kv_size",)},
    header=llama.rms_header,
    ignored=llama.IGNORED,
    own_head=True,
    check=_check,
)

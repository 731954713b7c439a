"""Qwen 3 with experts; their weights are normalised."""

from __future__ import annotations

from edgellm.convert.architectures import llama, qwen2, qwen2_moe, qwen3
from edgellm.convert.architectures.family import Family
from edgellm.convert.architectures.hyper import Hyper
from edgellm.errors import UnsupportedError
from edgellm.formats.plain_json import Fields


def _check(fields: Fields, hyper: Hyper) -> list[str]:
    qwen2_moe.check_all_sparse(fields, hyper)
    if not fields.flag("norm_topk_prob", default=False):
        raise UnsupportedError(
            f"{fields.where}: norm_topk_prob is false; llama.cpp normalises the experts' weights"
        )
    return qwen3.check(fields, hyper)


FAMILY = Family(
    architecture="qwen3moe",
    classes=("Qwen3MoeForCausalLM",),
    hyper=qwen2_moe.experts,
    defaults={
        **qwen2.DEFAULTS,
        "num_key_value_heads": 4,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    },
    outside=llama.OUTSIDE,
    per_layer=llama.NORMS | qwen3.ATTENTION | qwen2_moe.ROUTER | qwen2_moe.EXPERTS,
    stacked=qwen2_moe.STACKED,
    shapes=qwen3.HEAD_NORM_SHAPES,
    header=qwen2_moe.header,
    ignored=llama.IGNORED,
    check=_check,
)

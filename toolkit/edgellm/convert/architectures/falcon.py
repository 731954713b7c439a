"""Falcon 7B, 40B, 180B and Falcon 2: fused QKV in groups, parallel residual, one or two norms before it."""

from __future__ import annotations

import dataclasses

from edgellm.convert.architectures.family import Family, Header
from edgellm.convert.architectures.hyper import Hyper, read_hyper, refuse
from edgellm.convert.architectures.layer_norm import (
    MLP,
    check_gelu,
    check_rotary,
    rotary_header,
    with_biases,
)
from edgellm.convert.architectures.transforms import GROUPED_QKV
from edgellm.convert.source import HeaderValue
from edgellm.formats.plain_json import Fields

NAMES: dict[str, str | tuple[str, ...]] = {
    "hidden_size": ("hidden_size", "n_embed"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer"),
    "num_attention_heads": ("num_attention_heads", "n_head"),
    "num_key_value_heads": ("num_kv_heads", "n_head_kv"),
    "intermediate_size": "ffn_hidden_size",
    "rms_norm_eps": "layer_norm_epsilon",
}


def _is_grouped(fields: Fields) -> bool:
    """Whether it is built as 40B is; its first repository says so only by having a number of key/value heads."""
    return fields.flag("new_decoder_architecture", default="n_head_kv" in fields)


def _hyper(fields: Fields) -> Hyper:
    hyper = read_hyper(fields, names=NAMES, tied=True, default_epsilon=1e-5, four_times=True)
    if _is_grouped(fields):
        return hyper
    # Built as 7B is: the number of key/value heads in the file means nothing.
    n_kv_heads = 1 if fields.flag("multi_query", default=True) else hyper.n_heads
    return dataclasses.replace(hyper, n_kv_heads=n_kv_heads)


def _absent(fields: Fields, _hyper: Hyper) -> tuple[str, ...]:
    n_norms = fields.integer("num_ln_in_parallel_attn", 1, 2, default=2)
    return () if _is_grouped(fields) and n_norms == 2 else ("attn_norm_2.weight", "attn_norm_2.bias")


def _header(fields: Fields, hyper: Hyper) -> Header:
    return rotary_header(fields, hyper) | {"tensor_data_layout": HeaderValue("STRING", "jploski")}


def _check(fields: Fields, hyper: Hyper) -> list[str]:
    flags = {
        "alibi": False,
        "bias": False,
        "parallel_attn": True,
        "apply_residual_connection_post_layernorm": False,
    }
    refuse(fields, flags)
    return check_rotary(fields, hyper, partial=False) + check_gelu(fields, "activation", "gelu")


FAMILY = Family(
    architecture="falcon",
    classes=("FalconForCausalLM", "RWForCausalLM"),
    hyper=_hyper,
    outside={
        "word_embeddings.weight": "token_embd.weight",
        **with_biases({"ln_f": "output_norm"}),
        "lm_head.weight": "output.weight",
    },
    per_layer={
        "self_attention.query_key_value.weight": "attn_qkv.weight",
        "self_attention.dense.weight": "attn_output.weight",
        **{f"{hf}.weight": f"{gguf}.weight" for hf, gguf in MLP.items()},
        **with_biases({"input_layernorm": "attn_norm", "ln_mlp": "attn_norm", "ln_attn": "attn_norm_2"}),
    },
    header=_header,
    transforms={"attn_qkv.weight": GROUPED_QKV},
    absent=_absent,
    ignored=("rotary_emb.inv_freq", "rotary.inv_freq"),
    layer_prefix="h.",
    strip=("transformer.",),
    check=_check,
)

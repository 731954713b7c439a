"""GPT-NeoX: Pythia, Dolly 2.0, the first OpenAssistant models; QKV fused head by head."""

from __future__ import annotations

from edgellm.convert.architectures.family import Family, Header
from edgellm.convert.architectures.hyper import Hyper, read_hyper, refuse
from edgellm.convert.architectures.layer_norm import (
    MLP,
    check_gelu,
    check_rotary,
    parallel_header,
    with_biases,
)
from edgellm.convert.architectures.transforms import GROUPED_QKV
from edgellm.formats.plain_json import Fields

NAMES: dict[str, str | tuple[str, ...]] = {
    "rms_norm_eps": "layer_norm_eps",
    "partial_rotary_factor": ("rotary_pct", "partial_rotary_factor"),
    "rope_theta": ("rotary_emb_base", "rope_theta"),
}


def _hyper(fields: Fields) -> Hyper:
    return read_hyper(fields, names=NAMES, default_epsilon=1e-5, default_rotary_share=0.25)


def _header(fields: Fields, hyper: Hyper) -> Header:
    return parallel_header(fields, hyper, default=True)


def _check(fields: Fields, hyper: Hyper) -> list[str]:
    refuse(fields, {"attention_bias": True})
    return check_rotary(fields, hyper, partial=True) + check_gelu(fields, "hidden_act", "gelu")


FAMILY = Family(
    architecture="gptneox",
    classes=("GPTNeoXForCausalLM",),
    hyper=_hyper,
    outside={
        "embed_in.weight": "token_embd.weight",
        **with_biases({"final_layer_norm": "output_norm"}),
        "embed_out.weight": "output.weight",
    },
    per_layer=with_biases(
        {
            "attention.query_key_value": "attn_qkv",
            "attention.dense": "attn_output",
            "input_layernorm": "attn_norm",
            "post_attention_layernorm": "ffn_norm",
            **MLP,
        }
    ),
    header=_header,
    transforms={"attn_qkv.weight": GROUPED_QKV},
    own_head=True,
    ignored=(".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"),
    layer_prefix="layers.",
    strip=("gpt_neox.",),
    check=_check,
)

"""The llama family: Llama 1 to 3, SmolLM2, Mistral, Alpaca, Vicuna and their many children."""

from __future__ import annotations

from edgellm.convert.architectures.family import Family, Header
from edgellm.convert.architectures.hyper import Hyper, check_activation, read_hyper
from edgellm.convert.architectures.rope import rope_header, rope_tensors
from edgellm.convert.architectures.transforms import ROTARY_KEY, ROTARY_QUERY
from edgellm.convert.source import HeaderValue
from edgellm.formats.plain_json import Fields

OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
NORMS = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
}
ATTENTION = {
    f"self_attn.{hf}.{kind}": f"{gguf}.{kind}"
    for kind in ("weight", "bias")
    for hf, gguf in (
        ("q_proj", "attn_q"),
        ("k_proj", "attn_k"),
        ("v_proj", "attn_v"),
        ("o_proj", "attn_output"),
    )
}
MLP = {
    f"mlp.{hf}.{kind}": f"{gguf}.{kind}"
    for kind in ("weight", "bias")
    for hf, gguf in (("gate_proj", "ffn_gate"), ("up_proj", "ffn_up"), ("down_proj", "ffn_down"))
}
BIASES = tuple(kind for kind in (*ATTENTION.values(), *MLP.values()) if kind.endswith(".bias"))
ROTARY = {"attn_q.weight": ROTARY_QUERY, "attn_k.weight": ROTARY_KEY}
IGNORED = ("rotary_emb.inv_freq",)


def silu_only(fields: Fields, _hyper: Hyper) -> list[str]:
    """llama.cpp computes SiLU in the feed-forward layers."""
    return check_activation(fields, "hidden_act", "silu", same=("silu", "swish"))


def rms_header(fields: Fields, hyper: Hyper) -> Header:
    """Rope, head sizes and the epsilon of RMS norms: what the header of most families needs."""
    return {
        **rope_header(fields, hyper),
        "attention.key_length": HeaderValue("UINT32", hyper.head_size),
        "attention.value_length": HeaderValue("UINT32", hyper.head_size),
        "attention.layer_norm_rms_epsilon": HeaderValue("FLOAT32", hyper.norm_epsilon),
    }


FAMILY = Family(
    architecture="llama",
    classes=("LlamaForCausalLM", "MistralForCausalLM", "LLaMAForCausalLM"),
    hyper=read_hyper,
    outside=OUTSIDE,
    per_layer=NORMS | ATTENTION | MLP,
    header=rms_header,
    transforms=ROTARY,
    computed=rope_tensors,
    optional=BIASES,
    ignored=IGNORED,
    check=silu_only,
)

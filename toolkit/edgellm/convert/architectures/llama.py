"""The llama family: Llama 1 to 3, SmolLM2, Alpaca, Vicuna and their many children."""

from __future__ import annotations

from edgellm.convert.architectures.family import Family, Header
from edgellm.convert.architectures.hyper import Hyper, check_activation, read_hyper
from edgellm.convert.architectures.rope import KINDS, check_rope, rope_header, rope_tensors
from edgellm.convert.architectures.transforms import ROTARY_KEY, ROTARY_QUERY
from edgellm.convert.source import HeaderValue
from edgellm.errors import UnsupportedError
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


def without_biases(table: dict[str, str]) -> dict[str, str]:
    """The weights alone of a table of names."""
    return {hf: gguf for hf, gguf in table.items() if not gguf.endswith(".bias")}


def unannounced_biases(fields: Fields, _hyper: Hyper) -> tuple[str, ...]:
    """The biases that the class makes none of: `attention_bias` and `mlp_bias` say which it does."""
    kept = [
        table
        for key, table in (("attention_bias", ATTENTION), ("mlp_bias", MLP))
        if fields.flag(key, default=False)
    ]
    return tuple(bias for bias in BIASES if not any(bias in table.values() for table in kept))


def check_rotation(fields: Fields, hyper: Hyper, kinds: tuple[str, ...] = KINDS) -> list[str]:
    """Notes on the rope.

    Raises:
        UnsupportedError: heads rotate in part, or the rope is scaled in none of these kinds.
    """
    if hyper.rotary_size != hyper.head_size:
        raise UnsupportedError(
            f"{fields.where}: {hyper.rotary_size} of {hyper.head_size} columns of a head rotate; llama.cpp rotates whole "
            "heads in this family"
        )
    return check_rope(fields, hyper, kinds)


def check_decoder(fields: Fields, hyper: Hyper, kinds: tuple[str, ...] = KINDS) -> list[str]:
    """Notes on activation and rope.

    Raises:
        UnsupportedError: another activation than SiLU, or a rope that `check_rotation` refuses.
    """
    return silu_only(fields, hyper) + check_rotation(fields, hyper, kinds)


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
    classes=("LlamaForCausalLM", "LLaMAForCausalLM"),
    hyper=read_hyper,
    outside=OUTSIDE,
    per_layer=NORMS | ATTENTION | MLP,
    header=rms_header,
    transforms=ROTARY,
    computed=rope_tensors,
    optional=BIASES,
    absent=unannounced_biases,
    ignored=IGNORED,
    check=check_decoder,
)

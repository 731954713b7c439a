"""Bloom: ALiBi instead of rope, a norm after the embedding, QKV fused head by head."""

from __future__ import annotations

from edgellm.convert.architectures.family import Family
from edgellm.convert.architectures.hyper import Hyper, check_square, read_hyper, refuse
from edgellm.convert.architectures.layer_norm import MLP, norm_header, with_biases
from edgellm.convert.architectures.transforms import GROUPED_QKV
from edgellm.formats.plain_json import Fields

NAMES: dict[str, str | tuple[str, ...]] = {
    "hidden_size": ("n_embed", "hidden_size"),
    "num_hidden_layers": ("n_layer", "num_hidden_layers"),
    "num_attention_heads": ("n_head", "num_attention_heads"),
    "max_position_embeddings": "seq_length",
    "rms_norm_eps": "layer_norm_epsilon",
}


def _hyper(fields: Fields) -> Hyper:
    return read_hyper(fields, names=NAMES, tied=True, default_epsilon=1e-5, four_times=True)


def _check(fields: Fields, hyper: Hyper) -> list[str]:
    check_square(fields, hyper)
    refuse(fields, {"apply_residual_connection_post_layernorm": False})
    return []


FAMILY = Family(
    architecture="bloom",
    classes=("BloomForCausalLM", "BloomModel"),
    hyper=_hyper,
    outside={
        "word_embeddings.weight": "token_embd.weight",
        **with_biases({"word_embeddings_layernorm": "token_embd_norm", "ln_f": "output_norm"}),
        "lm_head.weight": "output.weight",
    },
    per_layer=with_biases(
        {
            "self_attention.query_key_value": "attn_qkv",
            "self_attention.dense": "attn_output",
            "input_layernorm": "attn_norm",
            "post_attention_layernorm": "ffn_norm",
            **MLP,
        }
    ),
    header=norm_header,
    transforms={"attn_qkv.weight": GROUPED_QKV},
    layer_prefix="h.",
    strip=("transformer.",),
    check=_check,
)

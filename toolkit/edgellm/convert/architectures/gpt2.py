"""GPT-2 and Cerebras-GPT: learned positions, fused QKV, matrices stored transposed."""

from __future__ import annotations

from edgellm.convert.architectures.family import Family
from edgellm.convert.architectures.hyper import Hyper, check_square, read_hyper, refuse
from edgellm.convert.architectures.layer_norm import check_gelu, norm_header, with_biases
from edgellm.convert.architectures.transforms import TRANSPOSED
from edgellm.formats.plain_json import Fields

NAMES: dict[str, str | tuple[str, ...]] = {
    "hidden_size": ("n_embd", "hidden_size"),
    "num_hidden_layers": ("n_layer", "num_hidden_layers"),
    "num_attention_heads": ("n_head", "num_attention_heads"),
    "max_position_embeddings": ("n_positions", "n_ctx", "max_position_embeddings"),
    "intermediate_size": "n_inner",
    "rms_norm_eps": "layer_norm_epsilon",
}
MATRICES = {
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
NORMS = {"ln_1": "attn_norm", "ln_2": "ffn_norm"}


def _hyper(fields: Fields) -> Hyper:
    return read_hyper(
        fields, names=NAMES, tied=True, default_context=1024, default_epsilon=1e-5, four_times=True
    )


def _check(fields: Fields, hyper: Hyper) -> list[str]:
    check_square(fields, hyper)
    flags = {
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    }
    refuse(fields, flags)
    return check_gelu(fields, "activation_function", "gelu_new")


FAMILY = Family(
    architecture="gpt2",
    classes=("GPT2LMHeadModel",),
    hyper=_hyper,
    outside={
        "wte.weight": "token_embd.weight",
        "wpe.weight": "position_embd.weight",
        **with_biases({"ln_f": "output_norm"}),
        "lm_head.weight": "output.weight",
    },
    per_layer=with_biases(MATRICES | NORMS),
    header=norm_header,
    transforms={f"{gguf}.weight": TRANSPOSED for gguf in MATRICES.values()},
    shapes={"position_embd.weight": ("context_train", "embedding_size")},
    ignored=(".attn.bias", ".attn.masked_bias"),
    layer_prefix="h.",
    strip=("transformer.",),
    check=_check,
)

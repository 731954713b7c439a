"""StarCoder2: biases and layer norms everywhere, grouped queries, a sliding window that llama.cpp does not run."""

from __future__ import annotations

from edgellm.convert.architectures import llama
from edgellm.convert.architectures.family import Family
from edgellm.convert.architectures.hyper import Hyper, read_hyper, refuse
from edgellm.convert.architectures.layer_norm import check_gelu, check_rotary, rotary_header, with_biases
from edgellm.formats.plain_json import Fields


def _hyper(fields: Fields) -> Hyper:
    names = {"rms_norm_eps": "norm_epsilon"}
    return read_hyper(fields, names=names, tied=True, default_epsilon=1e-5, default_context=4096)


def _check(fields: Fields, hyper: Hyper) -> list[str]:
    refuse(fields, {"use_bias": True})
    return check_rotary(fields, hyper, partial=False) + check_gelu(fields, "hidden_act", "gelu_pytorch_tanh")


FAMILY = Family(
    architecture="starcoder2",
    classes=("Starcoder2ForCausalLM",),
    hyper=_hyper,
    outside={**llama.OUTSIDE, "model.norm.bias": "output_norm.bias"},
    per_layer={
        **llama.ATTENTION,
        **with_biases(
            {
                "input_layernorm": "attn_norm",
                "post_attention_layernorm": "ffn_norm",
                "mlp.c_fc": "ffn_up",
                "mlp.c_proj": "ffn_down",
            }
        ),
    },
    header=rotary_header,
    defaults={"num_key_value_heads": 2},
    ignored=llama.IGNORED,
    check=_check,
)

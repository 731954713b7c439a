"""Phi 1, 1.5 and 2: one norm before attention and feed-forward layer alike, partial rope, a biased head."""

from __future__ import annotations

from edgellm.convert.architectures import llama
from edgellm.convert.architectures.family import Family
from edgellm.convert.architectures.hyper import Hyper, read_hyper, refuse
from edgellm.convert.architectures.layer_norm import check_gelu, check_rotary, rotary_header, with_biases
from edgellm.formats.plain_json import Fields


def _hyper(fields: Fields) -> Hyper:
    names = {"rms_norm_eps": "layer_norm_eps"}
    return read_hyper(fields, names=names, default_epsilon=1e-5, default_rotary_share=0.5)


def _check(fields: Fields, hyper: Hyper) -> list[str]:
    refuse(fields, {"qk_layernorm": False})
    return check_rotary(fields, hyper, partial=True) + check_gelu(fields, "hidden_act", "gelu_new")


FAMILY = Family(
    architecture="phi2",
    classes=("PhiForCausalLM",),
    hyper=_hyper,
    outside={
        "model.embed_tokens.weight": "token_embd.weight",
        **with_biases({"model.final_layernorm": "output_norm", "lm_head": "output"}),
    },
    per_layer=with_biases(
        {
            "self_attn.q_proj": "attn_q",
            "self_attn.k_proj": "attn_k",
            "self_attn.v_proj": "attn_v",
            "self_attn.dense": "attn_output",
            "mlp.fc1": "ffn_up",
            "mlp.fc2": "ffn_down",
            "input_layernorm": "attn_norm",
        }
    ),
    header=rotary_header,
    own_head=True,
    ignored=llama.IGNORED,
    check=_check,
)

"""StableLM 2, StableLM 3B, Stable Code: partial rope, layer norms; norms of its own for each head in the largest."""

from __future__ import annotations

from edgellm.convert.architectures import llama
from edgellm.convert.architectures.family import Family, Header
from edgellm.convert.architectures.hyper import Hyper, read_hyper
from edgellm.convert.architectures.layer_norm import check_rotary, parallel_header, with_biases
from edgellm.formats.plain_json import Fields

NAMES: dict[str, str | tuple[str, ...]] = {
    "rms_norm_eps": ("layer_norm_eps", "norm_eps"),
    "partial_rotary_factor": ("partial_rotary_factor", "rope_pct"),
}


def _hyper(fields: Fields) -> Hyper:
    return read_hyper(
        fields, names=NAMES, default_epsilon=1e-5, default_context=4096, default_rotary_share=0.25
    )


def _absent(fields: Fields, _hyper: Hyper) -> tuple[str, ...]:
    absent: tuple[str, ...] = ()
    if not fields.flag("use_qkv_bias", default=False):
        absent += ("attn_q.bias", "attn_k.bias", "attn_v.bias")
    if not fields.flag("qk_layernorm", default=False):
        absent += ("attn_q_norm.weight", "attn_k_norm.weight")
    if fields.flag("use_parallel_residual", default=False):
        absent += ("ffn_norm.weight", "ffn_norm.bias")
    return absent


def _header(fields: Fields, hyper: Hyper) -> Header:
    return parallel_header(fields, hyper, default=False)


def _check(fields: Fields, hyper: Hyper) -> list[str]:
    return check_rotary(fields, hyper, partial=True) + llama.silu_only(fields, hyper)


FAMILY = Family(
    architecture="stablelm",
    classes=("StableLmForCausalLM", "StableLMEpochForCausalLM"),
    hyper=_hyper,
    outside={**llama.OUTSIDE, "model.norm.bias": "output_norm.bias"},
    per_layer={
        **{hf: gguf for hf, gguf in llama.ATTENTION.items() if gguf != "attn_output.bias"},
        **{hf: gguf for hf, gguf in llama.MLP.items() if gguf.endswith(".weight")},
        **with_biases({"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}),
        "self_attn.q_layernorm.norms.{j}.weight": "attn_q_norm.weight",
        "self_attn.k_layernorm.norms.{j}.weight": "attn_k_norm.weight",
    },
    header=_header,
    shapes={
        "attn_q_norm.weight": ("n_heads", "head_size"),
        "attn_k_norm.weight": ("n_kv_heads", "head_size"),
    },
    stacked={"attn_q_norm.weight": "n_heads", "attn_k_norm.weight": "n_kv_heads"},
    absent=_absent,
    own_head=True,
    ignored=llama.IGNORED,
    check=_check,
)

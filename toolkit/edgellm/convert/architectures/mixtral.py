"""Mixtral: Mistral with experts in the place of the feed-forward layers."""

from __future__ import annotations

from edgellm.convert.architectures import llama
from edgellm.convert.architectures.family import Family
from edgellm.convert.architectures.hyper import Hyper, read_hyper, with_experts
from edgellm.convert.architectures.rope import rope_tensors
from edgellm.formats.plain_json import Fields

EXPERTS = {
    "block_sparse_moe.experts.{j}.w1.weight": "ffn_gate_exps.weight",
    "block_sparse_moe.experts.{j}.w2.weight": "ffn_down_exps.weight",
    "block_sparse_moe.experts.{j}.w3.weight": "ffn_up_exps.weight",
}


def _hyper(fields: Fields) -> Hyper:
    hyper = read_hyper(fields)
    return with_experts(
        fields, hyper, count="num_local_experts", used="num_experts_per_tok", width="intermediate_size"
    )


FAMILY = Family(
    architecture="llama",
    classes=("MixtralForCausalLM",),
    hyper=_hyper,
    defaults={
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    outside=llama.OUTSIDE,
    per_layer=llama.NORMS
    | llama.without_biases(llama.ATTENTION)
    | {"block_sparse_moe.gate.weight": "ffn_gate_inp.weight"}
    | EXPERTS,
    stacked=dict.fromkeys(EXPERTS.values(), "n_experts"),
    header=llama.rms_header,
    transforms=llama.ROTARY,
    computed=rope_tensors,
    ignored=llama.IGNORED,
    check=llama.check_decoder,
)

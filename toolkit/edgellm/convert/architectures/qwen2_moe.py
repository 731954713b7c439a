"""Qwen 1.5 and 2 with experts, of which one, behind a gate, sees every token."""

from __future__ import annotations

import dataclasses

from edgellm.convert.architectures import llama, qwen2
from edgellm.convert.architectures.family import Family, Header
from edgellm.convert.architectures.hyper import MAX_WIDTH, Hyper, read_hyper, refuse, with_experts
from edgellm.convert.architectures.windows import switched_window
from edgellm.convert.source import HeaderValue
from edgellm.errors import UnsupportedError
from edgellm.formats.plain_json import Fields

EXPERTS = {
    "mlp.experts.{j}.gate_proj.weight": "ffn_gate_exps.weight",
    "mlp.experts.{j}.up_proj.weight": "ffn_up_exps.weight",
    "mlp.experts.{j}.down_proj.weight": "ffn_down_exps.weight",
}
STACKED = dict.fromkeys(EXPERTS.values(), "n_experts")
ROUTER = {"mlp.gate.weight": "ffn_gate_inp.weight"}
SHARED = {
    "mlp.shared_expert_gate.weight": "ffn_gate_inp_shexp.weight",
    "mlp.shared_expert.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_expert.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_expert.down_proj.weight": "ffn_down_shexp.weight",
}
SHARED_SHAPES: dict[str, tuple[str | int, ...]] = {
    "ffn_gate_inp_shexp.weight": (1, "embedding_size"),
    "ffn_gate_shexp.weight": ("shared_feed_forward_size", "embedding_size"),
    "ffn_up_shexp.weight": ("shared_feed_forward_size", "embedding_size"),
    "ffn_down_shexp.weight": ("embedding_size", "shared_feed_forward_size"),
}


def experts(fields: Fields) -> Hyper:
    """Hyper-parameters with experts; the window counts for every layer."""
    hyper = switched_window(fields, read_hyper(fields))
    return with_experts(
        fields, hyper, count="num_experts", used="num_experts_per_tok", width="moe_intermediate_size"
    )


def _hyper(fields: Fields) -> Hyper:
    width = fields.integer("shared_expert_intermediate_size", 1, MAX_WIDTH)
    return dataclasses.replace(experts(fields), shared_feed_forward_size=width)


def header(fields: Fields, hyper: Hyper) -> Header:
    """The keys of a decoder with RMS norms, and the width of an expert."""
    width = HeaderValue("UINT32", hyper.expert_feed_forward_size)
    return llama.rms_header(fields, hyper) | {"expert_feed_forward_length": width}


def _header(fields: Fields, hyper: Hyper) -> Header:
    width = HeaderValue("UINT32", hyper.shared_feed_forward_size)
    return header(fields, hyper) | {"expert_shared_feed_forward_length": width}


def check_all_sparse(fields: Fields, hyper: Hyper) -> None:
    """llama.cpp's graph has experts in every layer.

    Raises:
        UnsupportedError: some layers are dense.
    """
    dense = fields.integers("mlp_only_layers", 0, 1 << 20, 1 << 12, default=[])
    step = fields.integer("decoder_sparse_step", 1, 1 << 20, default=1)
    if any(layer < hyper.n_layers for layer in dense) or step != 1:
        key, value = ("decoder_sparse_step", step) if step != 1 else ("mlp_only_layers", dense)
        raise UnsupportedError(
            f"{fields.where}: {key} is {value}; llama.cpp runs this family with experts in every layer"
        )


def _check(fields: Fields, hyper: Hyper) -> list[str]:
    check_all_sparse(fields, hyper)
    refuse(fields, {"norm_topk_prob": False})
    return qwen2.check(fields, hyper)


def _absent(fields: Fields, _hyper: Hyper) -> tuple[str, ...]:
    return () if fields.flag("qkv_bias", default=True) else qwen2.BIASES


FAMILY = Family(
    architecture="qwen2moe",
    classes=("Qwen2MoeForCausalLM",),
    hyper=_hyper,
    defaults={
        **qwen2.DEFAULTS,
        "num_key_value_heads": 16,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
    },
    outside=llama.OUTSIDE,
    per_layer=llama.NORMS | qwen2.ATTENTION | ROUTER | EXPERTS | SHARED,
    stacked=STACKED,
    shapes=SHARED_SHAPES,
    header=_header,
    ignored=llama.IGNORED,
    absent=_absent,
    own_head=True,
    check=_check,
)

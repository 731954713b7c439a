"""What Qwen's families refuse, and which of their windows count."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.families.llama import LLAMA3, SMALL
from tests.support.families.plans import answer, notes

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
BASES: dict[str, dict[str, Any]] = {
    "qwen2": {**SMALL, "architectures": ["Qwen2ForCausalLM"]},
    "qwen2_moe": {
        **SMALL, **EXPERTS, "architectures": ["Qwen2MoeForCausalLM"], "shared_expert_intermediate_size": 80,
    },
    "qwen3": {**SMALL, "architectures": ["Qwen3ForCausalLM"], "head_dim": 32},
    "qwen3_moe": {**SMALL, **EXPERTS, "architectures": ["Qwen3MoeForCausalLM"], "norm_topk_prob": True},
}  # fmt: skip
UNSUPPORTED: list[tuple[str, dict[str, Any], str]] = [
    ("qwen2", {"head_dim": 32}, "4 heads of 32 with an embedding of 64"),
    ("qwen2", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ("qwen2", {"partial_rotary_factor": 0.5}, "8 of 16 columns of a head rotate"),
    ("qwen2", {"rope_scaling": LLAMA3}, "rope scaling 'llama3'"),
    ("qwen2", {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}, "rope scaling 'mrope'"),
    ("qwen2", {"rope_parameters": {"full_attention": {}}}, "a rope for each kind of layer"),
    ("qwen2", {"layer_types": ["full_attention", "linear_attention"]}, "'linear_attention'"),
    ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 4.0, "truncate": False}}, "truncate is false"),
    ("qwen2_moe", {"norm_topk_prob": True}, "norm_topk_prob is true"),
    ("qwen2_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step is 2"),
    ("qwen2_moe", {"mlp_only_layers": [1]}, "mlp_only_layers is [1]"),
    ("qwen2_moe", {"head_dim": 32}, "4 heads of 32"),
    ("qwen3", {"attention_bias": True}, "attention_bias is true"),
    ("qwen3", {"rope_scaling": LLAMA3}, "rope scaling 'llama3'"),
    ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob is false"),
    ("qwen3_moe", {"norm_topk_prob": None}, "norm_topk_prob is false"),
    ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp_only_layers is [0]"),
    ("qwen3_moe", {"attention_bias": True}, "attention_bias is true"),
]
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("qwen2", {"use_sliding_window": "no"}, "use_sliding_window"),
    ("qwen2", {"use_sliding_window": True, "max_window_layers": -1}, "max_window_layers"),
    ("qwen2", {"layer_types": ["full_attention"]}, "a list of 2 names"),
    ("qwen2", {"layer_types": "full_attention"}, "a list of 2 names"),
    (
        "qwen2",
        {"layer_types": ["sliding_attention"] * 2, "sliding_window": None},
        "2 layers slide, but sliding_window is null",
    ),
    ("qwen2_moe", {"num_experts": 10**9}, "num_experts"),
    ("qwen2_moe", {"num_experts_per_tok": 5}, "num_experts_per_tok"),
    ("qwen2_moe", {"moe_intermediate_size": -48}, "moe_intermediate_size"),
    ("qwen2_moe", {"shared_expert_intermediate_size": "80"}, "shared_expert_intermediate_size"),
    ("qwen2_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step"),
    ("qwen2_moe", {"mlp_only_layers": [-1]}, "mlp_only_layers"),
    ("qwen2_moe", {"qkv_bias": 1}, "qkv_bias"),
    ("qwen3_moe", {"num_hidden_layers": 512, "num_experts": 1024}, "512 layers of 1024 experts"),
]


@pytest.mark.parametrize("name", BASES)
def test_the_configurations_below_are_accepted_as_they_are(name: str) -> None:
    assert answer(BASES[name]) == "accepted"
    assert notes(BASES[name]) == []


@pytest.mark.parametrize(("name", "change", "words"), UNSUPPORTED)
def test_what_the_graph_does_not_compute_is_refused(name: str, change: dict[str, Any], words: str) -> None:
    said = answer({**BASES[name], **change})
    assert said.startswith("unsupported:")
    assert words in said


@pytest.mark.parametrize(("name", "change", "words"), BAD)
def test_numbers_out_of_bounds_are_named(name: str, change: dict[str, Any], words: str) -> None:
    said = answer({**BASES[name], **change})
    assert said.startswith("bad:")
    assert words in said


def test_layers_beyond_the_model_may_be_dense() -> None:
    assert answer({**BASES["qwen2_moe"], "mlp_only_layers": [2, 40]}) == "accepted"


def test_the_user_is_told_that_dynamic_scaling_ends_with_the_context() -> None:
    config = {**BASES["qwen3"], "rope_scaling": {"type": "dynamic", "factor": 4.0}}
    assert notes(config) == [
        "llama.cpp has no dynamic rope scaling: the context ends after 256 tokens, where it would begin"
    ]

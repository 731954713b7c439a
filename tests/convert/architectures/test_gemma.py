"""What Gemma's families refuse, and what the larger sizes mean by their scale."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.families.llama import LLAMA3, SMALL, YARN
from tests.support.families.plans import answer, header, notes

GEMMA = {**SMALL, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 48}
BASES: dict[str, dict[str, Any]] = {
    "gemma2": {**GEMMA, "architectures": ["Gemma2ForCausalLM"]},
    "gemma3": {**GEMMA, "architectures": ["Gemma3ForCausalLM"]},
}
SCALED = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
UNSUPPORTED: list[tuple[str, dict[str, Any], str]] = [
    ("gemma2", {"tie_word_embeddings": False}, "tie_word_embeddings is false"),
    ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping is null"),
    ("gemma2", {"final_logit_softcapping": None}, "final_logit_softcapping is null"),
    ("gemma2", {"attention_bias": True}, "attention_bias is true"),
    (
        "gemma2",
        {"query_pre_attn_scalar": 64},
        "query_pre_attn_scalar is 64; llama.cpp runs this shape of model with 32",
    ),
    ("gemma2", {"query_pre_attn_scalar": None}, "query_pre_attn_scalar is 256"),
    ("gemma2", {"num_hidden_layers": 46}, "with 16"),
    ("gemma2", {"hidden_activation": "relu"}, "hidden_activation is 'relu'"),
    ("gemma2", {"rope_scaling": LLAMA3}, "rope scaling 'llama3'"),
    ("gemma2", {"layer_types": ["chunked_attention"] * 2}, "'chunked_attention'"),
    ("gemma3", {"rope_scaling": YARN}, "rope scaling 'yarn'"),
    ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention is true"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50"),
    ("gemma3", {"attention_bias": True}, "attention_bias is true"),
    ("gemma3", {"num_hidden_layers": 62}, "with 16"),
    ("gemma3", {"partial_rotary_factor": 0.5}, "16 of 32 columns"),
    (
        "gemma3",
        {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": SCALED}},
        "rope_parameters.sliding_attention.rope_type is 'linear'",
    ),
]
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("gemma2", {"attn_logit_softcapping": 0}, "attn_logit_softcapping is 0"),
    ("gemma2", {"final_logit_softcapping": -30.0}, "final_logit_softcapping is -30.0"),
    ("gemma2", {"final_logit_softcapping": "30"}, "final_logit_softcapping is '30'"),
    ("gemma2", {"query_pre_attn_scalar": -1}, "query_pre_attn_scalar is -1"),
    ("gemma2", {"sliding_window": None}, "1 layers slide, but sliding_window is null"),
    ("gemma3", {"sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
    ("gemma3", {"sliding_window_pattern": [6]}, "sliding_window_pattern"),
    ("gemma3", {"rope_local_base_freq": 0}, "rope_local_base_freq is 0"),
    ("gemma3", {"rope_parameters": {"full_attention": 3}}, "rope_parameters.full_attention is 3"),
    ("gemma3", {"final_logit_softcapping": 0.0}, "final_logit_softcapping is 0.0"),
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


@pytest.mark.parametrize(("name", "n_layers"), [("gemma2", 46), ("gemma3", 62)])
def test_the_largest_size_scales_by_the_share_of_a_head(name: str, n_layers: int) -> None:
    change = {"num_hidden_layers": n_layers, "query_pre_attn_scalar": 16}
    assert answer({**BASES[name], **change}) == "accepted"


def test_the_user_is_told_of_the_exact_gelu() -> None:
    assert notes({**BASES["gemma2"], "hidden_activation": "gelu"}) == [
        "the model's activation is gelu, llama.cpp computes gelu_pytorch_tanh: results differ a little"
    ]


@pytest.mark.parametrize("text", [None, {}])
def test_a_model_that_sees_needs_no_more_of_its_text_model_than_its_class_implies(
    text: dict[str, Any] | None,
) -> None:
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    assert answer(config) == "accepted"
    assert notes(config) == ["only the text model is converted: it cannot see pictures"]


def test_the_text_model_is_checked_where_it_is_described() -> None:
    config = {
        **BASES["gemma3"],
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {**BASES["gemma3"], "attention_bias": True},
    }
    assert "attention_bias is true" in answer(config)
    assert "text_config is 'x', expected an object" in answer({**config, "text_config": "x"})


def test_no_cap_is_none_in_the_header() -> None:
    assert answer({**BASES["gemma3"], "final_logit_softcapping": None}) == "accepted"
    assert "final_logit_softcapping" not in header(BASES["gemma3"])

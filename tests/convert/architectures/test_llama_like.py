"""What SmolLM3, Granite, OLMo 2, Mistral and Mixtral refuse, and which of their tensors a configuration has."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.families.llama import LLAMA3, SMALL, YARN
from tests.support.families.plans import answer, header, notes

BASES: dict[str, dict[str, Any]] = {
    "smollm3": {**SMALL, "architectures": ["SmolLM3ForCausalLM"], "num_hidden_layers": 5},
    "granite": {**SMALL, "architectures": ["GraniteForCausalLM"]},
    "olmo2": {**SMALL, "architectures": ["Olmo2ForCausalLM"]},
    "mistral": {**SMALL, "architectures": ["MistralForCausalLM"], "sliding_window": None},
    "mixtral": {**SMALL, "architectures": ["MixtralForCausalLM"]},
}
UNSUPPORTED: list[tuple[str, dict[str, Any], str]] = [
    ("smollm3", {"no_rope_layers": [1, 1, 1, 1, 1]}, "no_rope_layers has ones for layers [0, 1, 2, 3, 4]"),
    ("smollm3", {"no_rope_layers": [1, 1, 1, 0]}, "no_rope_layers"),
    ("smollm3", {"no_rope_layer_interval": 3}, "all but each 4th"),
    ("smollm3", {"attention_bias": True}, "attention_bias is true"),
    ("smollm3", {"mlp_bias": True}, "mlp_bias is true"),
    ("smollm3", {"rope_scaling": LLAMA3}, "rope scaling 'llama3'"),
    ("granite", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ("granite", {"partial_rotary_factor": 0.5}, "8 of 16 columns"),
    ("olmo2", {"attention_bias": True}, "attention_bias is true"),
    ("olmo2", {"head_dim": 32}, "4 heads of 32"),
    ("olmo2", {"rope_scaling": LLAMA3}, "rope scaling 'llama3'"),
    ("mistral", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
    ("mixtral", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
]
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("smollm3", {"no_rope_layers": [1, 1, 1, 2, 1]}, "no_rope_layers is 2"),
    ("smollm3", {"no_rope_layers": [1] * 1000}, "no_rope_layers"),
    ("smollm3", {"no_rope_layers": "1110"}, "no_rope_layers"),
    ("smollm3", {"no_rope_layer_interval": 0}, "no_rope_layer_interval is 0"),
    ("mixtral", {"num_local_experts": 1025}, "num_local_experts is 1025"),
    ("mixtral", {"num_experts_per_tok": 9}, "num_experts_per_tok is 9"),
    ("mixtral", {"num_experts_per_tok": "2"}, "num_experts_per_tok"),
    ("mistral", {"sliding_window": -1}, "sliding_window is -1"),
    ("mistral", {"rope_scaling": {**YARN, "attention_factor": -1.0}}, "rope_scaling.attention_factor"),
    ("mistral", {"rope_scaling": {**YARN, "mscale": "1"}}, "rope_scaling.mscale"),
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


@pytest.mark.parametrize(
    "key", ["attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling"]
)
@pytest.mark.parametrize("value", [0, 0.0, -1.0, 1e30, "1"])
def test_a_multiplier_is_a_positive_number(key: str, value: object) -> None:
    said = answer({**BASES["granite"], key: value})
    assert said.startswith(f"bad: m/config.json: {key} is {value!r}, expected a number from")


def test_an_absent_multiplier_is_one_and_written() -> None:
    found = header({**BASES["granite"], "logits_scaling": 8.0})
    assert found["attention.scale"] == found["embedding_scale"] == found["residual_scale"] == 1.0
    assert found["logit_scale"] == 8.0


@pytest.mark.parametrize(
    ("scaling", "factor"),
    [
        ({"factor": 4.0}, None),
        ({"factor": 4.0, "attention_factor": 1.1386294361119891}, None),
        ({"factor": 4.0, "attention_factor": 2.2772588722239782}, 2.0),
        ({"factor": 4.0, "mscale": 1.0}, None),
        ({"factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0}, 1 / 1.1386294361119891),
        ({"factor": 0.5}, None),
    ],
)
def test_the_attention_factor_of_yarn_is_that_beyond_the_papers(
    scaling: dict[str, float], factor: float | None
) -> None:
    found = header({**BASES["mistral"], "rope_scaling": {"rope_type": "yarn", **scaling}})
    assert found.get("rope.scaling.attn_factor") == (None if factor is None else pytest.approx(factor))

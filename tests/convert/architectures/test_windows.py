"""Which windows count: switches, lists of layers, nulls, and what an absent key means."""

from __future__ import annotations

from typing import Any

import pytest

from edgellm.convert import architectures
from tests.support.families.llama import SMALL
from tests.support.families.plans import plan

SLIDING, FULL = "sliding_attention", "full_attention"
QWEN = {"sliding_window": 64, "use_sliding_window": True}
CASES: list[tuple[str, dict[str, Any], int | None]] = [
    ("MistralForCausalLM", {"sliding_window": 64}, 64),
    ("MistralForCausalLM", {"sliding_window": None}, None),
    ("MistralForCausalLM", {}, 4096),
    ("LlamaForCausalLM", {}, None),
    ("MixtralForCausalLM", {}, None),
    ("MixtralForCausalLM", {"sliding_window": 64}, 64),
    ("Qwen2ForCausalLM", {}, None),
    ("Qwen2ForCausalLM", {"sliding_window": 64, "use_sliding_window": False}, None),
    ("Qwen2ForCausalLM", {**QWEN}, None),
    ("Qwen2ForCausalLM", {**QWEN, "max_window_layers": 2}, None),
    ("Qwen2ForCausalLM", {**QWEN, "max_window_layers": 1}, 64),
    ("Qwen2ForCausalLM", {**QWEN, "max_window_layers": 0, "sliding_window": None}, None),
    ("Qwen2ForCausalLM", {**QWEN, "max_window_layers": 0, "layer_types": [FULL, FULL]}, None),
    ("Qwen2ForCausalLM", {**QWEN, "layer_types": [FULL, SLIDING]}, 64),
    ("Qwen2MoeForCausalLM", {**QWEN, "max_window_layers": 28}, 64),
    ("Qwen3MoeForCausalLM", {**QWEN}, 64),
    ("Qwen3MoeForCausalLM", {"sliding_window": 64}, None),
    ("SmolLM3ForCausalLM", {"sliding_window": 64}, None),
    ("SmolLM3ForCausalLM", {"sliding_window": 64, "layer_types": [FULL, SLIDING]}, 64),
    ("GraniteForCausalLM", {"sliding_window": 64}, None),
    ("Olmo2ForCausalLM", {"sliding_window": 64}, None),
    ("Gemma2ForCausalLM", {}, 4096),
    ("Gemma2ForCausalLM", {"layer_types": [FULL, FULL], "sliding_window": None}, None),
    ("Gemma3ForCausalLM", {"sliding_window": 64, "sliding_window_pattern": 1}, None),
    ("Gemma3ForCausalLM", {"sliding_window": 64, "sliding_window_pattern": 2}, 64),
]


@pytest.mark.parametrize(("name", "config", "window"), CASES)
def test_the_window_that_counts(name: str, config: dict[str, Any], window: int | None) -> None:
    family = architectures.FAMILIES[name]
    whole = {**SMALL, "architectures": [name], **config}
    assert family.hyper(family._fields(plan(whole))).window == window

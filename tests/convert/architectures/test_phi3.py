"""Phi 3 to 4: what is refused, and what the user is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgellm.errors import BadInputError, UnsupportedError
from tests.support import blank_models

LONGROPE = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
CONFIG: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"], "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 24, "max_position_embeddings": 512,
    "original_max_position_embeddings": 64, "rope_scaling": LONGROPE,
}  # fmt: skip
SHAPES = {
    "model.embed_tokens.weight": (32, 16), "model.norm.weight": (16,), "lm_head.weight": (32, 16),
    **{f"model.layers.0.{name}.weight": shape for name, shape in {
        "self_attn.qkv_proj": (32, 16), "self_attn.o_proj": (16, 16), "mlp.gate_up_proj": (48, 16),
        "mlp.down_proj": (16, 24), "input_layernorm": (16,), "post_attention_layernorm": (16,),
    }.items()},
}  # fmt: skip


def test_the_user_is_told_when_the_long_factors_are_used(tmp_path: Path) -> None:
    (note,) = blank_models.read(tmp_path / "m", CONFIG, SHAPES).notes
    assert "above 64 tokens" in note
    assert blank_models.read(tmp_path / "n", {**CONFIG, "rope_scaling": None}, SHAPES).notes == ()


def test_attention_is_scaled_for_the_whole_context_where_a_window_ends_it(tmp_path: Path) -> None:
    sliding = {**CONFIG, "sliding_window": 32}
    whole, capped = (
        blank_models.read(tmp_path / str(i), config, SHAPES) for i, config in enumerate((CONFIG, sliding))
    )
    assert (whole.shape.context_train, capped.shape.context_train) == (512, 32)
    key = "phi3.rope.scaling.attn_factor"
    assert capped.header[key].value == whole.header[key].value == pytest.approx((1 + 0.5) ** 0.5)
    assert [s.header["phi3.attention.sliding_window"].value for s in (whole, capped)] == [0, 32]


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"rope_scaling": {**LONGROPE, "type": "yarn"}}, UnsupportedError, "rope scaling 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3"}}, UnsupportedError, "rope scaling 'llama3'"),
        ({"hidden_act": "gelu"}, UnsupportedError, "hidden_act is 'gelu'"),
        ({"head_dim": 16}, UnsupportedError, "2 heads of 16 with an embedding of 16"),
        ({"rope_scaling": {**LONGROPE, "long_factor": [1.0] * 3}}, BadInputError, "long_factor"),
        ({"rope_scaling": {**LONGROPE, "short_factor": [1.0, 1.0, 1.0, "1"]}}, BadInputError, "short_factor"),
        ({"rope_scaling": {**LONGROPE, "short_factor": [-1.0] * 4}}, BadInputError, "short_factor"),
        ({"rope_scaling": {**LONGROPE, "attention_factor": 1e9}}, BadInputError, "attention_factor"),
        ({"original_max_position_embeddings": -1}, BadInputError, "original_max_position_embeddings is -1"),
        (
            {"original_max_position_embeddings": None},
            BadInputError,
            "original_max_position_embeddings is missing",
        ),
        ({"sliding_window": 0}, BadInputError, "sliding_window is 0"),
        ({"partial_rotary_factor": 2}, BadInputError, "partial_rotary_factor is 2"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_config_that_cannot_be_converted(
    tmp_path: Path, change: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind) as caught:
        blank_models.read(tmp_path / "m", {**CONFIG, **change}, SHAPES)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)

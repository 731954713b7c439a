"""Every tensor of a checkpoint is converted, refused or named; none is dropped in silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgellm.checkpoint import open_checkpoint
from edgellm.convert import pipeline
from edgellm.convert.source import Source
from edgellm.errors import BadInputError, UnsupportedError
from tests.support.tiny_llama import Array, write_tiny_llama

QUERY_BIAS = "model.layers.1.self_attn.q_proj.bias"
DOWN_BIAS = "model.layers.0.mlp.down_proj.bias"


def read(directory: Path, config: dict[str, object], **tensors: Array | None) -> Source:
    return pipeline.read_source(open_checkpoint(write_tiny_llama(directory, config, tensors=tensors)))


@pytest.mark.parametrize("bias", [QUERY_BIAS, DOWN_BIAS])
@pytest.mark.parametrize("announced", [None, False])
def test_a_bias_that_the_configuration_does_not_announce_is_refused(
    tmp_path: Path, bias: str, announced: bool | None
) -> None:
    """transformers would leave it out, llama.cpp would add it: one of the two is another model."""
    config = {"attention_bias": announced, "mlp_bias": announced}
    with pytest.raises(BadInputError, match=rf"tensor '{bias}' is there, and by config\.json") as caught:
        read(tmp_path, config, **{bias: np.ones(64, dtype=np.float32)})
    assert caught.value.exit_code == 65
    assert "attention_bias" in str(caught.value.hint)


@pytest.mark.parametrize(("key", "bias"), [("attention_bias", QUERY_BIAS), ("mlp_bias", DOWN_BIAS)])
def test_one_announcement_is_not_the_other(tmp_path: Path, key: str, bias: str) -> None:
    assert read(tmp_path / "both", {key: True}).notes == ()
    other = "mlp_bias" if key == "attention_bias" else "attention_bias"
    with pytest.raises(BadInputError, match=r"by config\.json"):
        read(tmp_path / "one", {key: False, other: True}, **{bias: np.ones(64, dtype=np.float32)})


def test_biases_that_are_announced_and_not_there_are_named(tmp_path: Path) -> None:
    """transformers makes them zero too: a model that was moved to this class from another has some and not others."""
    left_out = {f"model.layers.{i}.self_attn.o_proj.bias": None for i in range(2)}
    source = read(tmp_path, {"attention_bias": True}, **left_out)
    assert source.notes == ("2 biases that config.json announces are not there: they count as zero",)


def test_a_head_beside_a_tied_embedding_is_named(tmp_path: Path) -> None:
    source = read(
        tmp_path, {"tie_word_embeddings": True}, **{"lm_head.weight": np.ones((320, 64), np.float32)}
    )
    assert "output.weight" not in source.shape.tensors
    assert source.notes == ("lm_head.weight is not used: config.json ties the output head to the embedding",)


@pytest.mark.parametrize("layer", [2, 10, 999999])
def test_a_layer_more_than_the_configuration_has_is_refused(tmp_path: Path, layer: int) -> None:
    """As with multi-token prediction, or a configuration of another size."""
    name = f"model.layers.{layer}.mlp.up_proj.weight"
    with pytest.raises(
        BadInputError, match=f"'{name}' is of layer {layer}, config.json implies layers 0 to 1"
    ):
        read(tmp_path, {}, **{name: np.ones((96, 64), dtype=np.float32)})


@pytest.mark.parametrize("name", ["score.weight", "model.layers.0.mlp.up_proj.weight_scale"])
def test_a_tensor_that_the_family_does_not_know_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"tensor '{name}' is not part of a llama model of 2 layers"):
        read(tmp_path, {}, **{name: np.ones((96, 64), dtype=np.float32)})


def test_only_the_frequencies_that_old_versions_saved_are_passed_over(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    source = read(tmp_path, {}, **{name: np.ones(8, dtype=np.float32)})
    assert (source.notes, len(source.tensors)) == ((), 21)

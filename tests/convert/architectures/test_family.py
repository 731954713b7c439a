"""What every family shares: which tensors a configuration has, tied heads, tensors that hold nothing needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm.checkpoint import open_checkpoint
from edgellm.convert import architectures
from edgellm.errors import BadInputError, UnsupportedError
from tests.support.tiny_llama import write_tiny_llama


def test_a_type_that_cannot_be_converted_is_named(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    directory = write_tiny_llama(tmp_path / "m", tensors={name: np.zeros((96, 64), dtype=np.int8)})
    with pytest.raises(BadInputError, match=rf"{name}' has type I8; F32, F16 and BF16 can be converted"):
        architectures.read_source(open_checkpoint(directory))


def test_a_buffer_that_is_not_needed_may_be_of_any_type(tmp_path: Path) -> None:
    mask = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(8, dtype=np.bool_)}
    source = architectures.read_source(open_checkpoint(write_tiny_llama(tmp_path / "m", tensors=mask)))
    assert len(source.tensors) == 21


def test_scaling_is_that_of_the_whole_context_where_the_context_ends_with_the_window(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0}
    directory = write_tiny_llama(tmp_path / "m", {"rope_scaling": yarn, "sliding_window": 64})
    source = architectures.read_source(open_checkpoint(directory))
    assert source.header["llama.rope.scaling.original_context_length"].value == 256
    assert source.header["llama.context_length"].value == 64
    assert len(source.notes) == 1


@pytest.mark.parametrize("share", [0.0, 0.07, 0.2])
def test_a_rotating_share_that_is_no_even_number_of_columns(tmp_path: Path, share: float) -> None:
    directory = write_tiny_llama(tmp_path / "m", {"partial_rotary_factor": share})
    with pytest.raises(BadInputError, match="of a head of 16 rotates"):
        architectures.read_source(open_checkpoint(directory))


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["T5ForConditionalGeneration"]},
        {"architectures": ["MBartForConditionalGeneration"]},
        {"architectures": ["MarianMTModel"]},
        {"architectures": ["SomethingNewForConditionalGeneration"], "is_encoder_decoder": True},
    ],
)
def test_an_encoder_decoder_is_called_that_and_has_no_nearest(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="is an encoder-decoder") as caught:
        architectures.read_source(open_checkpoint(write_tiny_llama(tmp_path / "m", config)))
    assert "nearest" not in caught.value.message
    assert caught.value.hint == architectures.ONNX_HINT


@pytest.mark.parametrize(
    "name", ["LlamoForCausalLM", "LlavaForConditionalGeneration", "BartenderForCausalLM"]
)
def test_an_unknown_class_is_bad_data_with_the_nearest_and_the_other_route(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInputError, match=f"{name}.*the nearest that has one is") as caught:
        architectures.read_source(
            open_checkpoint(write_tiny_llama(tmp_path / "m", {"architectures": [name]}))
        )
    assert caught.value.exit_code == 65
    assert caught.value.hint == architectures.ONNX_HINT
    heading, *rows = caught.value.table
    assert heading.split() == ["family", "model", "classes"]
    listed = [row.partition(" ") for row in rows]
    assert [name for name, _, _ in listed] == sorted(name for name, _, _ in listed)
    classes = {word.strip() for _, _, rest in listed for word in rest.split(",")}
    assert classes == set(architectures.FAMILIES)

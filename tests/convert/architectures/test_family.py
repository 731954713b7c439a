"""What every family shares: which tensors a configuration has, tied heads, tensors that hold nothing needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgellm.checkpoint import open_checkpoint
from edgellm.convert import architectures
from edgellm.errors import BadInputError
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

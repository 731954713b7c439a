"""Hyper-parameters are bounded, agree with each other and with the embedding, and keep llama.cpp alive."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgellm.errors import BadInputError
from edgellm.formats.gguf import read_gguf
from edgellm.formats.gguf_model import Hyperparameters, read_hyperparameters
from tests.support.gguf_files import write_model

Read = Callable[..., Hyperparameters]
U32 = "UINT32"


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Writes a tiny model with changed keys (without the architecture's name) and reads its parameters."""

    def read_changed(
        changes: dict[str, tuple[str, Any]] | None = None,
        *,
        without: tuple[str, ...] = (),
        architecture: str = "llama",
        **options: Any,
    ) -> Hyperparameters:
        metadata = {
            name if name.startswith(("general.", "tokenizer.")) else f"{architecture}.{name}": value
            for name, value in (changes or {}).items()
        }
        missing = [f"{architecture}.{name}" for name in without]
        path = tmp_path / "model.gguf"
        write_model(path, metadata=metadata, without=missing, architecture=architecture, **options)
        return read_hyperparameters(read_gguf(path))

    return read_changed


def test_a_dense_model(read: Read) -> None:
    assert read() == Hyperparameters(
        architecture="llama",
        n_layers=2,
        n_heads=2,
        n_kv_heads=2,
        head_size_k=4,
        head_size_v=4,
        embedding_size=8,
        feed_forward=16,
        context_train=64,
        vocab_size=258,
        n_experts=0,
        n_experts_used=0,
        window=None,
    )


def test_a_mixture_with_windows_and_layers_that_differ(read: Read) -> None:
    found = read(
        {
            "attention.head_count": ("ARRAY:UINT32", [0, 4]),
            "attention.head_count_kv": ("ARRAY:UINT32", [0, 2]),
            "feed_forward_length": ("ARRAY:INT32", [16, 32]),
            "attention.key_length": (U32, 6),
            "attention.value_length": (U32, 10),
            "attention.sliding_window": (U32, 32),
            "expert_count": (U32, 8),
            "expert_used_count": (U32, 2),
            "rope.scaling.type": ("STRING", "yarn"),
        }
    )
    assert (found.n_heads, found.n_kv_heads, found.head_size_k, found.head_size_v) == (4, 2, 6, 10)
    assert (found.feed_forward, found.window, found.n_experts, found.n_experts_used) == (32, 32, 8, 2)


def test_a_recurrent_model_has_no_heads(read: Read) -> None:
    found = read({"attention.head_count": (U32, 0)}, architecture="mamba")
    assert (found.n_heads, found.n_kv_heads, found.head_size_k) == (0, 0, 0)
    assert (
        read(architecture="mamba", without=("attention.head_count", "feed_forward_length")).feed_forward == 0
    )


def test_the_vocabulary_may_be_known_from_the_embedding_alone(read: Read) -> None:
    assert read(vocab=None).vocab_size == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_count": (U32, 0)}, "llama.block_count is 0, expected an integer from 1 to 512"),
        ({"block_count": (U32, 513)}, "llama.block_count is 513, expected an integer from 1 to 512"),
        ({"block_count": ("STRING", "2")}, "llama.block_count is '2'"),
        ({"block_count": ("BOOL", True)}, "llama.block_count is True"),
        ({"block_count": ("INT32", -1)}, "llama.block_count is -1"),
        ({"nextn_predict_layers": (U32, 3)}, "nextn_predict_layers is 3, expected an integer from 0 to 2"),
        ({"context_length": (U32, 0)}, "context_length is 0"),
        ({"embedding_length": (U32, 0)}, "embedding_length is 0"),
        ({"embedding_length": (U32, 16)}, "token_embd.weight has shape (258, 8), expected (258, 16)"),
        ({"embedding_length": (U32, 9)}, "embedding_length is 9, expected a multiple of the 2 heads"),
        ({"vocab_size": (U32, 257)}, "token_embd.weight has shape (258, 8), expected (257, 8)"),
        ({"vocab_size": (U32, 2**31)}, "vocab_size is 2147483648"),
        ({"attention.head_count": (U32, 0)}, "attention.head_count is 0, expected an integer from 1"),
        ({"attention.head_count": ("ARRAY:UINT32", [2])}, "attention.head_count is an array of 1"),
        ({"attention.head_count": ("ARRAY:UINT32", [0, 0])}, "attention.head_count is 0"),
        ({"attention.head_count": ("ARRAY:INT32", [2, -1])}, "attention.head_count is -1"),
        ({"attention.head_count": ("ARRAY:FLOAT32", [2.0, 2.0])}, "attention.head_count is an array of 2"),
        ({"attention.head_count": ("ARRAY:STRING", ["2", "2"])}, "attention.head_count is an array of 2"),
        ({"attention.head_count_kv": (U32, 0)}, "attention.head_count_kv is 0"),
        (
            {"attention.head_count_kv": (U32, 3)},
            "head_count_kv is 3, expected a divisor of the 2 query heads",
        ),
        ({"attention.key_length": (U32, 0)}, "attention.key_length is 0"),
        ({"rope.dimension_count": (U32, 6)}, "rope.dimension_count is 6, expected an integer from 0 to 4"),
        ({"rope.dimension_count": (U32, 3)}, "rope.dimension_count is 3, expected an even number"),
        (
            {"rope.scaling.type": ("STRING", "bogus")},
            "rope.scaling.type is 'bogus', expected one of none, linear",
        ),
        ({"rope.freq_base": ("FLOAT32", float("nan"))}, "rope.freq_base is nan"),
        ({"attention.layer_norm_rms_epsilon": ("FLOAT32", -1.0)}, "layer_norm_rms_epsilon is -1.0"),
        ({"attention.layer_norm_rms_epsilon": ("FLOAT32", float("nan"))}, "layer_norm_rms_epsilon is nan"),
        ({"expert_count": (U32, 1025)}, "expert_count is 1025"),
        ({"expert_count": (U32, 4)}, "expert_used_count is 0, expected an integer from 1 to 4"),
        ({"expert_used_count": (U32, 1)}, "expert_count is 0, expected more than"),
        ({"expert_count": (U32, 4), "expert_used_count": (U32, 5)}, "expert_used_count is 5"),
        (
            {"expert_count": (U32, 4), "expert_used_count": (U32, 1), "expert_group_count": (U32, 3)},
            "expert_group_count is 3, expected a divisor of the 4 experts",
        ),
        (
            {"expert_count": (U32, 4), "expert_used_count": (U32, 1), "expert_group_count": (U32, 2)},
            "expert_group_used_count is 0, expected an integer from 1 to 1",
        ),
        ({"pooling_type": (U32, 5)}, "pooling_type is 5, expected an integer from 0 to 4"),
        ({"general.type": ("STRING", "adapter")}, "a LoRA adapter, not a model"),
        ({"general.type": ("STRING", "mmproj")}, "a multimodal projector"),
    ],
)
def test_refuses(read: Read, changes: dict[str, tuple[str, Any]], message: str) -> None:
    with pytest.raises(BadInputError) as caught:
        read(changes)
    assert str(caught.value).startswith("model.gguf: ")
    assert message in str(caught.value)


def test_heads_of_an_encoder_are_as_wide_for_values_as_for_keys(read: Read) -> None:
    sizes = {"attention.key_length": (U32, 4), "attention.value_length": (U32, 8)}
    assert read(sizes).head_size_v == 8
    with pytest.raises(BadInputError, match=r"bert\.attention\.value_length is 8, expected 4, as the keys"):
        read(sizes, architecture="bert")


@pytest.mark.parametrize(
    "name", ["block_count", "context_length", "embedding_length", "attention.head_count"]
)
def test_missing_keys_are_named(read: Read, name: str) -> None:
    with pytest.raises(BadInputError, match=rf"^model\.gguf: llama\.{name} is missing, expected an integer"):
        read(without=(name,))


def test_a_projector_is_not_a_model(read: Read) -> None:
    with pytest.raises(BadInputError, match="a multimodal projector, not a language model"):
        read(architecture="clip")


def test_an_architecture_is_a_plain_name(read: Read) -> None:
    with pytest.raises(BadInputError, match=r"general\.architecture is '\.\./x', expected a plain name"):
        read(architecture="../x")

"""Bytes of weights and caches, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.formats import ggml_types
from edgellm.shape import ModelShape, Shape, n_elements, tensor_bytes

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD, VOCAB, FEED_FORWARD = 576, 30, 9, 3, 64, 49152, 1536


def smollm2(**changes: Any) -> ModelShape:
    """SmolLM2-135M: the embedding is also the output head."""
    tensors: dict[str, Shape] = {"token_embd.weight": (VOCAB, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        tensors |= {
            f"{block}.attn_norm.weight": (HIDDEN,),
            f"{block}.ffn_norm.weight": (HIDDEN,),
            f"{block}.attn_q.weight": (HEADS * HEAD, HIDDEN),
            f"{block}.attn_k.weight": (KV_HEADS * HEAD, HIDDEN),
            f"{block}.attn_v.weight": (KV_HEADS * HEAD, HIDDEN),
            f"{block}.attn_output.weight": (HIDDEN, HEADS * HEAD),
            f"{block}.ffn_gate.weight": (FEED_FORWARD, HIDDEN),
            f"{block}.ffn_up.weight": (FEED_FORWARD, HIDDEN),
            f"{block}.ffn_down.weight": (HIDDEN, FEED_FORWARD),
        }
    fields: dict[str, Any] = {
        "architecture": "llama",
        "tensors": tensors,
        "n_layers": LAYERS,
        "n_heads": HEADS,
        "n_kv_heads": KV_HEADS,
        "head_size": HEAD,
        "vocab_size": VOCAB,
        "context_train": 8192,
        "embedding_size": HIDDEN,
    }
    return ModelShape(**{**fields, **changes})


def all_in(shape: ModelShape, type_name: str) -> dict[str, str]:
    return dict.fromkeys(shape.tensors, type_name)


def test_parameters_of_smollm2() -> None:
    # 49152*576 + 576 + 30 * (2*576 + 2*576*576 + 2*192*576 + 3*576*1536)
    assert smollm2().n_params == 134_515_008
    assert smollm2().n_gqa == 3


def test_weight_bytes_of_smollm2() -> None:
    shape = smollm2()
    assert shape.weight_bytes(all_in(shape, "F32")) == 4 * 134_515_008
    assert shape.weight_bytes(all_in(shape, "F16")) == 2 * 134_515_008
    # Rows of 576 and 1536 are multiples of Q8_0's block of 32 weights in 34 bytes.
    assert shape.weight_bytes(all_in(shape, "Q8_0")) == 134_515_008 * 34 // 32


def test_each_tensor_has_its_own_type() -> None:
    shape = smollm2()
    types = {name: "F32" if len(dims) == 1 else "Q4_0" for name, dims in shape.tensors.items()}
    norms = 61 * HIDDEN
    assert shape.weight_bytes(types) == norms * 4 + (134_515_008 - norms) * 18 // 32


def test_a_row_that_does_not_fill_its_blocks_is_refused() -> None:
    shape = smollm2()
    with pytest.raises(ValueError, match="576 weights is not a multiple of Q4_K"):
        shape.weight_bytes(all_in(shape, "Q4_K"))
    with pytest.raises(KeyError):
        shape.weight_bytes({})


def test_kv_bytes_of_smollm2() -> None:
    shape = smollm2()
    assert shape.kv_bytes(1) == 2 * 30 * 3 * 64 * 2 == 23_040
    assert shape.kv_bytes(8192) == 23_040 * 8192
    assert shape.kv_bytes(8192, "F32") == 2 * shape.kv_bytes(8192)
    assert shape.kv_bytes(32, "Q8_0") == 2 * 30 * (3 * 64 // 32 * 34) * 32
    assert shape.kv_bytes(0) == 0


def test_value_heads_may_have_another_width() -> None:
    assert smollm2(value_head_size=128).kv_bytes(10) == 30 * 3 * (64 + 128) * 2 * 10


def test_sliding_layers_keep_only_their_window() -> None:
    shape = smollm2(window=512, n_window_layers=20)
    per_token_and_layer = 2 * 3 * 64 * 2
    assert shape.kv_bytes(512) == smollm2().kv_bytes(512)
    assert shape.kv_bytes(4096) == per_token_and_layer * (10 * 4096 + 20 * 512)
    assert smollm2(window=512, n_window_layers=30).kv_bytes(4096) == per_token_and_layer * 30 * 512
    assert smollm2(window=512).kv_bytes(4096) == smollm2().kv_bytes(4096)


@pytest.mark.parametrize(
    ("hidden", "feed_forward", "gated", "context", "mib"),
    [
        (384, 1536, False, 64, 0.67), (384, 1536, False, 256, 2.75), (384, 1536, False, 512, 5.76),
        (1024, 4096, False, 512, 14.51), (768, 3072, True, 64, 2.82), (768, 3072, True, 2048, 98.03),
        (768, 512, False, 256, 4.25), (768, 512, True, 2048, 53.03),
    ],
)  # fmt: skip
def test_compute_bytes_of_encoders_are_those_llama_cpp_reports(
    hidden: int, feed_forward: int, gated: bool, context: int, mib: float
) -> None:
    """MiniLM, BERT large and Nomic BERT, and two with narrow feed-forward layers; llama.cpp's "compute buffer size"."""
    tensors: dict[str, Shape] = {"blk.0.ffn_down.weight": (hidden, feed_forward)}
    tensors |= {"blk.0.ffn_gate.weight": (feed_forward, hidden)} if gated else {}
    tensors |= {} if gated else {"position_embd.weight": (512, hidden)}
    shape = smollm2(architecture="bert", tensors=tensors, embedding_size=hidden, is_encoder=True)
    assert shape.compute_bytes(context) == pytest.approx(mib * 1024**2, rel=0.01)
    assert shape.kv_bytes(context) == 0


def test_a_tied_head_is_read_whole_at_every_step() -> None:
    shape = smollm2()
    types = all_in(shape, "F16")
    assert shape.bytes_per_token(types, 0) == shape.weight_bytes(types)
    assert shape.bytes_per_token(types, 100) == shape.weight_bytes(types) + 100 * 23_040


def test_of_an_untied_embedding_one_row_is_read() -> None:
    tensors: dict[str, Shape] = {"token_embd.weight": (1000, 64), "output.weight": (1000, 64)}
    shape = smollm2(tensors=tensors, n_layers=0)
    assert shape.bytes_per_token(all_in(shape, "F16"), 0) == 64 * 2 + 1000 * 64 * 2


def test_of_the_experts_the_used_ones_are_read() -> None:
    tensors: dict[str, Shape] = {"output.weight": (10, 64), "blk.0.ffn_up_exps.weight": (8, 128, 64)}
    shape = smollm2(tensors=tensors, n_layers=0, n_experts=8, n_experts_used=2)
    types = all_in(shape, "F16")
    assert shape.weight_bytes(types) == 10 * 64 * 2 + 8 * 128 * 64 * 2
    assert shape.bytes_per_token(types, 0) == 10 * 64 * 2 + 2 * 128 * 64 * 2


def test_a_model_without_kv_heads() -> None:
    assert smollm2(n_kv_heads=0).n_gqa == 0
    assert smollm2(n_kv_heads=0).kv_bytes(100) == 0


@given(
    dims=st.lists(st.integers(min_value=1, max_value=50), min_size=0, max_size=3),
    blocks=st.integers(min_value=1, max_value=8),
    name=st.sampled_from(sorted(ggml_types.BY_NAME)),
)
def test_bytes_of_a_tensor_follow_from_bits_per_weight(dims: list[int], blocks: int, name: str) -> None:
    kind = ggml_types.BY_NAME[name]
    shape = (*dims, blocks * kind.block)
    assert tensor_bytes(shape, name) * 8 == pytest.approx(n_elements(shape) * kind.bpw)


@given(context=st.integers(min_value=0, max_value=100_000), window=st.integers(min_value=1, max_value=10_000))
def test_a_window_never_makes_a_cache_larger(context: int, window: int) -> None:
    assert smollm2(window=window, n_window_layers=15).kv_bytes(context) <= smollm2().kv_bytes(context)

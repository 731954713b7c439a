"""Second moments of inputs: against what the fake backend is known to multiply with, and bounded memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgellm.convert import hessian
from edgellm.convert.chunks import CHUNK_TOKENS
from edgellm.errors import BadInputError
from edgellm.protocols import Observation
from edgellm.shape import ModelShape
from tests.support.fake_backend import BOS, FakeBackend, input_rows


def shape_of(tensors: dict[str, tuple[int, ...]]) -> ModelShape:
    return ModelShape(
        architecture="llama", tensors=tensors, n_layers=2, n_heads=1, n_kv_heads=1, head_size=32, vocab_size=259,
        context_train=512, embedding_size=32,
    )  # fmt: skip


FAKE = shape_of(
    {
        "token_embd.weight": (259, 32), "output.weight": (259, 32), "blk.0.attn_q.weight": (32, 32),
        "blk.0.attn_k.weight": (16, 32), "blk.0.attn_norm.weight": (32,), "blk.0.ffn_up_exps.weight": (4, 8, 32),
    }
)  # fmt: skip
CHUNKS = [[1, 2, 3, 4, 5], [6, 7, 250]]


@pytest.mark.parametrize("memory_bytes", [1, hessian.MEMORY_BYTES])
def test_the_factor_is_that_of_the_mean_of_squares(tmp_path: Path, memory_bytes: int) -> None:
    found = hessian.collect(FakeBackend(), FAKE, CHUNKS, tmp_path, damping=0.05, memory_bytes=memory_bytes)
    rows = np.concatenate([input_rows(chunk) for chunk in CHUNKS]).astype(np.float64)
    counts = np.array([hessian.FIRST_TOKEN_WEIGHT, 1, 1, 1, 1, hessian.FIRST_TOKEN_WEIGHT, 1, 1])
    h = (rows.T * counts) @ rows / counts.sum()
    h += np.eye(32) * 0.05 * h.diagonal().mean()
    factor = found.feedback("blk.0.attn_k.weight")
    assert factor is not None
    rebuilt = (factor.upper * factor.weights) @ factor.upper.T
    assert np.allclose(rebuilt, h[np.ix_(factor.order, factor.order)], atol=1e-3)
    assert found.n_tokens == 8
    assert found.owner["blk.0.attn_k.weight"] == found.owner["blk.0.attn_q.weight"] == "blk.0.attn_q.weight"
    assert len(list(tmp_path.iterdir())) == len(set(found.owner.values()))


def test_experts_that_see_the_same_rows_share_a_matrix(tmp_path: Path) -> None:
    found = hessian.collect(FakeBackend(), FAKE, CHUNKS, tmp_path)
    assert found.feedback("blk.0.ffn_up_exps.weight") is not None
    assert found.importance == {}


def test_experts_with_rows_of_their_own_have_importances(tmp_path: Path) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    collector = hessian._Collector(frozenset({"blk.0.ffn_down_exps.weight"}))
    experts = np.array([[2], [0], [2]], dtype=np.int32)
    collector.observe(
        Observation(weight="blk.0.ffn_down_exps.weight", rows=rows, experts=experts, n_experts=3, source=1)
    )
    found = hessian.Moments(tmp_path)
    collector.finish(found, 0.01)
    wanted = np.stack([rows[1] ** 2, np.zeros(4), (rows[0] ** 2 + rows[2] ** 2) / 2])
    assert np.array_equal(found.importance["blk.0.ffn_down_exps.weight"], wanted)
    assert found.feedback("blk.0.ffn_down_exps.weight") is None


def test_activations_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    collector = hessian._Collector(frozenset({"blk.0.attn_q.weight"}))
    rows = np.full((2, 32), np.inf, dtype=np.float32)
    with np.errstate(invalid="ignore"):
        collector.observe(Observation(weight="blk.0.attn_q.weight", rows=rows, source=1))
    with pytest.raises(BadInputError, match=r"attn_q.weight' are not finite"):
        collector.finish(hessian.Moments(tmp_path), 0.01)


def test_passes_keep_what_shares_an_input_together_and_within_the_bound() -> None:
    tensors: dict[str, tuple[int, ...]] = {"token_embd.weight": (100, 64)}
    for i in range(3):
        for part in ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"):
            tensors[f"blk.{i}.{part}.weight"] = (64, 64)
    shape = shape_of(tensors)
    one = 4 * 64 * 64
    found = hessian.passes(shape, 2 * one)
    assert frozenset().union(*found) == set(tensors)
    assert sum(map(len, found)) == len(tensors)
    for names in found:
        assert not {"blk.1.attn_q.weight", "blk.1.attn_v.weight"} & names or {
            "blk.1.attn_q.weight", "blk.1.attn_v.weight"
        } <= names  # fmt: skip
    assert len(found) == 4
    assert len(hessian.passes(shape, 1 << 30)) == 1
    untied = shape_of({**tensors, "output.weight": (100, 64)})
    assert "token_embd.weight" not in frozenset().union(*hessian.passes(untied, 1 << 30))


def test_tokens_from_the_vocabulary_need_no_text_and_repeat() -> None:
    chunks = hessian.vocabulary_chunks(FakeBackend(), n_chunks=3)
    assert chunks == hessian.vocabulary_chunks(FakeBackend(), n_chunks=3)
    assert [len(chunk) for chunk in chunks] == [CHUNK_TOKENS] * 3
    assert {chunk[0] for chunk in chunks} == {BOS}
    assert len({token for chunk in chunks for token in chunk}) > 250
    assert chunks != hessian.vocabulary_chunks(FakeBackend(), n_chunks=3, seed=1)


def test_chunks_of_a_text_are_spread_over_it() -> None:
    ids = [i // CHUNK_TOKENS for i in range(10 * CHUNK_TOKENS + 5)]
    chunks = hessian.text_chunks(FakeBackend(add_bos=False), ids, n_chunks=4)
    assert [chunk[-1] for chunk in chunks] == [0, 3, 6, 9]
    with_bos = hessian.text_chunks(FakeBackend(), ids, n_chunks=1)
    assert with_bos[0][0] == BOS
    with pytest.raises(BadInputError, match="2 tokens are too few"):
        hessian.text_chunks(FakeBackend(), [5, 6])

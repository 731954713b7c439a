"""Row orders against plain numpy reshapes, whatever the slabs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.checkpoint import SourceTensor
from edgellm.convert import rows
from edgellm.convert.architectures import transforms
from edgellm.convert.architectures.hyper import Hyper
from edgellm.convert.source import Part, PlannedTensor

HYPER = Hyper(
    n_layers=1, n_heads=4, n_kv_heads=4, head_size=8, embedding_size=32, feed_forward_size=64, vocab_size=10,
    context_train=16, rope_base=1e4, rotary_size=8, norm_epsilon=1e-6, tied=False,
)  # fmt: skip


def hyper(n_heads: int, n_kv_heads: int, head_size: int) -> Hyper:
    return dataclasses.replace(HYPER, n_heads=n_heads, n_kv_heads=n_kv_heads, head_size=head_size)


@pytest.mark.parametrize(("n_heads", "head_size"), [(1, 2), (2, 8), (3, 4)])
def test_rotary_halves_become_pairs(n_heads: int, head_size: int) -> None:
    assert transforms.ROTARY_QUERY.order is not None
    order, group = transforms.ROTARY_QUERY.order(hyper(n_heads, n_heads, head_size), n_heads * head_size)
    source = np.arange(n_heads * head_size)
    expected = source.reshape(n_heads, 2, head_size // 2).swapaxes(1, 2).ravel()
    assert order(source).tolist() == expected.tolist()
    assert group == head_size


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(4, 4), (4, 2), (6, 1), (1, 1)])
@pytest.mark.parametrize("head_size", [2, 6])
def test_groups_become_queries_keys_values(n_heads: int, n_kv_heads: int, head_size: int) -> None:
    n_rows = (n_heads + 2 * n_kv_heads) * head_size
    assert transforms.GROUPED_QKV.order is not None
    order, _ = transforms.GROUPED_QKV.order(hyper(n_heads, n_kv_heads, head_size), n_rows)
    source = np.arange(n_rows).reshape(n_kv_heads, n_heads // n_kv_heads + 2, head_size)
    expected = np.concatenate([source[:, :-2].ravel(), source[:, -2].ravel(), source[:, -1].ravel()])
    assert order(np.arange(n_rows)).tolist() == expected.tolist()


def stored(folder: Path, values: np.ndarray) -> SourceTensor:
    path = folder / f"{values.shape}.bin"
    path.write_bytes(b"head" + values.tobytes())
    return SourceTensor("t", "F32", values.shape, path, 4, values.nbytes)


@given(cut=st.lists(st.integers(0, 12), min_size=2, max_size=2, unique=True))
def test_columns_of_a_transposed_matrix_are_rows(
    tmp_path_factory: pytest.TempPathFactory, cut: list[int]
) -> None:
    values = np.arange(60, dtype=np.float32).reshape(5, 12)
    part = Part(stored(tmp_path_factory.mktemp("m"), values), 12, transposed=True)
    low, high = sorted(cut)
    seen = rows.read_rows(PlannedTensor("t", (12, 5), (part,)), low, high)
    assert np.array_equal(seen, values.T[low:high])


@given(cut=st.lists(st.integers(0, 24), min_size=2, max_size=2, unique=True))
def test_rows_of_several_parts_and_far_places(
    tmp_path_factory: pytest.TempPathFactory, cut: list[int]
) -> None:
    """Stacked experts, one of them fused QKV (its rows lie far apart), one computed; a constant on top."""
    values = np.arange(48, dtype=np.float32).reshape(12, 4)
    assert transforms.GROUPED_QKV.order is not None
    order, group = transforms.GROUPED_QKV.order(hyper(4, 1, 2), 12)
    first = Part(stored(tmp_path_factory.mktemp("m"), values), 12, order, group)
    tensor = PlannedTensor("t", (2, 12, 4), (first, Part(-values, 12)), plus=1.0)
    low, high = sorted(cut)
    whole = np.concatenate([values[order(np.arange(12))], -values]) + 1
    assert np.array_equal(rows.read_rows(tensor, low, high), whole[low:high])


def test_a_vector_that_is_reordered_moves_weight_by_weight(tmp_path: Path) -> None:
    values = np.arange(8, dtype=np.float32)
    assert transforms.ROTARY_QUERY.order is not None
    order, group = transforms.ROTARY_QUERY.order(hyper(2, 2, 4), 8)
    tensor = PlannedTensor("b", (8,), (Part(stored(tmp_path, values), 8, order, group),))
    assert (tensor.n_rows, tensor.n_columns) == (8, 1)
    assert rows.read_rows(tensor, 0, 8).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]

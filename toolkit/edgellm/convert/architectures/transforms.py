"""What happens to the rows of a tensor between Hugging Face's order and llama.cpp's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edgellm.convert.architectures.hyper import Hyper
from edgellm.convert.source import RowOrder

Rows = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Transform:
    """What happens to a tensor.

    Attributes:
        order: (hyper-parameters, rows) -> (output row -> source row, rows among which rows move).
        transposed: stored (n_in, n_out), as GPT-2 does.
        plus: a constant added to every value.
    """

    order: Callable[[Hyper, int], tuple[RowOrder, int]] | None = None
    transposed: bool = False
    plus: float = 0.0

    def for_bias(self) -> Transform:
        """The same for the vector that belongs to a matrix: its elements move, but are not transposed."""
        return dataclasses.replace(self, transposed=False)


def _rotary_order(n_heads: int, n_rows: int) -> tuple[RowOrder, int]:
    """From Hugging Face's rotary order (two halves of a head) to GGUF's (interleaved pairs), head by head."""
    head_rows = n_rows // n_heads

    def order(rows: Rows) -> Rows:
        head, within = np.divmod(rows, head_rows)
        pair, half = np.divmod(within, 2)
        return np.asarray(head * head_rows + half * (head_rows // 2) + pair)

    return order, head_rows


def _grouped_order(hyper: Hyper, n_rows: int) -> tuple[RowOrder, int]:
    """From groups of (query heads..., one key head, one value head) to all queries, all keys, all values."""
    head_rows = n_rows // (hyper.n_heads + 2 * hyper.n_kv_heads)
    per_group = hyper.n_heads // hyper.n_kv_heads

    def order(rows: Rows) -> Rows:
        head, within = np.divmod(rows, head_rows)
        is_query = head < hyper.n_heads
        group, place = np.divmod(head, per_group)
        shared = head - hyper.n_heads
        is_value = shared >= hyper.n_kv_heads
        group = np.where(is_query, group, shared - is_value * hyper.n_kv_heads)
        place = np.where(is_query, place, per_group + is_value)
        return np.asarray((group * (per_group + 2) + place) * head_rows + within)

    return order, head_rows


ROTARY_QUERY = Transform(order=lambda hyper, n_rows: _rotary_order(hyper.n_heads, n_rows))
ROTARY_KEY = Transform(order=lambda hyper, n_rows: _rotary_order(hyper.n_kv_heads, n_rows))
GROUPED_QKV = Transform(order=_grouped_order)
TRANSPOSED = Transform(transposed=True)
PLUS_ONE = Transform(plus=1.0)

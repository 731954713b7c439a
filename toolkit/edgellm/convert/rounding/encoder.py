"""Rows of a model's tensors into blocks, with what is known of their inputs: the writer's `encode`."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from edgellm.convert.rounding.compensate import Feedback, encode_compensated
from edgellm.convert.rounding.scales import FORMATS
from edgellm.native import ggml
from edgellm.shape import Shape

KEPT = 3
Encode = Callable[[str, int, ggml.Floats, str], ggml.Bytes]


class Inputs(Protocol):
    """What is known of the inputs of weights; see `hessian.Moments`."""

    importance: dict[str, ggml.Floats]
    owner: dict[str, str]

    def feedback(self, weight: str) -> Feedback | None:
        """The factor of a weight's H, or None."""
        ...


def make_encoder(inputs: Inputs, shapes: Mapping[str, Shape]) -> Encode:
    """An encoder for `writer.write_gguf`: errors are compensated where a weight's inputs are known.

    Elsewhere, and for types without a rounding of our own, ggml's quantizers do it, with the importance of each
    expert's columns where there is one. Safe to call from several threads; holds at most KEPT factors.

    Args:
        shapes: of all tensors; the rows of an expert follow those of the one before.
    """
    factors = _Factors(inputs)

    def encode(name: str, first_row: int, rows: ggml.Floats, type_name: str) -> ggml.Bytes:
        if type_name in FORMATS and name in inputs.owner:
            return encode_compensated(rows, type_name, factors.get(name))
        importance = inputs.importance.get(name)
        if importance is None or type_name in {"F32", "F16", "BF16"}:
            return ggml.quantize_rows(rows, type_name)
        return _by_expert(rows, first_row, type_name, importance, shapes[name][-2])

    return encode


def _by_expert(
    rows: ggml.Floats, first_row: int, type_name: str, importance: ggml.Floats, expert_rows: int
) -> ggml.Bytes:
    parts = []
    low = 0
    while low < len(rows):
        expert = (first_row + low) // expert_rows
        high = min(len(rows), (expert + 1) * expert_rows - first_row)
        weights = importance[expert] if importance[expert].any() else None
        parts.append(ggml.quantize_rows(np.ascontiguousarray(rows[low:high]), type_name, weights))
        low = high
    return np.concatenate(parts)


class _Factors:
    """The factors used last; one thread reads a factor while others that need it wait."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Feedback] = OrderedDict()

    def get(self, name: str) -> Feedback:
        owner = self._inputs.owner[name]
        with self._lock:
            factor = self._kept.get(owner)
            if factor is None:
                factor = self._inputs.feedback(name)
                assert factor is not None
                self._kept[owner] = factor
            self._kept.move_to_end(owner)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return factor

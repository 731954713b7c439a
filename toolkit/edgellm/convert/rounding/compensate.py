"""Error-compensating rounding: what a column loses is made up for by the columns after it.

With inputs x the output error of a row is E H E^T, E the row's rounding errors and H = mean of x x^T. With
H = U D U^T, U unit upper triangular, it is the sum of D_k (E_k + sum over i < k of E_i U_ik)^2, so that column k is
rounded to the nearest of W_k + sum over i < k of E_i U_ik. (GPTQ: Frantar et al. 2022; in this form, LDLQ: Chee et al.
2023.)
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from edgellm.convert.rounding.blocks import Codes, Scales, pack
from edgellm.convert.rounding.scales import FORMATS, Format, inverse_of
from edgellm.errors import BadInputError
from edgellm.formats import ggml_types
from edgellm.native.ggml import Bytes, Floats

STRIP = 32
LANES = 4096


@dataclasses.dataclass(frozen=True)
class Feedback:
    """H in the form that rounding needs.

    Attributes:
        upper: (n, n) float32, unit upper triangular in the order of `order`.
        weights: (n,) float32, D: what a rounding error costs in each column, in that order.
        order: (n,) the columns in the order of rounding.
    """

    upper: Floats
    weights: Floats
    order: npt.NDArray[np.intp]


def feedback(second_moment: npt.NDArray[np.floating], *, damping: float = 0.01) -> Feedback:
    """Factor H. Columns are rounded block by block, the heaviest block first: what it loses, most others can make up for.

    Args:
        second_moment: (n, n) mean of x x^T over the inputs.
        damping: added to the diagonal, as a part of its mean; ten times more while H is not positive definite.
    """
    n = len(second_moment)
    diagonal = np.array(second_moment.diagonal(), dtype=np.float64)
    mean = float(diagonal.mean())
    if not 0 < mean < np.inf:
        return Feedback(np.eye(n, dtype=np.float32), np.ones(n, dtype=np.float32), np.arange(n))
    block = 256 if n % 256 == 0 else 32 if n % 32 == 0 else 1
    heaviest = np.argsort(-diagonal.reshape(-1, block).sum(axis=1), kind="stable")
    order = (heaviest[:, None] * block + np.arange(block)).reshape(-1)
    backwards = order[::-1]
    h = second_moment[np.ix_(backwards, backwards)].astype(np.float64)
    while True:
        h[np.diag_indices(n)] = diagonal[backwards] + damping * mean
        try:
            root = np.linalg.cholesky(h)[::-1, ::-1]
        except np.linalg.LinAlgError:
            damping *= 10
            continue
        d = root.diagonal()
        upper = np.empty((n, n), dtype=np.float32)
        np.divide(root, d, out=upper, casting="same_kind")
        return Feedback(upper, (d * d).astype(np.float32), order)


def encode_plain(rows: Floats, type_name: str, importance: Floats | None = None) -> Bytes:
    """Rows in a type's blocks, each weight to its nearest code.

    Args:
        rows: (n_rows, n_columns) float32.
        importance: (n_columns,) weights of the squared error, for the choice of scales.

    Returns:
        (n_rows, row_bytes) uint8.

    Raises:
        BadInputError: the rows hold NaN or infinity, or values that the type cannot hold.
    """
    kind = FORMATS[type_name]
    _check_range(kind, rows)
    n_rows, n_columns = rows.shape
    n_blocks = n_columns // kind.block
    lanes = rows.reshape(-1, kind.block).T
    weights = np.ones((kind.block, 1), dtype=np.float32)
    if importance is not None:
        weights = np.tile(_relative(importance).reshape(n_blocks, kind.block).T, n_rows)
    out = []
    for start in range(0, lanes.shape[1], LANES):
        x = np.ascontiguousarray(lanes[:, start : start + LANES])
        w = weights if importance is None else np.ascontiguousarray(weights[:, start : start + LANES])
        scales = kind.fit(x, w)
        each, n = kind.block // kind.sub_block, x.shape[1]
        offset = None if scales.offset is None else scales.offset[:, None]
        codes = kind.nearest(x.reshape(each, kind.sub_block, n), scales.scale[:, None], offset)
        out.append(pack(type_name, codes.reshape(kind.block, n).astype(np.int16), scales))
    return np.concatenate(out).reshape(n_rows, -1)


def encode_compensated(rows: Floats, type_name: str, plan: Feedback) -> Bytes:
    """Rows in a type's blocks; scales minimise the error that is left, errors are made up for as `plan` says.

    Args:
        rows: (n_rows, n_columns) float32.

    Returns:
        (n_rows, row_bytes) uint8.

    Raises:
        BadInputError: the rows hold NaN or infinity, or values that the type cannot hold.
    """
    kind = FORMATS[type_name]
    _check_range(kind, rows)
    n_rows, n_columns = rows.shape
    block = kind.block
    packed = np.empty((n_columns // block, n_rows, ggml_types.BY_NAME[type_name].block_bytes), dtype=np.uint8)
    columns = np.ascontiguousarray(rows.T)
    errors = np.empty((n_columns, n_rows), dtype=np.float32)
    importance = _relative(plan.weights)[:, None]
    for start in range(0, n_columns, block):
        end = start + block
        where = plan.order[start:end]
        original = columns[where]
        target = original.copy()
        if start:
            target += plan.upper[:start, start:end].T @ errors[:start]
        scales = kind.fit(target, importance[start:end])
        codes = _round_block(
            kind, original, target, scales, plan.upper[start:end, start:end], errors[start:end]
        )
        packed[where[0] // block] = pack(type_name, codes, scales)
    return np.ascontiguousarray(packed.transpose(1, 0, 2)).reshape(n_rows, -1)


def _round_block(
    kind: Format, original: Floats, target: Floats, scales: Scales, upper: Floats, errors: Floats
) -> Codes:
    """Codes of one block, column by column; fills in the block's errors.

    Args:
        original: (block, n) weights;  target: with what earlier blocks left added; used up here.
        upper: (block, block) the block's part of the plan's.
    """
    codes = np.empty(original.shape, dtype=np.int16)
    inverse = inverse_of(scales.scale)
    for strip in range(0, kind.block, STRIP):
        if strip:
            target[strip : strip + STRIP] += upper[:strip, strip : strip + STRIP].T @ errors[:strip]
        for k in range(strip, strip + STRIP):
            s, wanted = k // kind.sub_block, target[k]
            if k > strip:
                wanted += upper[strip:k, k] @ errors[strip:k]
            if scales.offset is not None:
                wanted -= scales.offset[s]
            wanted *= inverse[s]
            value = kind.round(wanted)
            codes[k] = value
            value *= scales.scale[s]
            if scales.offset is not None:
                value += scales.offset[s]
            np.subtract(original[k], value, out=errors[k])
    return codes


def _relative(importance: Floats) -> Floats:
    """Scaled to a largest value of 1 and none of 0: only ratios matter, and no block may weigh nothing."""
    peak = float(importance.max())
    if not peak > 0:
        return np.ones(importance.shape, dtype=np.float32)
    relative: Floats = np.maximum(importance / np.float32(peak), np.float32(1e-10)).astype(np.float32)
    return relative


def _check_range(kind: Format, rows: Floats) -> None:
    peak = float(np.abs(rows).max(initial=0))
    if not math.isfinite(peak):
        raise BadInputError("weights hold NaN or infinity")
    if peak > kind.largest:
        raise BadInputError(f"weights are too large for {kind.name}: the scales of its blocks overflow")

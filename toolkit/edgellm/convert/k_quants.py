"""Q4_K and Q5_K as ggml packs them, byte for byte, but faster: the search runs over many blocks side by side.

ggml's quantizer goes through one sub-block after the other, each sum waiting for the one before. Where its bytes are
not the ones found here (a compiler that fuses multiplications with additions, as on ARM), and for all other types,
ggml's own quantizer is called.
"""

from __future__ import annotations

import functools
import threading

import numpy as np
import numpy.typing as npt

from edgellm.convert.k_search import SUB_BLOCK, Lanes, Trials
from edgellm.convert.rounding import blocks
from edgellm.formats import ggml_types
from edgellm.native import ggml

BLOCK = 256
_PER_BLOCK = BLOCK // SUB_BLOCK
_TRIALS = {"Q4_K": Trials(15, -1.0, 0.1, 21), "Q5_K": Trials(31, -0.5, 0.1, 16)}
# About so many blocks are searched at once, in 1 MiB of arrays; few are faster one by one.
_BLOCKS_AT_ONCE = 256
_FEWEST_BLOCKS = 64
# Where more blocks than this have to be packed by ggml again, the rest of their rows goes there at once.
_MOST_LEFT = 0.25
# numpy copies rows shorter than its buffer into it before it broadcasts them, which takes as long as the work.
_BUFFER_VALUES = 1024
_MOST_SCALE = np.float32(63)
_one_at_a_time = threading.Lock()
_ROUNDER = np.float32(12582912)


def quantize_rows(rows: ggml.Floats, type_name: str) -> ggml.Bytes:
    """As `ggml.quantize_rows` without importance: the same bytes, the same errors. Safe to call from any thread."""
    n_blocks = rows.size // BLOCK
    if type_name not in _TRIALS or n_blocks < _FEWEST_BLOCKS or not has_ggml_bytes(type_name):
        return ggml.quantize_rows(rows, type_name)
    with np.errstate(over="ignore", invalid="ignore"):
        is_finite = np.isfinite(rows.sum())
    if not is_finite or rows.shape[1] % BLOCK:  # refused there, unless only the sum overflows
        return ggml.quantize_rows(rows, type_name)
    # Two threads in numpy would pass the interpreter's lock to and fro a million times, which takes longer than it
    # saves; ggml does not hold it. So one thread searches here while the others are in ggml.
    if not _one_at_a_time.acquire(blocking=False):
        return ggml.quantize_rows(rows, type_name)
    try:
        packed = _quantize_blocks(np.ascontiguousarray(rows, dtype=np.float32).reshape(-1, BLOCK), type_name)
    finally:
        _one_at_a_time.release()
    return packed.reshape(len(rows), -1)


@functools.cache
def has_ggml_bytes(type_name: str) -> bool:
    """Whether this library packs a slab of hard cases into the bytes found here; looked at once per process."""
    rows = _hard_blocks()
    return np.array_equal(_quantize_blocks(rows, type_name), ggml.quantize_rows(rows, type_name))


def _hard_blocks() -> ggml.Floats:
    """(n, 256) float32 whose bytes tell how sums were rounded.

    A sub-block of two or three values is met exactly by several scales, and rounding alone chooses between them.
    """
    rng = np.random.default_rng(4)
    plain = rng.standard_normal((16, BLOCK))
    levels = rng.standard_normal((3, 104, _PER_BLOCK, 1))
    few = np.choose(rng.integers(0, 3, (104, _PER_BLOCK, SUB_BLOCK)), levels).reshape(-1, BLOCK)
    edges = rng.standard_normal((8, BLOCK)) * np.array([[1e-3], [1], [1], [1], [300], [1], [1e-2], [1]])
    edges[1, :32], edges[2], edges[3], edges[4, ::7], edges[5] = 0, -0.0, 0.3, 0, -np.abs(edges[5])
    edges[6] += -1
    edges[7] = np.abs(edges[7])
    return np.concatenate([plain, few, edges]).astype(np.float32)


def _quantize_blocks(rows: ggml.Floats, type_name: str) -> ggml.Bytes:
    """(n, 256) -> (n, block_bytes)."""
    packed = np.empty((len(rows), ggml_types.BY_NAME[type_name].row_bytes(BLOCK)), dtype=np.uint8)
    step = -(-len(rows) // max(1, round(len(rows) / _BLOCKS_AT_ONCE)))
    lanes = Lanes(step * _PER_BLOCK)
    with np.errstate(all="ignore"):
        before = np.setbufsize(_BUFFER_VALUES)
        try:
            for low in range(0, len(rows), step):
                some = rows[low : low + step]
                if lanes.n != len(some) * _PER_BLOCK:
                    lanes = Lanes(len(some) * _PER_BLOCK)
                packed[low : low + len(some)], n_left = _pack(some, type_name, lanes)
                if n_left > _MOST_LEFT * len(some) and low + step < len(rows):
                    packed[low + step :] = ggml.quantize_rows(rows[low + step :], type_name)
                    break
        finally:
            np.setbufsize(before)
    return packed


def _pack(rows: ggml.Floats, type_name: str, lanes: Lanes) -> tuple[ggml.Bytes, int]:
    """(n, 256) -> (n, block_bytes) and how many blocks were left to ggml.

    Lanes are sub-block 0 of every block, then sub-block 1, and so on.
    """
    n, n_max = len(rows), _TRIALS[type_name].n_max
    x, codes = lanes.weights, lanes.scratch
    x.reshape(SUB_BLOCK, _PER_BLOCK, n)[...] = rows.reshape(n, _PER_BLOCK, SUB_BLOCK).T
    found = lanes.search(_TRIALS[type_name])
    sub_d, d = _in_six_bits(found.scale.reshape(_PER_BLOCK, n))
    sub_m, m = _in_six_bits(-found.minimum.reshape(_PER_BLOCK, n))
    scale = (d.astype(np.float32) * sub_d).ravel()
    np.add(x, (m.astype(np.float32) * sub_m).ravel(), out=codes)
    np.divide(codes, scale, out=codes)
    rounded = _nearest(codes)
    np.clip(rounded, 0, n_max, out=rounded)
    in_blocks = rounded.reshape(SUB_BLOCK, _PER_BLOCK, n).transpose(1, 0, 2).astype(np.int16)
    scales = blocks.Scales(scale, None, d, m, sub_d, sub_m)
    packed = blocks.pack(type_name, in_blocks.reshape(BLOCK, n), scales)
    # With a scale of 0, ggml keeps the codes of its search, which are only known to be 0 where weights are constant.
    is_left = found.is_beyond | (scale == 0) & ~found.is_constant
    is_left_block = is_left.reshape(_PER_BLOCK, n).any(axis=0) | ~(np.isfinite(d) & np.isfinite(m))
    if is_left_block.any():
        packed[is_left_block] = ggml.quantize_rows(rows[is_left_block], type_name)
    return packed, int(is_left_block.sum())


def _in_six_bits(values: ggml.Floats) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float16]]:
    """(8, n) -> (8, n) from 0 to 63 and (n,), as quantize_row_q4_K_ref rounds them."""
    largest = np.maximum(values.max(axis=0), np.float32(0))
    inverse = np.where(largest > 0, _MOST_SCALE / largest, np.float32(0))
    rounded = np.minimum(_nearest(inverse * values).astype(np.uint8), 63)
    return rounded.astype(np.int16), (largest / _MOST_SCALE).astype(np.float16)


def _nearest(values: ggml.Floats) -> npt.NDArray[np.int32]:
    """nearest_int of ggml, also for what it cannot round; works in `values`."""
    np.add(values, _ROUNDER, out=values)
    rounded = values.view(np.int32)
    np.bitwise_and(rounded, np.int32(0x007FFFFF), out=rounded)
    np.subtract(rounded, np.int32(0x00400000), out=rounded)
    return rounded

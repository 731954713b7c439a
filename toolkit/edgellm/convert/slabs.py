"""Slabs of rows, read by pread, changed and quantized by worker threads, and handed out in file order.

The workers begin at once and run ahead of whoever takes the slabs, up to a bound in bytes: they have work while the
header of the file is still being found. Memory stays below that, however large the model is.
"""

from __future__ import annotations

import concurrent.futures as futures
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import NamedTuple

import numpy as np

from edgellm.convert import k_quants, rows
from edgellm.convert.source import PlannedTensor, Source
from edgellm.errors import BadInputError, ResourceError
from edgellm.machine.memory import available_memory_bytes, headroom
from edgellm.native import ggml
from edgellm.shape import tensor_bytes
from edgellm.units import MIB, format_bytes

SLAB_WEIGHTS = 1 << 19
# What may wait to be taken: at most this, and a part of the memory that is free.
AHEAD_BYTES = 256 * 1024**2
_PART_OF_FREE = 16
# While a worker packs: a weight as read, in float32, changed, and packed; its stack and, mapped at once, its heap; and
# for the vocabulary.
_BYTES_PER_WEIGHT = 16
_STACK_BYTES, _HEAP_BYTES = 8 * MIB, 64 * MIB
_FIXED_BYTES = 48 * MIB
# (tensor name, first row, rows (n_rows, n_columns) float32, ggml type) -> (n_rows, row_bytes); called from any thread
Encode = Callable[[str, int, ggml.Floats, str], ggml.Bytes]


class Slab(NamedTuple):
    """Packed rows of one tensor; `is_last` of its last ones."""

    tensor: PlannedTensor
    n_weights: int
    data: memoryview
    is_last: bool


class _Job(NamedTuple):
    tensor: PlannedTensor
    low: int
    high: int
    n_bytes: int
    packed: futures.Future[memoryview]


class Slabs:
    """All rows of a model in the types asked for; iterate once, inside the block.

    Args:
        types: ggml type of every tensor.
        encode: packs the rows of the tensors that change type; by default as ggml's own quantizers do.
        slab_weights: weights in one call of `encode`, rounded to rows; more is faster where `encode` works column by
            column, and takes more memory.

    Raises:
        ResourceError: the least that the workers need is more than this process may take.

    Raises while iterated:
        BadInputError: a source file is shorter than its header said, or holds NaN or infinity.
    """

    def __init__(
        self,
        source: Source,
        types: dict[str, str],
        *,
        n_workers: int,
        encode: Encode | None = None,
        slab_weights: int | None = None,
    ) -> None:
        check_memory(source, n_workers=n_workers, slab_weights=slab_weights)
        self._types, self._encode = types, encode or _plain_encode
        self._todo = _ranges(source, slab_weights or SLAB_WEIGHTS)
        self._pending: deque[_Job] = deque()
        self._pending_bytes = 0
        self._ahead_bytes = min(AHEAD_BYTES, (available_memory_bytes() or 0) // _PART_OF_FREE)
        # Also where single slabs are huge, every worker has one and finds another.
        self._least_pending = 2 * n_workers
        self._readers = rows.Readers()
        self._pool = futures.ThreadPoolExecutor(n_workers)

    def __enter__(self) -> Slabs:
        self._readers.__enter__()
        self._fill()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._readers.__exit__(kind, error, trace)

    def __iter__(self) -> Iterator[Slab]:
        while self._pending:
            job = self._pending.popleft()
            self._pending_bytes -= job.n_bytes
            self._fill()
            n_weights = (job.high - job.low) * job.tensor.n_columns
            yield Slab(job.tensor, n_weights, job.packed.result(), job.high == job.tensor.n_rows)

    def _fill(self) -> None:
        while self._pending_bytes < self._ahead_bytes or len(self._pending) < self._least_pending:
            following = next(self._todo, None)
            if following is None:
                return
            tensor, low, high = following
            kind = self._types[tensor.name]
            n_bytes = tensor_bytes((high - low, tensor.n_columns), kind)
            packed = self._pool.submit(_pack, tensor, low, high, kind, self._readers, self._encode)
            self._pending.append(_Job(tensor, low, high, n_bytes, packed))
            self._pending_bytes += n_bytes


def _ranges(source: Source, slab_weights: int) -> Iterator[tuple[PlannedTensor, int, int]]:
    """(tensor, first row, end row)."""
    for tensor in source.tensors:
        step = _step(tensor, slab_weights)
        for low in range(0, tensor.n_rows, step):
            yield tensor, low, min(low + step, tensor.n_rows)


def _step(tensor: PlannedTensor, slab_weights: int) -> int:
    """Rows of one slab: whole groups of those that change places."""
    step = max(1, slab_weights // tensor.n_columns)
    group = max(part.group_rows for part in tensor.parts)
    return max(group, step // group * group)


def check_memory(source: Source, *, n_workers: int, slab_weights: int | None = None) -> None:
    """Refuse before the work what would end in the middle of it, without a word where the kernel kills.

    Args:
        slab_weights: as in `Slabs`.

    Raises:
        ResourceError: the least that the workers need is more than this process may take.
    """
    if not source.tensors:
        return
    n_weights = slab_weights or SLAB_WEIGHTS
    largest = max(min(_step(t, n_weights), t.n_rows) * t.n_columns for t in source.tensors)
    bound = headroom()
    per_worker_bytes = _BYTES_PER_WEIGHT * largest + (
        _STACK_BYTES + _HEAP_BYTES if bound.counts_mapped else 0
    )
    needed_bytes = _FIXED_BYTES + n_workers * per_worker_bytes
    if needed_bytes > bound.left_bytes:
        raise ResourceError(
            f"converting with {n_workers} workers needs about {format_bytes(needed_bytes)} more memory, of "
            f"{format_bytes(bound.limit_bytes)} ({bound.name}) {format_bytes(bound.left_bytes)} are left",
            hint="give it more memory, or fewer workers: --jobs 1",
        )


def _pack(
    tensor: PlannedTensor, low: int, high: int, to_type: str, readers: rows.Readers, encode: Encode
) -> memoryview:
    pieces = [(part, first, last) for part, first, last in rows.parts_of(tensor, low, high)]
    copied = tensor.source_type == to_type and not tensor.plus
    if copied and all(part.stored for part, _, _ in pieces):
        packed = [
            rows.packed_rows(part, tensor.n_columns, first, last, readers) for part, first, last in pieces
        ]
        whole = packed[0] if len(packed) == 1 else np.concatenate(packed)
        ggml.check_rows(whole, to_type, f"tensor {tensor.name!r}, rows {low} to {high - 1}")
        return _flat(whole)
    floats = [rows.float_rows(part, tensor.n_columns, first, last, readers) for part, first, last in pieces]
    values = floats[0] if len(floats) == 1 else np.concatenate(floats)
    if tensor.plus:
        values = values + np.float32(tensor.plus)
    try:
        return _flat(encode(tensor.name, low, values, to_type))
    except BadInputError as err:
        raise BadInputError(f"tensor {tensor.name!r}, rows {low} to {high - 1}: {err.message}") from err


def _plain_encode(_name: str, _first_row: int, values: ggml.Floats, to_type: str) -> ggml.Bytes:
    return k_quants.quantize_rows(values, to_type)


def _flat(packed: ggml.Bytes) -> memoryview:
    return np.ascontiguousarray(packed).data.cast("B")

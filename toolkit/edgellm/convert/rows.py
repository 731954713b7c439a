"""Rows of a planned tensor, read from where they are: at offsets, in the order the output needs, from any thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgellm.checkpoint import SourceTensor
from edgellm.convert import hints
from edgellm.convert.source import LowRank, Part, PlannedTensor
from edgellm.errors import BadInputError
from edgellm.formats import ggml_types
from edgellm.native import ggml

# OpenBLAS uses one thread up to this product of the three sizes (SMP_THRESHOLD_MIN * GEMM_MULTITHREAD_THRESHOLD).
_BLAS_ONE_THREAD = 1 << 18


class Readers:
    """Open source files, read at offsets from any thread."""

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Readers:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def read(self, path: Path, offset: int, n_bytes: int) -> ggml.Bytes:
        try:
            return self._read(path, offset, n_bytes)
        except OSError as err:
            raise BadInputError(f"{path}: cannot be read: {err.strerror or err}") from err

    def _read(self, path: Path, offset: int, n_bytes: int) -> ggml.Bytes:
        with self._lock:
            fd = self._open.get(path)
            if fd is None:
                fd = self._open[path] = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        buffer = np.empty(n_bytes, dtype=np.uint8)
        done = 0
        while done < n_bytes:
            got = os.preadv(fd, [buffer.data[done:]], offset + done)
            if got == 0:
                raise BadInputError(
                    f"{path}: ends at byte {offset + done}, its header promises more; was it truncated?",
                    hint=hints.TRUNCATED,
                )
            done += got
        return buffer


def parts_of(tensor: PlannedTensor, low: int, high: int) -> Iterator[tuple[Part, int, int]]:
    """The parts that give output rows low..high-1, each with its own rows."""
    start = 0
    for part in tensor.parts:
        first, last = max(low, start) - start, min(high, start + part.n_rows) - start
        if first < last:
            yield part, first, last
        start += part.n_rows


def read_rows(tensor: PlannedTensor, low: int, high: int) -> ggml.Floats:
    """Output rows low..high-1 as float32, (n_rows, n_columns)."""
    with Readers() as readers:
        floats = [
            float_rows(part, tensor.n_columns, first, last, readers)
            for part, first, last in parts_of(tensor, low, high)
        ]
    return np.concatenate(floats) + np.float32(tensor.plus)


def float_rows(part: Part, n_columns: int, low: int, high: int, readers: Readers) -> ggml.Floats:
    """A part's rows low..high-1 as float32, (n_rows, n_columns)."""
    if isinstance(part.origin, np.ndarray):
        values: ggml.Floats = part.origin.reshape(-1, n_columns)[part.source_rows(low, high)]
        return values
    packed = packed_rows(part, n_columns, low, high, readers)
    floats = ggml.dequantize_rows(packed, part.type_name, n_columns)
    if part.low_rank is not None:
        _add_product(floats, *_factors(part, part.low_rank, low, high, readers))
    return floats


def _factors(
    part: Part, added: LowRank, low: int, high: int, readers: Readers
) -> tuple[ggml.Floats, ggml.Floats]:
    """What is multiplied for the part's rows low..high-1: (n_rows, rank) and (rank, n_columns)."""
    left, right = added.left, added.right
    if added.transposed:
        of_rows = Part(left, left.shape[1], transposed=True)
        rank = left.shape[0]
    else:
        of_rows = part._replace(origin=left, transposed=False, low_rank=None)
        rank = left.shape[1]
    factors = float_rows(of_rows, rank, low, high, readers)
    common = float_rows(Part(right, right.shape[0]), right.shape[1], 0, right.shape[0], readers)
    scaled: ggml.Floats = np.multiply(factors, np.float32(added.scale))
    return scaled, common.T if added.transposed else common


def _add_product(floats: ggml.Floats, left: ggml.Floats, right: ggml.Floats) -> None:
    """Add left @ right in place, in blocks that OpenBLAS computes in the calling thread.

    Every core runs a thread that does this; were each product spread over all cores again, it would take ten times as
    long, and its last bits would depend on the machine.
    """
    n_rows, n_columns = floats.shape
    rank = left.shape[1]
    width = min(n_columns, 512, max(1, _BLAS_ONE_THREAD // (8 * rank)))
    height = max(1, _BLAS_ONE_THREAD // (width * rank))
    with np.errstate(over="ignore", invalid="ignore"):  # whoever encodes the rows refuses what is not finite
        for i in range(0, n_rows, height):
            for j in range(0, n_columns, width):
                floats[i : i + height, j : j + width] += np.matmul(
                    left[i : i + height], right[:, j : j + width]
                )


def packed_rows(part: Part, n_columns: int, low: int, high: int, readers: Readers) -> ggml.Bytes:
    """A part's rows low..high-1 as stored in the source, (n_rows, row_bytes) uint8."""
    origin = part.origin
    assert not isinstance(origin, np.ndarray)
    if part.transposed:
        return _packed_columns(origin, low, high, readers)
    row_bytes = ggml_types.BY_NAME[origin.type_name].row_bytes(n_columns)
    index = part.source_rows(low, high)
    first, last = int(index.min()), int(index.max())
    if last - first + 1 <= 2 * len(index):
        data = readers.read(origin.path, origin.offset + first * row_bytes, (last - first + 1) * row_bytes)
        block = data.reshape(last - first + 1, row_bytes)
        return block if part.order is None else block[index - first]
    runs = np.split(index, np.flatnonzero(np.diff(index) != 1) + 1)
    read = [
        readers.read(origin.path, origin.offset + int(run[0]) * row_bytes, len(run) * row_bytes)
        for run in runs
    ]
    return np.concatenate(read).reshape(len(index), row_bytes)


def _packed_columns(origin: SourceTensor, low: int, high: int, readers: Readers) -> ggml.Bytes:
    """Columns low..high-1 of a matrix stored (n_in, n_out), as rows."""
    n_in, n_out = origin.shape
    item_bytes = ggml_types.BY_NAME[origin.type_name].row_bytes(1)
    column = np.empty((n_in, high - low, item_bytes), dtype=np.uint8)
    for i in range(n_in):
        offset = origin.offset + (i * n_out + low) * item_bytes
        column[i] = readers.read(origin.path, offset, (high - low) * item_bytes).reshape(
            high - low, item_bytes
        )
    return np.ascontiguousarray(column.transpose(1, 0, 2)).reshape(high - low, n_in * item_bytes)

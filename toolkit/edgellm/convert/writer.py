"""One streaming pass from a source to a finished GGUF file.

Sizes are known before the first byte, so the header comes first and nothing is rewritten. Slabs of rows are read by
pread, changed and quantized by worker threads, and written and hashed in order; memory stays at a few slabs however
large the model is.
"""

from __future__ import annotations

import concurrent.futures as futures
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgellm.convert import rows
from edgellm.convert.source import HeaderValue, PlannedTensor, Source
from edgellm.errors import BadInputError, OutputError
from edgellm.formats import ggml_types
from edgellm.native import ggml
from edgellm.shape import tensor_bytes

SLAB_WEIGHTS = 1 << 19
ALIGNMENT = 32
Progress = Callable[[int], None]
# (tensor name, first row, rows (n_rows, n_columns) float32, ggml type) -> (n_rows, row_bytes); called from any thread
Encode = Callable[[str, int, ggml.Floats, str], ggml.Bytes]


class Written(NamedTuple):
    """What was written: bytes and hash of the file, and of the tensors alone."""

    file_bytes: int
    tensor_bytes: int
    sha256: str


def write_gguf(
    path: Path,
    source: Source,
    types: dict[str, str],
    header: dict[str, HeaderValue],
    *,
    n_workers: int,
    progress: Progress | None = None,
    encode: Encode | None = None,
    slab_weights: int | None = None,
) -> Written:
    """Write the model to a new file.

    Args:
        types: ggml type of every tensor.
        progress: called with the number of weights just written.
        encode: packs the rows of the tensors that change type; by default ggml's own quantizers.
        slab_weights: weights in one call of `encode`, rounded to rows; more is faster where `encode` works column by
            column, and takes more memory.

    Raises:
        BadInputError: a source file is shorter than its header said, or holds NaN or infinity.
        OSError: the file cannot be written.
    """
    encode = encode or _plain_encode
    _write_header(path, source, types, header)
    digest = hashlib.sha256()
    with path.open("r+b") as out:
        while block := out.read(1 << 20):
            digest.update(block)
        data_bytes = 0
        with rows.Readers() as readers, futures.ThreadPoolExecutor(n_workers) as pool:
            for tensor, n_weights, data in _in_order(
                pool, n_workers, source, types, readers, encode, slab_weights or SLAB_WEIGHTS
            ):
                if data is None:
                    padding = bytes(-tensor_bytes(tensor.shape, types[tensor.name]) % ALIGNMENT)
                    out.write(padding)
                    digest.update(padding)
                    continue
                out.write(data)
                digest.update(data)
                data_bytes += len(data)
                if progress:
                    progress(n_weights)
        out.flush()
        os.fsync(out.fileno())
        return Written(out.tell(), data_bytes, digest.hexdigest())


def needed_bytes(source: Source, types: dict[str, str]) -> int:
    """Bytes of the tensors with padding; the header comes on top."""
    return sum(
        size + -size % ALIGNMENT for size in (tensor_bytes(t.shape, types[t.name]) for t in source.tensors)
    )


def header_bytes(source: Source, types: dict[str, str], header: dict[str, HeaderValue], folder: Path) -> int:
    """Bytes of the file before its first tensor; the same for all types. A scratch file is made in `folder`."""
    path = folder / "header.gguf"
    _write_header(path, source, types, header)
    try:
        return path.stat().st_size
    finally:
        path.unlink()


def _write_header(path: Path, source: Source, types: dict[str, str], header: dict[str, HeaderValue]) -> None:
    from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

    writer: Any = GGUFWriter(None, source.shape.architecture)
    writer.kv_data[0].clear()
    for key, entry in header.items():
        sub_type = GGUFValueType[entry.element_type] if entry.element_type else None
        value = entry.value.tolist() if isinstance(entry.value, np.ndarray) else entry.value
        writer.add_key_value(key, value, GGUFValueType[entry.type], sub_type=sub_type)
    for tensor in source.tensors:
        kind = ggml_types.BY_NAME[types[tensor.name]]
        byte_shape = (*tensor.shape[:-1], kind.row_bytes(tensor.shape[-1]))
        writer.add_tensor_info(
            tensor.name, byte_shape, np.dtype(np.uint8), tensor_bytes(tensor.shape, kind.name),
            raw_dtype=GGMLQuantizationType(kind.number),
        )  # fmt: skip
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.write_padding(writer.fout[0], writer.fout[0].tell())
    writer.close()


def _slabs(source: Source, slab_weights: int) -> Iterator[tuple[PlannedTensor, int, int]]:
    """(tensor, first row, end row), then (tensor, -1, -1) for the padding after it."""
    for tensor in source.tensors:
        step = max(1, slab_weights // tensor.n_columns)
        group = max(part.group_rows for part in tensor.parts)
        step = max(group, step // group * group)
        for low in range(0, tensor.n_rows, step):
            yield tensor, low, min(low + step, tensor.n_rows)
        yield tensor, -1, -1


def _in_order(
    pool: futures.ThreadPoolExecutor,
    n_workers: int,
    source: Source,
    types: dict[str, str],
    readers: rows.Readers,
    encode: Encode,
    slab_weights: int,
) -> Iterator[tuple[PlannedTensor, int, memoryview | None]]:
    """Slabs computed by the pool, handed out in file order; a few run ahead."""
    pending: deque[tuple[PlannedTensor, int, futures.Future[memoryview] | None]] = deque()
    ahead = 2 * n_workers + 1
    try:
        for tensor, low, high in _slabs(source, slab_weights):
            job = (
                pool.submit(_convert_slab, tensor, low, high, types[tensor.name], readers, encode)
                if low >= 0
                else None
            )
            pending.append((tensor, (high - low) * tensor.n_columns, job))
            while len(pending) > ahead:
                done_tensor, n_weights, done = pending.popleft()
                yield done_tensor, n_weights, done.result() if done else None
        while pending:
            done_tensor, n_weights, done = pending.popleft()
            yield done_tensor, n_weights, done.result() if done else None
    finally:
        for _, _, job in pending:
            if job:
                job.cancel()


def _convert_slab(
    tensor: PlannedTensor, low: int, high: int, to_type: str, readers: rows.Readers, encode: Encode
) -> memoryview:
    pieces = [(part, first, last) for part, first, last in rows.parts_of(tensor, low, high)]
    copied = tensor.source_type == to_type and not tensor.plus
    if copied and all(part.stored for part, _, _ in pieces):
        packed = [
            rows.packed_rows(part, tensor.n_columns, first, last, readers) for part, first, last in pieces
        ]
        whole = packed[0] if len(packed) == 1 else np.concatenate(packed)
        ggml.check_rows(whole, to_type, tensor.name)
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
    return ggml.quantize_rows(values, to_type)


def _flat(packed: ggml.Bytes) -> memoryview:
    return np.ascontiguousarray(packed).data.cast("B")


def check_free_space(directory: Path, n_bytes: int) -> None:
    """Refuse before the work starts where the disk cannot hold the result.

    Raises:
        OutputError: less is free than needed; both numbers are in the message.
    """
    import shutil

    place = directory
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < n_bytes:
        from edgellm.units import format_bytes

        raise OutputError(
            f"{directory}: {format_bytes(n_bytes)} needed, {format_bytes(free)} free",
            hint="free some space or choose a -o on another disk",
        )

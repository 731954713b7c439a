"""One streaming pass from a source to a finished GGUF file.

Sizes are known before the first byte, so the header comes first and nothing is rewritten; slabs of packed rows are
written and hashed in order.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgellm.convert.slabs import Encode, Slab, Slabs
from edgellm.convert.source import HeaderValue, Source
from edgellm.errors import OutputError
from edgellm.formats import ggml_types
from edgellm.native import ggml
from edgellm.resources import CACHE_VARIABLE
from edgellm.shape import tensor_bytes

ALIGNMENT = 32
# GGUF: magic, version and two counts; then keys, strings and arrays with their lengths, types as numbers.
_PREAMBLE_BYTES, _LENGTH_BYTES, _NUMBER_BYTES = 24, 8, 4
_VALUE_BYTES = {
    "UINT8": 1, "INT8": 1, "BOOL": 1, "UINT16": 2, "INT16": 2, "UINT32": 4, "INT32": 4, "FLOAT32": 4,
    "UINT64": 8, "INT64": 8, "FLOAT64": 8,
}  # fmt: skip
Progress = Callable[[int], None]


class Written(NamedTuple):
    """What was written.

    Attributes:
        file_bytes, sha256: of the file.  tensor_bytes: of the tensors alone, without padding.
        zero_tensors: names of those, biases apart, whose weights are all zero.
    """

    file_bytes: int
    tensor_bytes: int
    sha256: str
    zero_tensors: tuple[str, ...] = ()


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
    """Write the model to a new file; arguments and errors as in `Slabs` and `write_slabs`."""
    with Slabs(source, types, n_workers=n_workers, encode=encode, slab_weights=slab_weights) as slabs:
        return write_slabs(path, source, types, header, slabs, progress=progress)


def write_slabs(
    path: Path,
    source: Source,
    types: dict[str, str],
    header: dict[str, HeaderValue],
    slabs: Iterable[Slab],
    *,
    progress: Progress | None = None,
) -> Written:
    """Write the model to a new file from rows that are being packed.

    Args:
        types: ggml type of every tensor.
        progress: called with the number of weights just written.

    Raises:
        BadInputError: as in `Slabs`.  OSError: the file cannot be written.
    """
    write_header(path, source, types, header)
    digest = hashlib.sha256()
    with path.open("r+b") as out:
        while block := out.read(1 << 20):
            digest.update(block)
        data_bytes = 0
        zero: dict[str, bool] = {}
        for slab in slabs:
            out.write(slab.data)
            digest.update(slab.data)
            data_bytes += len(slab.data)
            zero[slab.tensor.name] = zero.get(slab.tensor.name, True) and _is_zero(slab, types)
            if slab.is_last:
                padding = bytes(-tensor_bytes(slab.tensor.shape, types[slab.tensor.name]) % ALIGNMENT)
                out.write(padding)
                digest.update(padding)
            if progress:
                progress(slab.n_weights)
        out.flush()
        os.fsync(out.fileno())
        zero_tensors = tuple(name for name in zero if zero[name] and not name.endswith(".bias"))
        return Written(out.tell(), data_bytes, digest.hexdigest(), zero_tensors)


def _is_zero(slab: Slab, types: dict[str, str]) -> bool:
    n_columns, kind = slab.tensor.n_columns, types[slab.tensor.name]
    packed = np.frombuffer(slab.data, dtype=np.uint8).reshape(slab.n_weights // n_columns, -1)
    return ggml.all_zero(packed, kind, n_columns)


def needed_bytes(source: Source, types: dict[str, str]) -> int:
    """Bytes of the tensors with padding; the header comes on top."""
    return sum(
        size + -size % ALIGNMENT for size in (tensor_bytes(t.shape, types[t.name]) for t in source.tensors)
    )


def header_bytes(source: Source, header: Mapping[str, HeaderValue], *, more_bytes: int = 0) -> int:
    """Bytes of the file before its first tensor; the same for all types of tensors.

    Args:
        more_bytes: of entries that are not in `header` yet.
    """
    infos = sum(
        _LENGTH_BYTES + len(t.name.encode()) + 2 * _NUMBER_BYTES + (len(t.shape) + 1) * _LENGTH_BYTES
        for t in source.tensors
    )
    n_bytes = _PREAMBLE_BYTES + entries_bytes(header) + more_bytes + infos
    return n_bytes + -n_bytes % ALIGNMENT


def entries_bytes(header: Mapping[str, HeaderValue]) -> int:
    """Bytes of the entries themselves, keys included."""
    total = 0
    for key, entry in header.items():
        total += _LENGTH_BYTES + len(key.encode()) + _NUMBER_BYTES
        if entry.element_type is None:
            total += _values_bytes(entry.type, [entry.value])
        else:
            total += _NUMBER_BYTES + _LENGTH_BYTES + _values_bytes(entry.element_type, entry.value)
    return total


def _values_bytes(kind: str, values: Sequence[Any]) -> int:
    if kind == "STRING":
        return sum(_LENGTH_BYTES + len(value.encode()) for value in values)
    return _VALUE_BYTES[kind] * len(values)


def write_header(path: Path, source: Source, types: dict[str, str], header: dict[str, HeaderValue]) -> None:
    """Write the part of the file before its first tensor; arguments as in `write_slabs`."""
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


def check_free_space(directory: Path, n_bytes: int, *, in_cache: bool = False) -> None:
    """Refuse before the work starts where the disk cannot hold the result.

    Args:
        in_cache: the place is chosen by EDGELLM_CACHE, not by -o.

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

        where = f"set {CACHE_VARIABLE} to a place" if in_cache else "choose a -o"
        raise OutputError(
            f"{directory}{' (in the cache)' if in_cache else ''}: {format_bytes(n_bytes)} needed, {format_bytes(free)} free",
            hint=f"free some space or {where} on another disk",
        )

"""Safetensors headers: where each tensor's bytes lie in the file. No tensor is read here.

The checks are those of the reference implementation (github.com/huggingface/safetensors, README "Format"): a
header of at most 100 MB, known dtypes, sizes that match shapes, tensors that follow one another without holes
or overlap from the first byte of the data to the last byte of the file. Also refused: duplicate names, absurd
shapes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from edgellm.errors import BadInputError
from edgellm.formats.paths import open_regular, safe_join
from edgellm.formats.plain_json import parse_json, read_json
from edgellm.units import MIB

MAX_HEADER_BYTES = 100_000_000
MAX_INDEX_BYTES = 64 * MIB
MAX_TENSORS = 1 << 20
MAX_SHARDS = 10_000
MAX_DIMS = 32
MAX_NAME_CHARS = 1024
AGAIN_HINT = "download it again, or copy it again from where it came"
_MAX_LENGTH = 1 << 48  # of one dimension; MAX_DIMS of them still multiply in no time

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


class TensorView(NamedTuple):
    """One tensor's place: `n_bytes` bytes, little-endian and row-major, from `offset` bytes into `path`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    n_bytes: int


class SafetensorsFile(NamedTuple):
    """A validated header: tensors by name, in the order of their bytes, and the writer's notes."""

    path: Path
    tensors: dict[str, TensorView]
    metadata: dict[str, str]


def read_safetensors(path: Path) -> SafetensorsFile:
    """Read and check the header of one safetensors file.

    Raises:
        MissingInputError: there is no such file.
        BadInputError: the file is truncated, has trailing bytes, or its header is not as the format demands.
    """
    with open_regular(path) as (file, file_bytes):
        header, data_start = _read_header(file, file_bytes, path.name)
    metadata = _metadata(header.pop("__metadata__", None), path.name)
    if len(header) > MAX_TENSORS:
        raise BadInputError(f"{path.name}: {len(header)} tensors, more than {MAX_TENSORS}")
    _check_names(header, path.name)
    views = [_view(name, entry, path, data_start) for name, entry in header.items()]
    views.sort(key=lambda view: (view.offset, view.n_bytes))
    end = data_start
    for view in views:
        if view.offset != end:
            what = "overlaps the tensor before it" if view.offset < end else "leaves a hole before it"
            raise BadInputError(
                f"{path.name}: tensor {view.name!r} {what}: it starts at {view.offset - data_start}, "
                f"expected {end - data_start}"
            )
        end += view.n_bytes
    if end != file_bytes:
        state = "truncated" if file_bytes < end else "followed by bytes that belong to no tensor"
        raise BadInputError(
            f"{path.name}: {state}: the file has {file_bytes} bytes, its header describes {end}",
            hint=AGAIN_HINT,
        )
    return SafetensorsFile(path, {view.name: view for view in views}, metadata)


def read_index(path: Path) -> dict[str, str]:
    """The weight map of a `model.safetensors.index.json`: tensor name -> shard file name.

    Every shard name has passed `safe_join` with the index's own directory; whether it exists is not checked.

    Raises:
        MissingInputError: there is no such file.
        BadInputError: not an index.
        UnsafeInputError: a shard's name leaves the directory.
    """
    weight_map = read_json(path, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInputError(
            f"{path.name}: weight_map is missing or empty, expected tensor names and shard names"
        )
    if len(weight_map) > MAX_TENSORS:
        raise BadInputError(f"{path.name}: weight_map has {len(weight_map)} tensors, more than {MAX_TENSORS}")
    _check_names(weight_map, path.name)
    shards = set()
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            raise BadInputError(f"{path.name}: weight_map of {name!r} is {shard!r:.60}, expected a file name")
        shards.add(shard)
    if len(shards) > MAX_SHARDS:
        raise BadInputError(f"{path.name}: {len(shards)} shards, more than {MAX_SHARDS}")
    for shard in sorted(shards):
        safe_join(path.parent, shard)
    return weight_map


def _check_names(names: Iterable[str], where: str) -> None:
    longest = max(map(len, names), default=0)
    if longest > MAX_NAME_CHARS:
        raise BadInputError(
            f"{where}: the name of a tensor has {longest} characters, more than {MAX_NAME_CHARS}"
        )


def _read_header(file: BinaryIO, file_bytes: int, where: str) -> tuple[dict[str, Any], int]:
    """The parsed header, and the offset of the first byte of data."""
    prefix = file.read(8)
    if len(prefix) < 8:
        raise BadInputError(f"{where}: {file_bytes} bytes, too small for a safetensors file", hint=AGAIN_HINT)
    n_header = int.from_bytes(prefix, "little")
    if n_header > MAX_HEADER_BYTES:
        raise BadInputError(
            f"{where}: header of {n_header} bytes, more than {MAX_HEADER_BYTES}: not safetensors?",
            hint=AGAIN_HINT,
        )
    if n_header + 8 > file_bytes:
        raise BadInputError(
            f"{where}: header of {n_header} bytes in a file of {file_bytes} bytes: truncated?",
            hint=AGAIN_HINT,
        )
    raw = file.read(n_header)
    if len(raw) != n_header or not raw.startswith(b"{"):
        raise BadInputError(
            f"{where}: header begins with {raw[:4]!r}, expected '{{': not safetensors?", hint=AGAIN_HINT
        )
    return parse_json(raw, where), 8 + n_header


def _metadata(value: object, where: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise BadInputError(f"{where}: __metadata__ must map strings to strings")
    return value


def _view(name: str, entry: object, path: Path, data_start: int) -> TensorView:
    where = f"{path.name}: tensor {name[:100]!r}"
    if not isinstance(entry, dict):
        raise BadInputError(f"{where}: expected an object with dtype, shape and data_offsets")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise BadInputError(f"{where}: unknown dtype {dtype!r:.60}")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMS
        or not all(_is_length(length) for length in shape)
    ):
        raise BadInputError(
            f"{where}: shape {shape!r:.60}, expected at most {MAX_DIMS} lengths from 0 to 2^48"
        )
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(_is_length(offset) for offset in offsets)
    ):
        raise BadInputError(f"{where}: data_offsets {offsets!r:.60}, expected a begin and an end")
    n_bits = DTYPE_BITS[dtype]
    for length in shape:
        n_bits *= length
    begin, end = offsets
    if n_bits % 8 or end - begin != n_bits // 8:
        raise BadInputError(
            f"{where}: {dtype} of shape {shape} takes {_bytes(n_bits)}, its data_offsets give {end - begin}"
        )
    return TensorView(name, dtype, tuple(shape), path, data_start + begin, end - begin)


def _bytes(n_bits: int) -> str:
    if n_bits > 1 << 63:
        return "more bytes than any file has"
    return f"{n_bits} bits" if n_bits % 8 else f"{n_bits // 8} bytes"


def _is_length(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_LENGTH

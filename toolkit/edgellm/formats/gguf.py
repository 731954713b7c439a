"""GGUF headers: metadata and tensor places, read and checked before anything native sees the file.

Source of the format: ggml/docs/gguf.md and ggml/src/gguf.cpp. What ggml refuses is refused here by the
same rules; also empty tensors, NUL in names, and sizes that no real model has. No tensor is read. What the
metadata mean is checked by `gguf_vocab` and `gguf_model`.

Text is strict UTF-8. Only the strings of `tokenizer.*` arrays may hold other bytes (some vocabularies do):
they are decoded with Python's `surrogateescape`, so that `text.encode("utf-8", "surrogateescape")` gives the
bytes of the file back and tokens can be written again unchanged.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np

from edgellm.errors import BadInputError
from edgellm.formats import ggml_types
from edgellm.formats.paths import open_regular
from edgellm.formats.plain_json import Fields
from edgellm.units import MIB

MAX_HEADER_BYTES = 128 * MIB  # metadata and tensor descriptions; 262,144 tokens and their merges take 17
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_KEY_BYTES = (1 << 16) - 1
MAX_NAME_BYTES = 63
MAX_STRING_BYTES = 16 * MIB
MAX_ARRAY_ELEMENTS = 64 * 1024**2
MAX_ARRAY_STRINGS = 4 * 1024**2  # each becomes a Python object; the largest known vocabulary has 262,144
MAX_ALIGNMENT = MIB
MAX_DIMS = 4
DEFAULT_ALIGNMENT = 32

_READ_BYTES = 1 << 20
_U64 = struct.Struct("<Q")
_SCALARS = {
    0: ("UINT8", "<u1"), 1: ("INT8", "<i1"), 2: ("UINT16", "<u2"), 3: ("INT16", "<i2"), 4: ("UINT32", "<u4"),
    5: ("INT32", "<i4"), 6: ("FLOAT32", "<f4"), 7: ("BOOL", "<u1"), 10: ("UINT64", "<u8"),
    11: ("INT64", "<i8"), 12: ("FLOAT64", "<f8"),
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_REMOVED_TYPES = {4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4"}
_REMOVED_TYPES |= {37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8"}
_NO_GGUF_HINT = "download it again if it should be one; a model of Hugging Face is named by its directory"
_OLD_MAGICS = (b"GGML", b"LMGG", b"GGMF", b"FMGG", b"GGJT", b"TJGG", b"GGLA", b"ALGG")


class GGUFValue(NamedTuple):
    """One metadata value with its type in the file, so that it can be written back unchanged.

    Attributes:
        type: `UINT8` ... `FLOAT64`, `BOOL`, `STRING` or `ARRAY`.
        element_type: the type of an array's elements; None for a scalar.
        value: int, float, bool or str; for an array a numpy array of that type or a list of str.
    """

    type: str
    element_type: str | None
    value: Any


class GGUFTensor(NamedTuple):
    """One tensor's place: rows first (the reverse of ggml's `ne`), `offset` is in bytes into the file."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    n_bytes: int


T = TypeVar("T")
D = TypeVar("D")


@dataclass(frozen=True)
class GGUFFile:
    """A validated header. `tensors` and `metadata` are in the order of the file."""

    path: Path
    version: int
    alignment: int
    data_offset: int
    file_bytes: int
    metadata: dict[str, GGUFValue]
    tensors: dict[str, GGUFTensor]

    @property
    def trailing_bytes(self) -> int:
        """Bytes behind the last tensor and its padding, which nothing reads."""
        end = max((t.offset + t.n_bytes for t in self.tensors.values()), default=self.data_offset)
        return max(0, self.file_bytes - (end + -(end - self.data_offset) % self.alignment))

    @property
    def fields(self) -> Fields:
        """The metadata with bounded getters: `file.fields.integer("llama.block_count", 1, 512)`."""
        return Fields({key: value.value for key, value in self.metadata.items()}, self.path.name)

    def get(self, key: str, kind: type[T], default: D) -> T | D:
        """A metadata value of Python type `kind`, or `default` where the key is absent.

        Args:
            kind: int, float, bool, str, list (of str) or numpy.ndarray; a bool is not an int.

        Raises:
            BadInputError: the value has another type.
        """
        entry = self.metadata.get(key)
        if entry is None:
            return default
        if type(entry.value) is not kind:  # not isinstance: True is an int for Python
            found = f"{entry.type} of {entry.element_type}" if entry.element_type else entry.type
            raise BadInputError(f"{self.path.name}: {key} has type {found}, expected {kind.__name__}")
        return entry.value


def read_gguf(path: Path) -> GGUFFile:
    """Read and check the header of a GGUF file, version 2 or 3, little-endian. Trailing bytes are allowed.

    Raises:
        MissingInputError: there is no such file.
        BadInputError: not GGUF, another version or byte order, one part of a split model, truncated, or a
            header that contradicts itself or the file's size.
    """
    with open_regular(path) as (file, file_bytes):
        cursor = _Cursor(file, file_bytes, path.name)
        version = _read_version(cursor)
        n_tensors = cursor.count("number of tensors", MAX_TENSORS)
        n_keys = cursor.count("number of metadata keys", MAX_KEYS)
        metadata: dict[str, GGUFValue] = {}
        for index in range(n_keys):
            key = cursor.text(MAX_KEY_BYTES, f"key {index}")
            if not key or "\0" in key:  # ggml compares keys as C strings
                raise cursor.error(f"metadata key {index} is empty or holds a NUL: {key[:80]!r}")
            if key in metadata:
                raise cursor.error(f"duplicate metadata key {key[:200]!r}")
            metadata[key] = _read_value(cursor, key)
        alignment = _alignment(metadata, path.name)
        _refuse_split(metadata, path.name)
        raw = [_read_tensor(cursor, index) for index in range(n_tensors)]
        data_offset = _padded(cursor.position, alignment) if raw else cursor.position
    tensors = _place(raw, data_offset, alignment, file_bytes, path.name)
    return GGUFFile(path, version, alignment, data_offset, file_bytes, metadata, tensors)


class _Cursor:
    """Reads forward through the header; every read is checked against the file's size before it allocates."""

    def __init__(self, file: BinaryIO, file_bytes: int, where: str) -> None:
        self.file = file
        self.file_bytes = file_bytes
        self.where = where
        self.buffer = b""
        self.base = 0  # offset in the file of buffer[0]
        self.at = 0  # next byte in the buffer

    @property
    def position(self) -> int:
        """Offset in the file of the next byte."""
        return self.base + self.at

    def error(self, message: str) -> BadInputError:
        return BadInputError(f"{self.where}: {message}")

    def need(self, n_bytes: int, what: str) -> None:
        """Have the next `n_bytes` in the buffer."""
        if self.at + n_bytes <= len(self.buffer):
            return
        remaining = self.file_bytes - self.position
        if n_bytes > remaining:
            raise self.error(
                f"truncated: {what} takes {n_bytes} bytes, {remaining} of {self.file_bytes} remain"
            )
        if self.position + n_bytes > MAX_HEADER_BYTES:
            raise self.error(f"header larger than the {MAX_HEADER_BYTES} bytes allowed, at {what}")
        rest = self.buffer[self.at :]
        # Reading as much again as is held keeps the copying of `rest` linear in all.
        self.buffer = rest + self.file.read(max(n_bytes, len(rest), _READ_BYTES))
        self.base, self.at = self.position, 0
        if len(self.buffer) < n_bytes:
            raise self.error(f"shrank while it was read, at {what}")

    def take(self, n_bytes: int, what: str) -> bytes:
        self.need(n_bytes, what)
        self.at += n_bytes
        return self.buffer[self.at - n_bytes : self.at]

    def u32(self, what: str) -> int:
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        return int.from_bytes(self.take(8, what), "little")

    def count(self, what: str, high: int) -> int:
        value = self.u64(what)
        if value > high:
            raise self.error(f"{what} is {value}, more than {high}")
        return value

    def text(self, max_bytes: int, what: str, errors: str = "strict") -> str:
        n_bytes = self.count(f"length of {what}", max_bytes)
        try:
            return self.take(n_bytes, what).decode("utf-8", errors)
        except UnicodeDecodeError as err:
            raise self.error(f"{what} is not UTF-8 at byte {err.start}") from None

    def texts(self, count: int, what: str, errors: str) -> list[str]:
        """`count` strings in a row; the loop that decides how long opening a model takes."""
        texts: list[str] = []
        append, unpack_length = texts.append, _U64.unpack_from
        buffer, at, held = self.buffer, self.at, len(self.buffer)
        try:
            for _ in range(count):
                start = at + 8
                end = start + unpack_length(buffer, at)[0] if start <= held else held + 1
                if end > held:
                    self.at = at
                    self._hold_string(what)
                    buffer, at, held = self.buffer, 0, len(self.buffer)
                    start = 8
                    end = start + unpack_length(buffer, 0)[0]
                append(buffer[start:end].decode("utf-8", errors))
                at = end
        except UnicodeDecodeError as err:
            raise self.error(f"element {len(texts)} of {what} is not UTF-8 at byte {err.start}") from None
        self.at = at
        if held > MAX_STRING_BYTES and texts and max(map(len, texts)) > MAX_STRING_BYTES:
            raise self.error(f"a string in {what} has more than {MAX_STRING_BYTES} characters")
        return texts

    def _hold_string(self, what: str) -> None:
        """Have a whole string with its length at the begin of the buffer."""
        self.need(8, what)
        n_bytes = _U64.unpack_from(self.buffer, self.at)[0]
        if n_bytes > MAX_STRING_BYTES:
            raise self.error(f"length of a string in {what} is {n_bytes}, more than {MAX_STRING_BYTES}")
        self.need(8 + n_bytes, what)
        self.buffer, self.base, self.at = self.buffer[self.at :], self.position, 0


def _read_version(cursor: _Cursor) -> int:
    if cursor.file_bytes == 0:
        raise BadInputError(f"{cursor.where}: empty file, expected GGUF", hint=_NO_GGUF_HINT)
    magic = cursor.take(min(4, cursor.file_bytes), "magic")
    if magic in _OLD_MAGICS:
        raise BadInputError(
            f"{cursor.where}: magic {magic.decode()}: a format from before GGUF",
            hint="convert the original model again; llama.cpp dropped this format in 2023",
        )
    if magic != b"GGUF":
        raise BadInputError(
            f"{cursor.where}: not a GGUF file: magic {magic!r}, expected b'GGUF'", hint=_NO_GGUF_HINT
        )
    if cursor.file_bytes < 24:
        raise cursor.error(f"truncated: {cursor.file_bytes} bytes, a GGUF header has at least 24")
    version = cursor.u32("version")
    if version in (0, 1):
        detail = "no such version" if version == 0 else "version 1 is no longer supported by ggml"
        raise cursor.error(f"GGUF version {version}: {detail}, expected 2 or 3")
    if version & 0xFFFF == 0:
        raise cursor.error(f"GGUF version {version}: the file is big-endian, expected little-endian")
    if version > 3:
        raise cursor.error(f"GGUF version {version} is newer than the versions known here, 2 and 3")
    return version


def _read_value(cursor: _Cursor, key: str) -> GGUFValue:
    what = f"metadata {key[:80]!r}"
    number = cursor.u32(f"type of {what}")
    if number == _STRING:
        return GGUFValue("STRING", None, cursor.text(MAX_STRING_BYTES, what))
    if number != _ARRAY:
        name, dtype = _scalar_type(cursor, number, what)
        value = np.frombuffer(cursor.take(np.dtype(dtype).itemsize, what), dtype)[0].item()
        return GGUFValue(name, None, bool(value) if name == "BOOL" else value)
    number = cursor.u32(f"element type of {what}")
    if number == _ARRAY:
        raise cursor.error(f"{what} is an array of arrays, which ggml does not read")
    if number == _STRING:
        count = cursor.count(f"length of array {what}", MAX_ARRAY_STRINGS)
        if 8 * count > cursor.file_bytes - cursor.position:
            raise cursor.error(f"truncated: {what} has {count} strings, more than the file can hold")
        errors = "surrogateescape" if key.startswith("tokenizer.") else "strict"
        return GGUFValue("ARRAY", "STRING", cursor.texts(count, what, errors))
    name, dtype = _scalar_type(cursor, number, what)
    count = cursor.count(f"length of array {what}", MAX_ARRAY_ELEMENTS)
    array = np.frombuffer(cursor.take(count * np.dtype(dtype).itemsize, what), dtype)
    return GGUFValue("ARRAY", name, array != 0 if name == "BOOL" else array)


def _scalar_type(cursor: _Cursor, number: int, what: str) -> tuple[str, str]:
    if number not in _SCALARS:
        raise cursor.error(f"{what} has unknown type {number}")
    return _SCALARS[number]


def _alignment(metadata: dict[str, GGUFValue], where: str) -> int:
    entry = metadata.get("general.alignment")
    if entry is None:
        return DEFAULT_ALIGNMENT
    if entry.type != "UINT32":
        raise BadInputError(f"{where}: general.alignment has type {entry.type}, expected UINT32")
    alignment: int = entry.value
    if alignment.bit_count() != 1 or alignment > MAX_ALIGNMENT:
        raise BadInputError(
            f"{where}: general.alignment is {alignment}, expected a power of two up to {MAX_ALIGNMENT}"
        )
    return alignment


def _refuse_split(metadata: dict[str, GGUFValue], where: str) -> None:
    entry = metadata.get("split.count")
    if entry is None or (type(entry.value) is int and 0 <= entry.value <= 1):
        return
    shown = entry.value if type(entry.value) is int else f"of type {entry.type}"
    raise BadInputError(
        f"{where}: one part of a model split into several files (split.count is {shown}), not supported yet",
        hint="merge the parts first: llama-gguf-split --merge FIRST_PART.gguf MERGED.gguf",
    )


class _RawTensor(NamedTuple):
    """A tensor's description: rows first, its offset counted from the begin of the data."""

    name: str
    shape: tuple[int, ...]
    kind: ggml_types.GGMLType
    offset: int


def _read_tensor(cursor: _Cursor, index: int) -> _RawTensor:
    name = cursor.text(MAX_NAME_BYTES, f"name of tensor {index}")
    what = f"tensor {name!r}"
    if "\0" in name:  # ggml would read the part before it
        raise cursor.error(f"{what}: its name holds a NUL")
    n_dims = cursor.u32(f"number of dimensions of {what}")
    if not 1 <= n_dims <= MAX_DIMS:
        raise cursor.error(f"{what} has {n_dims} dimensions, expected 1 to {MAX_DIMS}")
    ne = struct.unpack(f"<{n_dims}q", cursor.take(8 * n_dims, f"shape of {what}"))
    if min(ne) < 1:
        raise cursor.error(f"{what} has shape {ne}, expected lengths of at least 1")
    number = cursor.u32(f"type of {what}")
    kind = ggml_types.BY_NUMBER.get(number)
    if kind is None:
        removed = _REMOVED_TYPES.get(number)
        problem = (
            f"type {number} ({removed}), which ggml has removed" if removed else f"unknown type {number}"
        )
        raise cursor.error(f"{what} has {problem}")
    if ne[0] % kind.block:
        raise cursor.error(
            f"{what} has rows of {ne[0]}, not a multiple of {kind.name}'s block of {kind.block}"
        )
    return _RawTensor(name, ne[::-1], kind, cursor.u64(f"offset of {what}"))


def _place(
    raw: list[_RawTensor], data_offset: int, alignment: int, file_bytes: int, where: str
) -> dict[str, GGUFTensor]:
    """Tensors by name, once it is certain that they follow one another inside the file as ggml demands."""
    tensors: dict[str, GGUFTensor] = {}
    expected = 0
    for name, shape, kind, offset in raw:
        what = f"{where}: tensor {name!r}"
        if name in tensors:
            raise BadInputError(f"{where}: duplicate tensor name {name!r}")
        if offset % alignment:
            raise BadInputError(f"{what} has offset {offset}, not a multiple of the alignment {alignment}")
        if offset != expected:
            problem = "overlaps the tensor before it" if offset < expected else "leaves a hole before it"
            raise BadInputError(f"{what} {problem}: its offset is {offset}, expected {expected}")
        n_rows = 1
        for length in shape[:-1]:
            n_rows *= length
        n_bytes = n_rows * kind.row_bytes(shape[-1])
        if data_offset + offset + n_bytes > file_bytes:
            raise BadInputError(
                f"{what} ends at byte {data_offset + offset + n_bytes}, the file has {file_bytes}: truncated?"
            )
        tensors[name] = GGUFTensor(name, shape, kind.name, data_offset + offset, n_bytes)
        expected = _padded(offset + n_bytes, alignment)
    return tensors


def _padded(n_bytes: int, alignment: int) -> int:
    return n_bytes + -n_bytes % alignment

"""Our own JSON and TOML files: frozen structs, strict both ways.

Unknown keys are errors, numbers are finite, and what was written reads back equal. Every type that
crosses a file boundary derives from `Record`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import msgspec

from edgellm.errors import BadInputError
from edgellm.formats.paths import open_regular

MAX_RECORD_BYTES = 64 * 1024**2


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A frozen, strictly decoded struct; fields are given by keyword."""


R = TypeVar("R", bound=Record)


def to_json(record: Record, *, indent: int = 2) -> bytes:
    """The record as UTF-8 JSON with a final newline; fields in declared order, so equal records, equal bytes.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot hold.
    """
    _check_finite(msgspec.to_builtins(record), type(record).__name__)
    return msgspec.json.format(msgspec.json.encode(record), indent=indent) + b"\n"


def to_builtins(record: Record) -> Any:
    """The record as plain dicts, lists and scalars."""
    return msgspec.to_builtins(record)


def from_json(kind: type[R], data: bytes, where: str) -> R:
    """Decode JSON into a record.

    Args:
        where: the file or stream named in errors.

    Raises:
        BadInputError: not JSON, or a field that is missing, unknown or of the wrong type.
    """
    if len(data) > MAX_RECORD_BYTES:
        raise BadInputError(f"{where}: {len(data)} bytes, more than {MAX_RECORD_BYTES} allowed")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise BadInputError(f"{where}: not a valid {kind.__name__}: {err}") from err


def from_builtins(kind: type[R], value: Any, where: str) -> R:
    """Decode plain dicts and lists (for example parsed TOML) into a record; errors as in `from_json`."""
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError) as err:
        raise BadInputError(f"{where}: not a valid {kind.__name__}: {err}") from err


def from_toml(kind: type[R], data: bytes, where: str) -> R:
    """Decode TOML into a record; errors as in `from_json`."""
    import tomllib

    try:
        value = tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as err:
        raise BadInputError(f"{where}: not TOML: {err}") from err
    return from_builtins(kind, value, where)


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Read a whole file of at most `max_bytes`.

    Raises:
        MissingInputError: there is no such file.
        BadInputError: the file is larger, or not a readable regular file.
    """
    with open_regular(path) as (file, _):
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise BadInputError(f"{path}: larger than the {max_bytes} bytes allowed for this kind of file")
    return data


def json_schema(kind: type[Record]) -> dict[str, Any]:
    """JSON Schema (2020-12) of a record."""
    return msgspec.json.schema(kind)


def _check_finite(value: Any, where: str) -> None:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}, which is not a finite number")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_finite(item, f"{where}.{key}")
    elif isinstance(value, list):
        for item in value:
            _check_finite(item, where)


def replace(record: R, **changes: Any) -> R:
    """A copy of the record with some fields changed."""
    return msgspec.structs.replace(record, **changes)

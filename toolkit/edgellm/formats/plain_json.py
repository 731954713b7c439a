"""JSON written by others: config.json, tokenizer.json, generation_config.json, shard indexes.

Bounded in bytes and depth, UTF-8 only (a byte order mark is skipped), no duplicate keys, no NaN or infinity,
an object at the top. Nothing in such a file is ever imported, called or used as a path. Our own files are
read by `records`, which is stricter: it knows the fields.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from edgellm.errors import BadInputError
from edgellm.formats.paths import open_regular
from edgellm.units import MIB

MAX_JSON_BYTES = 16 * MIB
MAX_TOKENIZER_JSON_BYTES = 128 * MIB  # Llama 3's tokenizer.json has 17 MB, Gemma 3's 33 MB
MAX_DEPTH = 64
MAX_TEXT_CHARS = 1 << 20

_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_UTF8_BOM = b"\xef\xbb\xbf"


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON object from a file of at most `max_bytes`.

    Raises:
        MissingInputError: there is no such file.
        BadInputError: larger, not a regular file, or refused by `parse_json`.
    """
    return parse_json(_read_bounded(path, max_bytes), path.name)


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """Parse one JSON object.

    Args:
        where: the file named in errors.

    Raises:
        BadInputError: not UTF-8, not JSON, nested deeper than 64 levels, a duplicate key, NaN or infinity,
            half a surrogate pair, or something else than an object at the top.
    """
    value = _parse(data, where)
    if not isinstance(value, dict):
        raise BadInputError(f"{where}: the top level is {_kind(value)}, expected an object")
    return value


def read_json_array(path: Path, max_bytes: int = MAX_JSON_BYTES) -> list[Any]:
    """Read a JSON array, under the same rules as `read_json`."""
    value = _parse(_read_bounded(path, max_bytes), path.name)
    if not isinstance(value, list):
        raise BadInputError(f"{path.name}: the top level is {_kind(value)}, expected an array")
    return value


def _parse(data: bytes, where: str) -> Any:
    text = _decode(data, where)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise BadInputError(f"{where}: duplicate key {short(twice)}")
        return fields

    def refuse(constant: str) -> float:
        raise BadInputError(f"{where}: {constant} is not a JSON number")

    def finite(digits: str) -> float:
        value = float(digits)
        if math.isinf(value):
            raise BadInputError(f"{where}: number {short(digits)} is out of range")
        return value

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=refuse, parse_float=finite)
    except RecursionError:
        raise BadInputError(f"{where}: nested deeper than {MAX_DEPTH} levels") from None
    except json.JSONDecodeError as err:
        raise BadInputError(f"{where}: not JSON: {err.msg} at line {err.lineno} column {err.colno}") from None
    except ValueError:  # int() refuses numbers of more than 4,300 digits
        raise BadInputError(f"{where}: a number has too many digits") from None
    _check_depth(value, where)
    if _SURROGATE_ESCAPE.search(data):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise BadInputError(f"{where}: a string holds half of a surrogate pair") from None
    return value


def _read_bounded(path: Path, max_bytes: int) -> bytes:
    with open_regular(path) as (file, n_bytes):
        if n_bytes > max_bytes:
            raise BadInputError(f"{path.name}: {n_bytes} bytes, more than the {max_bytes} allowed")
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise BadInputError(f"{path.name}: more than the {max_bytes} bytes allowed")
    return content


def _decode(data: bytes, where: str) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in data[:4]:
        raise BadInputError(f"{where}: UTF-16 or UTF-32, expected UTF-8")
    try:
        return data.removeprefix(_UTF8_BOM).decode("utf-8")
    except UnicodeDecodeError as err:
        raise BadInputError(
            f"{where}: not UTF-8: byte 0x{data[err.start]:02x} at offset {err.start}"
        ) from None


def _check_depth(value: Any, where: str) -> None:
    level: list[Any] = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise BadInputError(f"{where}: nested deeper than {MAX_DEPTH} levels")


class _Required:
    """The default of a field that has none."""


_REQUIRED: Any = _Required()

D = TypeVar("D")


class Fields:
    """Named values of a foreign file, read one by one with their type and bounds.

    A getter with a default returns it where the field is absent or null; without one, that is an error. Every
    error is a BadInputError like `config.json: num_hidden_layers is 'x', expected an integer from 1 to 1024`.

    Args:
        values: name -> value, as parsed.
        where: the file named in errors.
        prefix: put before names in errors, for example `rope_scaling.`.
    """

    def __init__(self, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
        self.values = values
        self.where = where
        self.prefix = prefix

    def __contains__(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(name) is not None

    def integer(self, name: str, low: int, high: int, default: D = _REQUIRED) -> int | D:
        """An integer from `low` to `high`; true and false are not integers."""
        expected = f"an integer from {low} to {high}"
        value = self._value(name, default, expected)
        if value is default:
            return default
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(name, value, expected)
        return value

    def integers(
        self, name: str, low: int, high: int, max_count: int, default: D = _REQUIRED
    ) -> list[int] | D:
        """At most `max_count` integers from `low` to `high`; one bare integer counts as a list of one."""
        expected = f"at most {max_count} integers from {low} to {high}"
        value = self._value(name, default, expected)
        if value is default:
            return default
        items = [value] if type(value) is int else value
        if not isinstance(items, list) or len(items) > max_count:
            raise self.wrong(name, value, expected)
        for item in items:
            if type(item) is not int or not low <= item <= high:
                raise self.wrong(name, item, expected)
        return items

    def number(self, name: str, low: float, high: float, default: D = _REQUIRED) -> float | D:
        """A finite number from `low` to `high`; integers are converted."""
        expected = f"a number from {low:g} to {high:g}"
        value = self._value(name, default, expected)
        if value is default:
            return default
        if type(value) not in (int, float) or not low <= value <= high:
            raise self.wrong(name, value, expected)
        return float(value)

    def text(self, name: str, default: D = _REQUIRED, *, max_chars: int = MAX_TEXT_CHARS) -> str | D:
        """A string of at most `max_chars` characters."""
        expected = f"a string of at most {max_chars} characters"
        value = self._value(name, default, expected)
        if value is default:
            return default
        if not isinstance(value, str) or len(value) > max_chars:
            raise self.wrong(name, value, expected)
        return value

    def flag(self, name: str, default: D = _REQUIRED) -> bool | D:
        """True or false; 0 and 1 are not flags."""
        value = self._value(name, default, "true or false")
        if value is default:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, value, "true or false")
        return value

    def section(self, name: str) -> Fields:
        """The fields of a nested object; no fields where it is absent or null."""
        value = self._value(name, {}, "an object")
        if not isinstance(value, dict):
            raise self.wrong(name, value, "an object")
        return Fields(value, self.where, f"{self.prefix}{name}.")

    def wrong(self, name: str, value: object, expected: str) -> BadInputError:
        """The error for a field that is there but not as expected."""
        return BadInputError(f"{self.where}: {self.prefix}{name} is {short(value)}, expected {expected}")

    def _value(self, name: str, default: object, expected: str) -> Any:
        value = self.values.get(name)
        if value is not None:
            return value
        if default is _REQUIRED:
            state = "null" if name in self.values else "missing"
            raise BadInputError(f"{self.where}: {self.prefix}{name} is {state}, expected {expected}")
        return default


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return "an object" if isinstance(value, dict) else names.get(type(value), "null")


def short(value: object) -> str:
    """A value as one short line for an error."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'an array'} of {len(value)}"
    if isinstance(value, str):
        return repr(value) if len(value) <= 60 else f"{value[:57]!r}... ({len(value)} characters)"
    if isinstance(value, int) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    words = repr(value)
    return words if len(words) <= 60 else words[:57] + "..."

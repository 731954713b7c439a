"""Foreign JSON is bounded, strict, and answers with one line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import BadInputError, MissingInputError
from edgellm.formats.plain_json import MAX_DEPTH, Fields, parse_json, read_json, read_json_array
from tests.support.refusals import refusal


@pytest.fixture
def fields() -> Fields:
    values = {
        "layers": 4,
        "eps": 1e-5,
        "name": "llama",
        "tied": True,
        "window": None,
        "scaling": {"factor": 8},
    }
    return Fields(values | {"eos": [1, 2], "huge": 10**400}, "config.json")


def refused(data: bytes) -> str:
    with pytest.raises(BadInputError) as caught:
        parse_json(data, "config.json")
    assert str(caught.value).startswith("config.json: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_reads_an_object(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": [1, 2.5, null, true, "\\ud83d\\ude00"]}')
    assert read_json(path) == {"a": [1, 2.5, None, True, "😀"]}


def test_a_byte_order_mark_is_skipped() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": 1}', "x") == {"a": 1}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_refused(encoding: str) -> None:
    assert "expected UTF-8" in refused('{"a": 1}'.encode(encoding))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"a": 1} x', "Extra data"),
        (b'{"a": "\xff"}', "byte 0xff at offset 7"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "duplicate key 'c'"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": 1e999}', "out of range"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "too many digits"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\udc00": 1}', "surrogate"),
        (b"[1]", "the top level is an array"),
        (b"null", "the top level is null"),
        (b'"x"', "the top level is a string"),
    ],
)
def test_refuses(data: bytes, words: str) -> None:
    assert words in refused(data)


@pytest.mark.parametrize("depth", [MAX_DEPTH, 300, 10_000, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_deep_nesting_is_refused(depth: int, opening: bytes, closing: bytes) -> None:
    data = b'{"a":' + opening * depth + b"1" + closing * depth + b"}"
    assert f"deeper than {MAX_DEPTH} levels" in refused(data)


def test_the_deepest_nesting_allowed_is_read() -> None:
    depth = MAX_DEPTH - 1
    assert parse_json(b'{"a":' + b"[" * depth + b"]" * depth + b"}", "x")


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(
        BadInputError, match=r"config\.json: 1099511627776 bytes, more than the 16777216 allowed"
    ):
        read_json(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{}", "the top level is an object"),
        (b"33", "a number"),
        (b"[1, NaN]", "NaN"),
        (b"[" * 100, "not JSON"),
    ],
)
def test_an_array_is_read_under_the_same_rules(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "modules.json"
    path.write_bytes(b'[{"a": 1}, 2]')
    assert read_json_array(path) == [{"a": 1}, 2]
    path.write_bytes(data)
    with pytest.raises(BadInputError, match=rf"^modules\.json: .*{words}"):
        read_json_array(path)
    with pytest.raises(BadInputError, match="more than the 1 allowed"):
        read_json_array(path, 1)


def test_a_missing_file_is_missing_input(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no such file"):
        read_json(tmp_path / "config.json")


def test_a_directory_and_a_pipe_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="is a directory"):
        read_json(tmp_path)
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(BadInputError, match="not a regular file"):
        read_json(tmp_path / "config.json")


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    refusal(lambda: parse_json(data, "x"))


numbers = st.integers(-(2**63), 2**64) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(st.dictionaries(st.text(max_size=8), values, max_size=4))
def test_what_json_writes_reads_back_equal(value: dict[str, Any]) -> None:
    assert parse_json(json.dumps(value).encode(), "x") == value


def test_getters_return_what_is_there(fields: Fields) -> None:
    assert fields.integer("layers", 1, 512) == 4
    assert fields.number("eps", 0, 1) == 1e-5
    assert fields.number("layers", 0, 10) == 4.0
    assert fields.text("name") == "llama"
    assert fields.flag("tied") is True
    assert fields.integers("eos", 0, 9, 4) == [1, 2]
    assert fields.integers("layers", 0, 9, 4) == [4]
    assert fields.section("scaling").integer("factor", 1, 100) == 8
    assert "layers" in fields
    assert "window" not in fields


def test_absent_and_null_give_the_default(fields: Fields) -> None:
    assert fields.integer("window", 1, 10, default=None) is None
    assert fields.integer("absent", 1, 10, default=7) == 7
    assert fields.text("absent", default="x") == "x"
    assert fields.section("absent").values == {}


@pytest.mark.parametrize(
    ("getter", "arguments", "message"),
    [
        ("integer", ("name", 1, 1024), "name is 'llama', expected an integer from 1 to 1024"),
        ("integer", ("tied", 0, 9), "tied is True, expected an integer from 0 to 9"),
        ("integer", ("eps", 0, 9), "eps is 1e-05, expected an integer from 0 to 9"),
        ("integer", ("layers", 5, 9), "layers is 4, expected an integer from 5 to 9"),
        ("integer", ("huge", 0, 9), "huge is an integer of 1329 bits, expected an integer from 0 to 9"),
        ("integer", ("absent", 0, 9), "absent is missing, expected an integer from 0 to 9"),
        ("integer", ("window", 0, 9), "window is null, expected an integer from 0 to 9"),
        ("integers", ("eos", 0, 1, 4), "eos is 2, expected at most 4 integers from 0 to 1"),
        ("integers", ("eos", 0, 9, 1), "eos is an array of 2, expected at most 1 integers from 0 to 9"),
        ("number", ("name", 0, 1), "name is 'llama', expected a number from 0 to 1"),
        ("number", ("huge", 0, 1), "huge is an integer of 1329 bits, expected a number from 0 to 1"),
        ("number", ("tied", 0, 1), "tied is True, expected a number from 0 to 1"),
        ("text", ("layers",), "layers is 4, expected a string of at most 1048576 characters"),
        ("flag", ("layers",), "layers is 4, expected true or false"),
        ("section", ("layers",), "layers is 4, expected an object"),
    ],
)
def test_getters_name_file_field_value_and_bounds(
    fields: Fields, getter: str, arguments: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(BadInputError) as caught:
        getattr(fields, getter)(*arguments)
    assert str(caught.value) == f"config.json: {message}"


def test_errors_in_a_section_carry_its_name(fields: Fields) -> None:
    with pytest.raises(
        BadInputError, match=r"^config\.json: scaling\.factor is 8, expected an integer from 9 to 10$"
    ):
        fields.section("scaling").integer("factor", 9, 10)

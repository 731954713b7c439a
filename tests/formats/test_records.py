"""Our own files are read strictly and read back equal."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import BadInputError, MissingInputError
from edgellm.formats import records


class Part(records.Record):
    name: str
    n_bytes: int = 0


class Whole(records.Record):
    parts: list[Part]
    ratio: float | None = None


parts = st.builds(Part, name=st.text(max_size=10), n_bytes=st.integers(-(2**63), 2**63 - 1))
ratios = st.none() | st.floats(allow_nan=False, allow_infinity=False)


@given(st.builds(Whole, parts=st.lists(parts, max_size=4), ratio=ratios))
def test_what_is_written_reads_back_equal(whole: Whole) -> None:
    data = records.to_json(whole)
    assert data.endswith(b"\n")
    assert records.from_json(Whole, data, "x") == whole
    assert records.to_json(records.from_json(Whole, data, "x")) == data
    assert records.from_builtins(Whole, records.to_builtins(whole), "x") == whole


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b'{"parts": [], "more": 1}',
        b'{"parts": [{"name": 1}]}',
        b'{"parts": [{}]}',
        b'{"parts": [], "ratio": NaN}',
        b'{"parts": ' + b"[" * 100_000,
    ],
)
def test_wrong_json_is_refused_with_the_place(data: bytes) -> None:
    with pytest.raises(BadInputError, match=r"^file\.json: not a valid Whole: "):
        records.from_json(Whole, data, "file.json")


def test_too_many_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 10)
    with pytest.raises(BadInputError, match="more than 10 allowed"):
        records.from_json(Whole, b'{"parts": []}', "file.json")


def test_toml_is_read_as_strictly() -> None:
    assert records.from_toml(Part, b'name = "a"\nn_bytes = 3', "x") == Part(name="a", n_bytes=3)
    for data in (b"name = ", b"\xff", b'name = "a"\nmore = 1', b"name = 1"):
        with pytest.raises(BadInputError, match=r"^x\.toml: not "):
            records.from_toml(Part, data, "x.toml")


def test_read_bounded(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(b"12345")
    assert records.read_bounded(path, 5) == b"12345"
    with pytest.raises(BadInputError, match="larger than the 4 bytes"):
        records.read_bounded(path, 4)
    with pytest.raises(BadInputError, match="is a directory"):
        records.read_bounded(tmp_path, 4)
    with pytest.raises(MissingInputError):
        records.read_bounded(tmp_path / "absent", 4)


def test_json_schema_forbids_unknown_fields() -> None:
    schema = records.json_schema(Part)
    assert schema["$defs"]["Part"]["additionalProperties"] is False


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    with pytest.raises(BadInputError, match="not a regular file"):
        records.read_bounded(pipe, 100)

"""tokenizer.model files: equal to what the sentencepiece library reads, and refused in one line when broken."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import BadInputError, MissingInputError
from edgellm.formats.sentencepiece import BPE, UNIGRAM, parse_sentencepiece, read_sentencepiece
from tests.support import tiny_tokenizers


@pytest.fixture(scope="module")
def trained() -> bytes:
    return tiny_tokenizers.bpe_model(vocab_size=600, user_defined_symbols=["<x>"], pad_id=3)


def field(number: int, value: int | float | bytes) -> bytes:
    """A protobuf field."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value & (1 << 64) - 1)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def piece(text: bytes, score: float = 0.0, kind: int = 1) -> bytes:
    return field(1, field(1, text) + field(2, score) + field(3, kind))


def test_what_the_library_says(trained: bytes) -> None:
    model = parse_sentencepiece(trained, "m")
    library = sentencepiece.SentencePieceProcessor(model_proto=trained)
    assert len(model.pieces) == library.vocab_size()
    for number, found in enumerate(model.pieces):
        assert found.text == library.id_to_piece(number)
        assert found.score == library.get_score(number)
        assert (found.kind == 2) == library.is_unknown(number)
        assert (found.kind == 3) == library.is_control(number)
        assert (found.kind == 6) == library.is_byte(number)
    ids = (library.unk_id(), library.bos_id(), library.eos_id(), library.pad_id())
    assert (model.unk_id, model.bos_id, model.eos_id, model.pad_id) == ids
    assert (model.model_type, model.byte_fallback, model.charsmap) == (BPE, True, b"")
    assert (model.add_dummy_prefix, model.remove_extra_whitespaces) == (True, False)


def test_defaults_are_those_of_the_format() -> None:
    model = parse_sentencepiece(piece(b"a") + piece(b"b") + piece(b"c"), "m")
    assert (model.model_type, model.unk_id, model.bos_id, model.eos_id, model.pad_id) == (
        UNIGRAM,
        None,
        1,
        2,
        None,
    )
    assert model.add_dummy_prefix
    assert model.remove_extra_whitespaces
    assert model.escape_whitespaces
    assert not model.treat_whitespace_as_suffix


def test_unknown_fields_are_skipped(trained: bytes) -> None:
    more = field(99, 7) + field(100, b"xyz") + field(101, 1.5) + varint(102 << 3 | 1) + bytes(8)
    assert parse_sentencepiece(trained + more, "m") == parse_sentencepiece(trained, "m")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no pieces"),
        (b"\x0a", "cut off"),
        (b"\x0a\x7f", "a field of 127 bytes where 0 are left"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "bytes where 0 are left"),
        (b"\xff" * 12, "more than 64 bits"),
        (b"\x0b", "wire type 3"),
        (b"\x02\x00", "field number 0"),
        (field(1, 5), "wrong wire type"),
        (field(2, 5), "wrong wire type"),
        (piece(b"\xff"), "piece 0 is not UTF-8"),
        (piece(b"a", float("nan")), "piece 0 has score nan"),
        (piece(b"a", float("-inf")), "piece 0 has score -inf"),
        (piece(b"a", 0.0, 9), "piece 0 has type 9"),
        (piece(b"a") + piece(b"b" * 70_000), "piece 1 has 70000 bytes"),
        (piece(b"a") + field(2, field(41, 3)), "special token 3 is outside the 1 pieces"),
    ],
)
def test_broken_files_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(BadInputError, match=words) as caught:
        parse_sentencepiece(data, "tokenizer.model")
    assert str(caught.value).startswith("tokenizer.model: ")


def test_every_truncation_is_read_or_refused(trained: bytes) -> None:
    for end in range(0, len(trained), 61):
        _read_or_refuse(trained[:end])


@settings(max_examples=60)
@given(data=st.data())
def test_flipped_bytes_are_read_or_refused(trained: bytes, data: st.DataObject) -> None:
    changed = bytearray(trained)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    _read_or_refuse(bytes(changed))


@given(data=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    _read_or_refuse(data)


def test_a_file_must_be_there_and_not_too_large(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError):
        read_sentencepiece(tmp_path / "tokenizer.model")
    with (tmp_path / "tokenizer.model").open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(BadInputError, match="larger than"):
        read_sentencepiece(tmp_path / "tokenizer.model")


def _read_or_refuse(data: bytes) -> None:
    try:
        model = parse_sentencepiece(data, "m")
    except BadInputError:
        return
    for number in (model.unk_id, model.bos_id, model.eos_id, model.pad_id):
        assert number is None or 0 <= number < len(model.pieces)

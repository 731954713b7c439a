"""SentencePiece models (`tokenizer.model`): a protobuf message, read field by field with every length checked.

Only what a tokenizer needs is kept; unknown fields are skipped, as protobuf demands. Groups, which no SentencePiece
file has, and everything that runs past its message are refused. Nothing nests deeper than the three messages here.
Source: src/sentencepiece_model.proto of google/sentencepiece.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from edgellm.errors import BadInputError
from edgellm.formats.records import read_bounded
from edgellm.units import KIB, MIB

MAX_FILE_BYTES = 64 * MIB  # Gemma's has 4
MAX_PIECES = 1 << 21
MAX_PIECE_BYTES = 64 * KIB
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM, BPE, WORD, CHARACTER = 1, 2, 3, 4
MODEL_TYPES = {UNIGRAM: "unigram", BPE: "BPE", WORD: "word", CHARACTER: "character"}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Piece(NamedTuple):
    """One token: its text, its score (higher is better) and its type, numbered as in GGUF."""

    text: str
    score: float
    kind: int


class SentencePieceModel(NamedTuple):
    """What a tokenizer.model says.

    Attributes:
        model_type: UNIGRAM or BPE; WORD and CHARACTER exist too.
        unk_id, bos_id, eos_id, pad_id: None where switched off.
        charsmap: precompiled normalization table; empty for none.
        add_dummy_prefix: a space is put before a text.
    """

    pieces: list[Piece]
    model_type: int
    byte_fallback: bool
    unk_id: int | None
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool
    treat_whitespace_as_suffix: bool


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a tokenizer.model.

    Raises:
        MissingInputError: there is no such file.
        BadInputError: larger than 64 MiB, or refused by `parse_sentencepiece`.
    """
    return parse_sentencepiece(read_bounded(path, MAX_FILE_BYTES), path.name)


def parse_sentencepiece(data: bytes, where: str) -> SentencePieceModel:
    """Parse the bytes of a tokenizer.model.

    Args:
        where: the file named in errors.

    Raises:
        BadInputError: not such a message, truncated, no pieces, a piece that is not UTF-8, or a score that is no number.
    """
    message = _Message(data, where)
    pieces: list[Piece] = []
    trainer: dict[int, int] = {}
    normalizer: dict[int, int] = {}
    charsmap = b""
    for number, value in message.fields():
        if number == 1:
            if len(pieces) >= MAX_PIECES:
                raise BadInputError(f"{where}: more than {MAX_PIECES} pieces")
            pieces.append(_piece(_Message(_bytes(value, where, number), where), len(pieces)))
        elif number == 2:
            trainer |= _integers(_Message(_bytes(value, where, number), where))
        elif number == 3:
            inner = _bytes(value, where, number)
            normalizer |= _integers(_Message(inner, where))
            charsmap = next(
                (v for n, v in _Message(inner, where).fields() if n == 2 and isinstance(v, bytes)), charsmap
            )
    if not pieces:
        raise BadInputError(f"{where}: not a SentencePiece model: it has no pieces")

    def token(field: int, default: int) -> int | None:
        value = trainer.get(field, default)
        value = value - (1 << 64) if value >= 1 << 63 else value  # protobuf's negative int32
        if value < 0:
            return None
        if value >= len(pieces):
            raise BadInputError(f"{where}: special token {value} is outside the {len(pieces)} pieces")
        return value

    return SentencePieceModel(
        pieces=pieces,
        model_type=trainer.get(3, UNIGRAM),
        byte_fallback=bool(trainer.get(35, 0)),
        unk_id=next((i for i, piece in enumerate(pieces) if piece.kind == UNKNOWN), None),
        bos_id=token(41, 1),
        eos_id=token(42, 2),
        pad_id=token(43, -1),
        charsmap=charsmap,
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        escape_whitespaces=bool(normalizer.get(5, 1)),
        treat_whitespace_as_suffix=bool(trainer.get(24, 0)),
    )


class _Message:
    """One protobuf message as its (field number, value) pairs."""

    def __init__(self, data: bytes, where: str) -> None:
        self._data = data
        self._at = 0
        self._where = where

    def fields(self) -> Iterator[tuple[int, int | float | bytes]]:
        """Integers for varints and 64 fixed bits, a float for 32, bytes for everything with a length."""
        while self._at < len(self._data):
            key = self._varint()
            number, wire = key >> 3, key & 7
            if not 0 < number < 1 << 29:
                raise self._wrong(f"field number {number}")
            if wire == _VARINT:
                yield number, self._varint()
            elif wire == _BYTES:
                yield number, self._take(self._varint())
            elif wire == _FIXED32:
                yield number, struct.unpack("<f", self._take(4))[0]
            elif wire == _FIXED64:
                yield number, int.from_bytes(self._take(8), "little")
            else:
                raise self._wrong(f"wire type {wire}")

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            if self._at >= len(self._data):
                raise self._wrong("a number that is cut off")
            byte = self._data[self._at]
            self._at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >= 1 << 64:
                    break
                return value
        raise self._wrong("a number of more than 64 bits")

    def _take(self, length: int) -> bytes:
        if length > len(self._data) - self._at:
            raise self._wrong(f"a field of {length} bytes where {len(self._data) - self._at} are left")
        taken = self._data[self._at : self._at + length]
        self._at += length
        return taken

    def _wrong(self, what: str) -> BadInputError:
        return BadInputError(
            f"{self._where}: not a SentencePiece model: {what} at byte {self._at} of a message"
        )


def _piece(message: _Message, index: int) -> Piece:
    where = message._where
    text, score, kind = b"", 0.0, NORMAL
    for number, value in message.fields():
        if number == 1:
            text = _bytes(value, where, number)
        elif number == 2 and isinstance(value, float):
            score = value
        elif number == 3 and isinstance(value, int):
            kind = value
    if len(text) > MAX_PIECE_BYTES:
        raise BadInputError(f"{where}: piece {index} has {len(text)} bytes, more than {MAX_PIECE_BYTES}")
    if not math.isfinite(score):
        raise BadInputError(f"{where}: piece {index} has score {score}")
    if not NORMAL <= kind <= BYTE:
        raise BadInputError(f"{where}: piece {index} has type {kind}, expected 1 to 6")
    try:
        return Piece(text.decode("utf-8"), score, kind)
    except UnicodeDecodeError:
        raise BadInputError(f"{where}: piece {index} is not UTF-8: {text[:20]!r}") from None


def _integers(message: _Message) -> dict[int, int]:
    """The varint fields of a message; the last one counts, as protobuf demands."""
    return {number: value for number, value in message.fields() if isinstance(value, int)}


def _bytes(value: int | float | bytes, where: str, number: int) -> bytes:
    if not isinstance(value, bytes):
        raise BadInputError(f"{where}: not a SentencePiece model: field {number} has the wrong wire type")
    return value

"""SentencePiece vocabularies as tokenizer.json writes them: BPE with byte fallback, and unigram.

llama.cpp merges SentencePiece BPE by the score of the merged token, `tokenizers` by the rank of the pair. A token's
score is made from the rank of its first merge, so that the best merge has the highest score.
"""

from __future__ import annotations

import base64
import binascii
import math
from typing import Any

from edgellm.convert.source import HeaderValue
from edgellm.convert.vocabulary.bpe import mentions
from edgellm.convert.vocabulary.tokens import (
    BYTE,
    MAX_VOCAB,
    NORMAL,
    PREFIX,
    UNKNOWN,
    USER_DEFINED,
    AddedToken,
    Candidate,
    Table,
)
from edgellm.errors import BadInputError, UnsupportedError
from edgellm.formats.plain_json import short

SPACE = "\u2581"
UNUSED_SCORE = -10000.0
MAX_CHARSMAP_BYTES = 2 << 20
BYTE_TOKENS = {f"<0x{byte:02X}>": byte for byte in range(256)}


def is_sentencepiece(data: dict[str, Any]) -> bool:
    """Whether a BPE tokenizer.json is SentencePiece's: bytes as `<0xXX>`, or spaces as U+2581."""
    parts = str([data.get("normalizer"), data.get("pre_tokenizer"), data.get("decoder")])
    return data["model"].get("byte_fallback") is True or SPACE in parts


def finish_types(table: Table, unk: str | None, where: str, *, byte_fallback: bool) -> None:
    """Mark byte tokens and the unknown token in place.

    Raises:
        UnsupportedError: a byte has no token: llama.cpp ends the process when it needs one that is missing.
    """
    if byte_fallback:
        for text, byte in BYTE_TOKENS.items():
            number = table.ids.get(text)
            if number is not None:
                table.kinds[number] = BYTE
            elif byte == 0 or byte > 127 or chr(byte) not in table.ids:
                raise UnsupportedError(
                    f"{where}: byte token {text} is missing, llama.cpp cannot tokenize unknown characters without it"
                )
    number = table.ids.get(unk) if unk is not None else None
    if number is not None:
        table.kinds[number] = UNKNOWN


def scores_of_merges(table: Table, merges: list[tuple[str, str]]) -> list[float]:
    """A score per token: minus the rank of its first merge; below all of them for what no merge makes."""
    scores = [-float(len(merges) + 1)] * len(table.tokens)
    for rank in range(len(merges) - 1, -1, -1):
        number = table.ids.get(merges[rank][0] + merges[rank][1])
        if number is not None:
            scores[number] = -float(rank)
    for number, kind in enumerate(table.kinds):
        if kind in (BYTE, UNKNOWN) or len(table.tokens[number]) == 1:
            scores[number] = 0.0
    return scores


def bpe_candidates(
    data: dict[str, Any], table: Table, added: list[AddedToken], merges: list[tuple[str, str]]
) -> tuple[Candidate, ...]:
    """llama.cpp's SentencePiece tokenizer with and without the leading space, then its BPE on raw text.

    An added token such as two U+2581 stands for two spaces. Looked for in the text as given it is never found, and only
    merges make it; llama.cpp's own converter writes it with spaces, to be found first. Both are tried.
    """
    prefixed = adds_prefix(data)
    spaced = [t for t in added if SPACE in t.text and not t.special]
    plain = _with_user_defined(table, spaced, as_spaces=False)
    found = _with_user_defined(table, spaced, as_spaces=True)
    made = []
    for arrays in [plain, found] if spaced else [{}]:
        how = ", runs of spaces first" if arrays is found else ""
        for flag in (prefixed, not prefixed):
            name = f"SentencePiece BPE {'with' if flag else 'without'} a leading space{how}"
            made.append(Candidate(name, {"add_space_prefix": flag}, arrays))
    joined = [f"{left} {right}" for left, right in merges]
    raw = (
        {**plain, PREFIX + "merges": HeaderValue("ARRAY", joined, "STRING")}
        if spaced
        else {PREFIX + "merges": HeaderValue("ARRAY", joined, "STRING")}
    )
    return (*made, Candidate("BPE on raw text", {"model": "gpt2", "pre": "sarvam-moe"}, raw))


def unigram_candidates(data: dict[str, Any]) -> tuple[Candidate, ...]:
    """llama.cpp's unigram tokenizer with and without the leading space, with and without merging of spaces."""
    prefixed, merged = adds_prefix(data), merges_spaces(data)
    made = []
    for merge in (merged, not merged):
        for flag in (prefixed, not prefixed):
            name = f"unigram {'with' if flag else 'without'} a leading space, spaces {'merged' if merge else 'kept'}"
            made.append(Candidate(name, {"add_space_prefix": flag, "remove_extra_whitespaces": merge}))
    return tuple(made)


def read_unigram(model: dict[str, Any], where: str) -> tuple[dict[str, int], list[float], int | None]:
    """Pieces with ids, their scores by id, and the id of the unknown token.

    Raises:
        BadInputError: not a list of (piece, score).
    """
    vocab = model.get("vocab")
    if not isinstance(vocab, list) or not vocab or len(vocab) > MAX_VOCAB:
        raise BadInputError(f"{where}: `model.vocab` of a Unigram tokenizer is malformed or empty")
    ids: dict[str, int] = {}
    scores = []
    for number, entry in enumerate(vocab):
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
            raise BadInputError(f"{where}: entry {number} of `model.vocab` is not a piece with a score")
        score = entry[1]
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise BadInputError(f"{where}: piece {number} has score {short(score)}")
        if ids.setdefault(entry[0], number) != number:
            raise BadInputError(f"{where}: pieces {ids[entry[0]]} and {number} are both {entry[0][:40]!r}")
        scores.append(float(score))
    unk = model.get("unk_id")
    if unk is not None and (type(unk) is not int or not 0 <= unk < len(vocab)):
        raise BadInputError(f"{where}: `model.unk_id` is {short(unk)}, there are {len(vocab)} pieces")
    return ids, scores, unk


def charsmap(data: dict[str, Any], where: str) -> bytes:
    """The precompiled table of a tokenizer.json's normalizer; empty where there is none.

    Raises:
        BadInputError: not base64, or too large.
    """
    encoded = _find(data.get("normalizer"), "precompiled_charsmap")
    if encoded is None:
        return b""
    try:
        table = base64.b64decode(encoded, validate=True) if isinstance(encoded, str) else None
    except (binascii.Error, ValueError):
        table = None
    if table is None or len(table) > MAX_CHARSMAP_BYTES:
        raise BadInputError(
            f"{where}: `precompiled_charsmap` is not base64 of at most {MAX_CHARSMAP_BYTES} bytes"
        )
    return table


def adds_prefix(data: dict[str, Any]) -> bool:
    """Whether the description puts a space before a text; a hint, since evidence decides."""
    if mentions(data.get("normalizer"), "Prepend"):
        return True
    scheme = _find(data.get("pre_tokenizer"), "prepend_scheme")
    if scheme is not None:
        return scheme != "never"
    return _find(data.get("pre_tokenizer"), "add_prefix_space") is True


def merges_spaces(data: dict[str, Any]) -> bool:
    """Whether the description merges runs of spaces; a hint, since evidence decides."""
    return mentions(data.get("pre_tokenizer"), "WhitespaceSplit") or " {2,}" in str(data.get("normalizer"))


def _with_user_defined(table: Table, spaced: list[AddedToken], *, as_spaces: bool) -> dict[str, HeaderValue]:
    tokens, kinds = list(table.tokens), list(table.kinds)
    for token in spaced:
        kinds[token.number] = USER_DEFINED if as_spaces else NORMAL
        if as_spaces:
            tokens[token.number] = token.text.replace(SPACE, " ")
    return {
        PREFIX + "tokens": HeaderValue("ARRAY", tokens, "STRING"),
        PREFIX + "token_type": HeaderValue("ARRAY", kinds, "INT32"),
    }


def _find(part: object, key: str) -> object:
    """The first value under that key anywhere inside."""
    if isinstance(part, dict):
        if key in part:
            return part[key]
        part = list(part.values())
    if isinstance(part, list):
        return next((found for item in part if (found := _find(item, key)) is not None), None)
    return None

"""Hugging Face tokenizer -> GGUF vocabulary.

Four kinds: byte-level BPE, SentencePiece BPE, unigram and WordPiece. How llama.cpp has to read one (which pre-tokenizer,
with or without a leading space, ...) is found by comparing token ids, in `vocabulary.choose`, not by a table of names.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from edgellm.checkpoint import Checkpoint
from edgellm.convert import hints
from edgellm.convert.source import HeaderValue
from edgellm.convert.vocabulary import bpe, sentencepiece, wordpiece
from edgellm.convert.vocabulary.read import TokenizerData, read_tokenizer
from edgellm.convert.vocabulary.tokens import (
    CONTROL,
    PREFIX,
    UNUSED,
    AddedToken,
    Table,
    Vocabulary,
    ends_of_turn,
    fitting,
    make_table,
    special_ids,
)
from edgellm.errors import BadInputError, UnsupportedError
from edgellm.formats.plain_json import Fields, short

__all__ = ["Vocabulary", "read_vocabulary"]

KINDS_HINT = "byte-level BPE, SentencePiece BPE, Unigram and WordPiece work"
FILES_HINT = "download the tokenizer's files again, all of one revision"


@hints.of(BadInputError, FILES_HINT)
@hints.of(UnsupportedError, KINDS_HINT)
def read_vocabulary(checkpoint: Checkpoint, vocab_size: int) -> Vocabulary:
    """The vocabulary of a checkpoint, padded to the model's rows.

    Raises:
        MissingInputError: no tokenizer files.  UnsupportedError: a kind that llama.cpp has no tokenizer for.
        BadInputError: malformed, or larger than the model's vocabulary.
    """
    found = read_tokenizer(checkpoint)
    kind = Fields(found.data, found.where).section("model").text("type", default="BPE", max_chars=40)
    if kind == "Unigram":
        vocabulary = _unigram(checkpoint, found, vocab_size)
    elif kind == "WordPiece":
        vocabulary = _wordpiece(checkpoint, found, vocab_size)
    elif kind == "BPE" and bpe.is_byte_level(found.data):
        vocabulary = _byte_level(checkpoint, found, vocab_size)
    elif kind == "BPE" and sentencepiece.is_sentencepiece(found.data):
        vocabulary = _sentencepiece_bpe(checkpoint, found, vocab_size)
    else:
        raise UnsupportedError(
            f"{found.where}: a {kind} tokenizer that is neither byte-level nor SentencePiece's cannot be converted"
        )
    dropped = len(vocabulary.added) != len(found.added)
    if found.changed or dropped:
        kept = {token.text for token in vocabulary.added}
        entries = [entry for entry in found.data.get("added_tokens") or [] if entry["content"] in kept]
        encoded = found._replace(data={**found.data, "added_tokens": entries}).encoded()
        vocabulary = dataclasses.replace(vocabulary, tokenizer_json=encoded)
    composes = bpe.mentions(found.data.get("normalizer"), "NFC")
    return dataclasses.replace(vocabulary, composes=composes, notes=(*found.notes, *vocabulary.notes))


def _byte_level(checkpoint: Checkpoint, found: TokenizerData, vocab_size: int) -> Vocabulary:
    table, added, notes = _table(found, _dict_vocab(found), vocab_size)
    merges = bpe.read_merges(found.data["model"].get("merges"), found.where)
    return Vocabulary(
        model="gpt2",
        tokens=table.tokens,
        kinds=table.kinds,
        special=_special(checkpoint, table),
        candidates=bpe.candidates(found.data.get("pre_tokenizer")),
        added=tuple(added),
        merges=[f"{left} {right}" for left, right in merges],
        flags={"bos": False},
        notes=tuple(notes),
    )


def _sentencepiece_bpe(checkpoint: Checkpoint, found: TokenizerData, vocab_size: int) -> Vocabulary:
    model = found.data["model"]
    table, added, notes = _table(found, _dict_vocab(found), vocab_size)
    sentencepiece.finish_types(table, _text(model.get("unk_token")), found.where, byte_fallback=True)
    merges = bpe.read_merges(model.get("merges"), found.where)
    return Vocabulary(
        model="llama",
        tokens=table.tokens,
        kinds=table.kinds,
        special=_special(checkpoint, table),
        candidates=sentencepiece.bpe_candidates(found.data, table, added, merges),
        added=tuple(added),
        scores=sentencepiece.scores_of_merges(table, merges),
        flags={"bos": False, "eos": False},
        notes=tuple(notes),
    )


def _unigram(checkpoint: Checkpoint, found: TokenizerData, vocab_size: int) -> Vocabulary:
    ids, scores, unk = sentencepiece.read_unigram(found.data["model"], found.where)
    table, added, notes = _table(found, ids, vocab_size)
    text = None if unk is None else table.tokens[unk]
    sentencepiece.finish_types(table, text, found.where, byte_fallback=False)
    padded = [*scores, *[0.0] * (vocab_size - len(scores))]
    padded = [
        sentencepiece.UNUSED_SCORE if k == UNUSED else s for s, k in zip(padded, table.kinds, strict=True)
    ]
    extra = {}
    charsmap = sentencepiece.charsmap(found.data, found.where)
    if charsmap:
        extra[PREFIX + "precompiled_charsmap"] = HeaderValue("ARRAY", list(charsmap), "UINT8")
    special = _special(checkpoint, table)
    if unk is not None:
        special["unknown"] = unk
    return Vocabulary(
        model="t5",
        tokens=table.tokens,
        kinds=table.kinds,
        special=special,
        candidates=sentencepiece.unigram_candidates(found.data),
        added=tuple(added),
        scores=padded,
        flags={"bos": False, "eos": False},
        extra=extra,
        notes=tuple(notes),
    )


def _wordpiece(checkpoint: Checkpoint, found: TokenizerData, vocab_size: int) -> Vocabulary:
    model = found.data["model"]
    table, added, notes = _table(found, _dict_vocab(found), vocab_size)
    unk = _text(model.get("unk_token"))
    if unk not in table.ids:
        raise BadInputError(f"{found.where}: model.unk_token is {short(unk)}, which is no token")
    table.kinds[table.ids[unk]] = CONTROL
    special = {**_special(checkpoint, table), "unknown": table.ids[unk]}
    # llama.cpp begins with bos and ends with sep, which BERT calls cls and sep.
    for role, other in (("bos", "cls"), ("eos", "seperator")):
        if role not in special and other in special:
            special[role] = special[other]
    return Vocabulary(
        model="bert",
        tokens=wordpiece.phantom_space(table, str(model.get("continuing_subword_prefix", "##")), found.where),
        kinds=table.kinds,
        special=special,
        candidates=wordpiece.candidates(found.data),
        added=tuple(added),
        flags={"bos": False, "eos": False, "sep": False},
        notes=tuple(notes),
    )


def _table(
    found: TokenizerData, vocab: dict[str, Any], vocab_size: int
) -> tuple[Table, list[AddedToken], list[str]]:
    added, notes = fitting(found.added, vocab, vocab_size)
    return make_table(vocab, added, vocab_size, found.where), added, notes


def _special(checkpoint: Checkpoint, table: Table) -> dict[str, int]:
    special = special_ids(checkpoint, table.ids, len(table.tokens))
    return {**special, **ends_of_turn(checkpoint, table, special)}


def _dict_vocab(found: TokenizerData) -> dict[str, Any]:
    vocab = found.data["model"].get("vocab")
    if not isinstance(vocab, dict):
        raise BadInputError(f"{found.where}: `model.vocab` or `added_tokens` is malformed")
    return vocab


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None

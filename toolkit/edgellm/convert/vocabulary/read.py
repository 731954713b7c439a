"""A checkpoint's tokenizer files as one tokenizer.json: the repository's own or a rebuilt one, with every added token."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from edgellm.checkpoint import Checkpoint
from edgellm.convert.vocabulary.build import added_token, build_tokenizer
from edgellm.convert.vocabulary.tokens import MAX_VOCAB, ROLES, AddedToken, parse_added
from edgellm.errors import BadInputError, MissingInputError
from edgellm.formats import plain_json

ADDED_JSON = "added_tokens.json"


class TokenizerData(NamedTuple):
    """A tokenizer.json as plain data.

    Attributes:
        where: the file named in errors.
        changed: whether `data` differs from a tokenizer.json of the repository.
        notes: what was done to it and why.
    """

    data: dict[str, Any]
    where: str
    added: list[AddedToken]
    changed: bool
    notes: list[str]

    def encoded(self) -> bytes:
        """The data as the bytes of a tokenizer.json."""
        return json.dumps(self.data, ensure_ascii=False).encode("utf-8")


def read_tokenizer(checkpoint: Checkpoint) -> TokenizerData:
    """The tokenizer of a checkpoint.

    Raises:
        MissingInputError: no tokenizer files.  BadInputError: malformed.
        UnsupportedError: older files of a kind that cannot be rebuilt without guessing.
    """
    notes = []
    if checkpoint.tokenizer_path is not None:
        path = checkpoint.tokenizer_path
        data = plain_json.read_json(path, max_bytes=plain_json.MAX_TOKENIZER_JSON_BYTES)
    elif checkpoint.tokenizer_files:
        data, path = build_tokenizer(checkpoint)
        notes.append(f"tokenizer.json rebuilt from {' and '.join(checkpoint.tokenizer_files)}")
    else:
        raise MissingInputError(
            f"{checkpoint.path}: no tokenizer.json, tokenizer.model, vocab.json with merges.txt, or vocab.txt",
            hint="download the tokenizer files of the model",
        )
    where = str(path)
    if not isinstance(data.get("model"), dict):
        raise BadInputError(f"{where}: `model` is not an object")
    added = parse_added(data.get("added_tokens"), where)
    more = _tokens_elsewhere(checkpoint, data, added, where)
    if more:
        data = _with_added(data, added, more, where)
        added = parse_added(data["added_tokens"], where)
        names = ", ".join(repr(token.text[:40]) for token in more[:3]) + (", ..." if len(more) > 3 else "")
        notes.append(f"{len(more)} added tokens of other tokenizer files put into tokenizer.json: {names}")
    built = checkpoint.tokenizer_path is None
    return TokenizerData(data, where, added, built or bool(more), notes)


def _tokens_elsewhere(
    checkpoint: Checkpoint, data: dict[str, Any], added: list[AddedToken], where: str
) -> list[AddedToken]:
    """Tokens of tokenizer_config.json and added_tokens.json that tokenizer.json does not list."""
    special = _special_texts(checkpoint)
    found: dict[str, AddedToken] = {}
    decoder = checkpoint.tokenizer_config.get("added_tokens_decoder")
    for key, entry in decoder.items() if isinstance(decoder, dict) else ():
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("content"), str)
            or not key.isascii()
            or not key.isdigit()
        ):
            raise BadInputError(
                f"tokenizer_config.json: added_tokens_decoder: entry {key[:20]!r} is malformed"
            )
        is_special = entry.get("special") is True
        normalized = entry.get("normalized", not is_special) is True
        found[entry["content"]] = AddedToken(entry["content"], int(key[:9]), is_special, normalized)
    for text, number in checkpoint.added_tokens.items():
        if type(number) is not int or not 0 <= number <= MAX_VOCAB:
            raise BadInputError(f"{ADDED_JSON}: token {text[:40]!r} has id {plain_json.short(number)}")
        found.setdefault(text, AddedToken(text, number, text in special, text not in special))
    vocab = _vocab(data)
    if checkpoint.tokenizer_path is None:
        for text in special:
            if text in vocab and type(vocab[text]) is int:
                found.setdefault(text, AddedToken(text, vocab[text], True, False))
    known = {token.text: token.number for token in added}
    for text, token in found.items():
        number = known.get(text, vocab.get(text, token.number))
        if number != token.number:
            raise BadInputError(
                f"{where}: token {text[:40]!r} has id {plain_json.short(number)}, elsewhere it has {token.number}"
            )
    return sorted((t for text, t in found.items() if text not in known), key=lambda token: token.number)


def _special_texts(checkpoint: Checkpoint) -> list[str]:
    """Texts that the settings name as special: by role, and as additional ones."""
    texts: list[str] = []
    for place in (checkpoint.tokenizer_config, checkpoint.special_tokens_map):
        further = place.get("additional_special_tokens")
        for entry in [*(place.get(role) for role in ROLES), *(further if isinstance(further, list) else [])]:
            text = entry.get("content") if isinstance(entry, dict) else entry
            if isinstance(text, str) and text and text not in texts:
                texts.append(text)
    return texts


def _vocab(data: dict[str, Any]) -> dict[str, Any]:
    vocab = data["model"].get("vocab")
    if isinstance(vocab, list):
        return {
            row[0]: i
            for i, row in enumerate(vocab)
            if isinstance(row, list) and row and isinstance(row[0], str)
        }
    return vocab if isinstance(vocab, dict) else {}


def _with_added(
    data: dict[str, Any], added: list[AddedToken], more: list[AddedToken], where: str
) -> dict[str, Any]:
    """The data with further added tokens.

    `tokenizers` numbers new tokens one after the other; to keep a gap, a token goes into the model's vocabulary too.
    """
    vocab, model = _vocab(data), data["model"]
    next_id = 1 + max(
        [*(n for n in vocab.values() if type(n) is int), *(token.number for token in added)], default=-1
    )
    gaps: dict[str, int] = {}
    for token in more:
        if token.text in vocab:
            continue
        if gaps or token.number != next_id:
            if isinstance(model.get("vocab"), list):
                raise BadInputError(
                    f"{where}: token {token.text[:40]!r} has id {token.number}, the next free one is {next_id}"
                )
            gaps[token.text] = token.number
        next_id = max(next_id, token.number + 1)
    if gaps:
        model = {**model, "vocab": {**vocab, **gaps}}
    entries = [
        *(data.get("added_tokens") or []),
        *(added_token(t.text, t.number, special=t.special, normalized=t.normalized) for t in more),
    ]
    entries.sort(key=lambda entry: int(entry["id"]))
    return {**data, "model": model, "added_tokens": entries}

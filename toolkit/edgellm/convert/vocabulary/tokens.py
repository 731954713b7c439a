"""What every kind of vocabulary has: tokens with types, special roles, and the ways llama.cpp may read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from edgellm.checkpoint import Checkpoint
from edgellm.convert.source import HeaderValue
from edgellm.errors import BadInputError
from edgellm.formats.plain_json import short

MAX_VOCAB = 1 << 21
MAX_TOKEN_BYTES = 1 << 16
MAX_DROPPED = 1024
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
PREFIX = "tokenizer.ggml."
# Hugging Face's names of roles -> GGUF's ("seperator" is how GGUF spells it).
ROLES = {
    "bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "sep_token": "seperator",
    "pad_token": "padding", "cls_token": "cls", "mask_token": "mask",
}  # fmt: skip
# llama.cpp finds these ends of a turn by their text.
KNOWN_ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<\uff5cend\u2581of\u2581sentence\uff5c>",
)  # fmt: skip


# These end a turn by a family's convention, and nobody else knows them: Dolly 2.0.
FURTHER_ENDS = ("### End",)


class AddedToken(NamedTuple):
    """A token that is found in a text before everything else.

    Attributes:
        special: steers the model (bos, end of turn); else it is plain text.
        normalized: it is looked for in the normalized text, else in the text as given.
        strips_right: space after it belongs to it.
    """

    text: str
    number: int
    special: bool
    normalized: bool
    strips_right: bool = False


class Candidate(NamedTuple):
    """One way in which llama.cpp may read a vocabulary.

    Attributes:
        name: how it is called in evidence and errors.
        settings: header keys that make it so, without `tokenizer.ggml.`.
        arrays: longer values that replace those of the vocabulary.
    """

    name: str
    settings: dict[str, str | bool]
    arrays: dict[str, HeaderValue] = {}  # never changed

    def header(self) -> dict[str, HeaderValue]:
        """Header entries of this reading."""
        entries = {
            PREFIX + key: HeaderValue("BOOL" if isinstance(value, bool) else "STRING", value)
            for key, value in self.settings.items()
        }
        return {**entries, **self.arrays}


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A vocabulary, padded to the model's size.

    Attributes:
        model: llama.cpp's tokenizer: gpt2 (byte-level BPE), llama (SentencePiece BPE), t5 (unigram), bert (WordPiece).
        tokens, kinds: text and GGUF token type, by id.
        special: role -> id, for example {"bos": 1}.
        candidates: ways to read it, the likeliest first; which one fits is found by comparing ids.
        added: the added tokens that the model has rows for.
        merges: "left right", best first; BPE only.
        scores: SentencePiece only; higher is better.
        flags: whether the tokenizer adds bos, eos or sep to a text by itself.
        extra: further header entries.
        tokenizer_json: what `tokenizers` has to read, where it is not the repository's own file byte for byte.
        composes: the tokenizer normalizes a text to Unicode's composed form (NFC) first.
        notes: what was left out and why, one sentence each.
    """

    model: str
    tokens: list[str]
    kinds: list[int]
    special: dict[str, int]
    candidates: tuple[Candidate, ...]
    added: tuple[AddedToken, ...] = ()
    merges: list[str] | None = None
    scores: list[float] | None = None
    flags: dict[str, bool] = dataclasses.field(default_factory=dict)
    extra: dict[str, HeaderValue] = dataclasses.field(default_factory=dict)
    tokenizer_json: bytes | None = None
    composes: bool = False
    notes: tuple[str, ...] = ()

    def header(self, pre: str, chat_template: str | None) -> dict[str, HeaderValue]:
        """The tokenizer part of a GGUF header, with `pre` as the pre-tokenizer."""
        entries = {
            PREFIX + "model": HeaderValue("STRING", self.model),
            PREFIX + "pre": HeaderValue("STRING", pre),
            PREFIX + "tokens": HeaderValue("ARRAY", self.tokens, "STRING"),
            PREFIX + "token_type": HeaderValue("ARRAY", self.kinds, "INT32"),
        }
        if self.scores is not None:
            entries[PREFIX + "scores"] = HeaderValue("ARRAY", self.scores, "FLOAT32")
        if self.merges is not None:
            entries[PREFIX + "merges"] = HeaderValue("ARRAY", self.merges, "STRING")
        for name, value in self.flags.items():
            entries[f"{PREFIX}add_{name}_token"] = HeaderValue("BOOL", value)
        for role, number in self.special.items():
            entries[f"{PREFIX}{role}_token_id"] = HeaderValue("UINT32", number)
        entries |= self.extra
        if chat_template:
            entries["tokenizer.chat_template"] = HeaderValue("STRING", chat_template)
        return entries


class Table(NamedTuple):
    """Token texts and types by id, padded to the model's rows, and the ids of texts."""

    tokens: list[str]
    kinds: list[int]
    ids: dict[str, int]


def parse_added(entries: object, where: str) -> list[AddedToken]:
    """The `added_tokens` of a tokenizer.json.

    Raises:
        BadInputError: not a list of tokens.
    """
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise BadInputError(f"{where}: `model.vocab` or `added_tokens` is malformed")
    added = []
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise BadInputError(f"{where}: an entry of `added_tokens` is malformed: {str(entry)[:80]}")
        number = entry.get("id")
        if type(number) is not int:
            raise BadInputError(f"{where}: token {entry['content'][:40]!r} has id {short(number)}")
        special = entry.get("special") is True
        normalized, strips = entry.get("normalized", not special) is True, entry.get("rstrip") is True
        added.append(AddedToken(entry["content"], number, special, normalized, strips))
    return added


def make_table(vocab: Mapping[str, Any], added: Iterable[AddedToken], vocab_size: int, where: str) -> Table:
    """Every token in its place; rows without a token become `[PADn]`.

    Raises:
        BadInputError: an id outside the model's rows or used twice, or a token that is too long.
    """
    if vocab_size > MAX_VOCAB:
        raise BadInputError(
            f"{where}: the model has {vocab_size} tokens, at most {MAX_VOCAB} can be converted"
        )
    tokens: list[str | None] = [None] * vocab_size
    kinds = [UNUSED] * vocab_size
    special = {token.text: token.special for token in added}
    numbers = [*vocab.items(), *((token.text, token.number) for token in added)]
    for text, number in numbers:
        if type(number) is not int or not 0 <= number < vocab_size:
            raise BadInputError(
                f"{where}: token {text[:40]!r} has id {short(number)}, the model has {vocab_size} tokens",
                hint="the tokenizer files belong to another model, or config.json has the wrong vocab_size",
            )
        if len(text) > MAX_TOKEN_BYTES // 4 and len(text.encode("utf-8")) > MAX_TOKEN_BYTES:
            raise BadInputError(f"{where}: token {number} is longer than {MAX_TOKEN_BYTES} bytes")
        if tokens[number] is not None and tokens[number] != text:
            raise BadInputError(
                f"{where}: id {number} stands for both {short(tokens[number])} and {short(text)}"
            )
        tokens[number] = text
        kinds[number] = NORMAL
        if text in special:
            kinds[number] = CONTROL if special[text] else USER_DEFINED
    known = {text for text in tokens if text is not None}
    padded = [text if text is not None else _filler(i, known) for i, text in enumerate(tokens)]
    return Table(padded, kinds, dict(numbers))


def fitting(
    added: list[AddedToken], vocab: Mapping[str, Any], vocab_size: int
) -> tuple[list[AddedToken], list[str]]:
    """The added tokens that the model has rows for, and a sentence about those it has none for.

    Such tokens are real: Gemma 3's text models carry the image token of their larger sisters.
    """
    outside = [t for t in added if t.number >= vocab_size and t.text not in vocab]
    if not outside or len(outside) > MAX_DROPPED:
        return added, []
    names = ", ".join(repr(token.text[:40]) for token in outside[:3]) + (", ..." if len(outside) > 3 else "")
    note = f"{len(outside)} added tokens left out, the model has no rows for them: {names}"
    return [token for token in added if token not in outside], [note]


def special_ids(checkpoint: Checkpoint, ids: Mapping[str, int], vocab_size: int) -> dict[str, int]:
    """Role -> id, from tokenizer_config.json or special_tokens_map.json by text, else from config.json by number."""
    special = {}
    for key, role in ROLES.items():
        number = None
        for place in (checkpoint.tokenizer_config, checkpoint.special_tokens_map):
            entry = place.get(key)
            text = entry.get("content") if isinstance(entry, dict) else entry
            if number is None and isinstance(text, str):
                number = ids.get(text)
        if number is None:
            number = checkpoint.config.get(f"{key}_id")
            number = number[0] if isinstance(number, list) and number else number
        if type(number) is int and 0 <= number < vocab_size:
            special[role] = number
    return special


def ends_of_turn(checkpoint: Checkpoint, table: Table, special: Mapping[str, int]) -> dict[str, int]:
    """`eot` and `eom` for ends of generation that are not eos and that llama.cpp does not know by their text."""
    found: list[int] = []
    for place in (checkpoint.generation_config, checkpoint.config):
        numbers = place.get("eos_token_id")
        for number in numbers if isinstance(numbers, list) else [numbers]:
            if type(number) is int and 0 <= number < len(table.tokens) and number not in found:
                found.append(number)
    found += [table.ids[text] for text in FURTHER_ENDS if text in table.ids]
    others = [
        number
        for number in found
        if number != special.get("eos")
        and table.kinds[number] == CONTROL
        and table.tokens[number] not in KNOWN_ENDS
    ]
    return dict(zip(("eot", "eom"), others, strict=False))


def _filler(number: int, known: set[str]) -> str:
    text = f"[PAD{number}]"
    while text in known:
        text = f"[{text}]"
    return text

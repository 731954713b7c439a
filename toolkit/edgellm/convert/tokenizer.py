"""Hugging Face tokenizer -> GGUF vocabulary.

A GGUF names its pre-tokenizer; llama.cpp ships a fixed set of them. Which one fits is found by comparing token ids
with the `tokenizers` library on a hard text, not by a table of hashes: the candidate that gives the same ids is
chosen, and where none does, the nearest is named with the first difference.

Covered: byte-level BPE. SentencePiece, unigram and WordPiece vocabularies are refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgellm.checkpoint import Checkpoint
from edgellm.convert import hard_text
from edgellm.convert.source import HeaderValue
from edgellm.errors import (
    BackendError,
    BackendUnavailable,
    BadInputError,
    MissingInputError,
    NativeCrash,
    UnsupportedError,
)
from edgellm.formats import plain_json
from edgellm.formats.plain_json import Fields

MAX_VOCAB = 1 << 21
MAX_TOKEN_BYTES = 1 << 16
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

# llama.cpp's byte-level pre-tokenizers, the commonest first.
CANDIDATES = (
    "smollm", "llama-bpe", "qwen2", "gpt-2", "tekken", "starcoder", "stablelm2", "olmo", "falcon", "mpt", "dbrx",
    "deepseek-llm", "deepseek-coder", "deepseek-v3", "gpt-4o", "command-r", "refact", "codeshell", "exaone",
    "minerva-7b", "superbpe", "seed-coder", "bloom", "chameleon", "default",
)  # fmt: skip
_SPECIAL_ROLES = {
    "bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "sep_token": "seperator", "pad_token": "padding",
}  # fmt: skip

Tokenize = Callable[[str, Sequence[str]], list[list[int]]]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE vocabulary, padded to the model's size.

    Attributes:
        tokens, kinds: text and GGUF token type, by id.
        merges: "left right", best first.
        special: role -> id, for example {"bos": 1}.
        add_bos: whether the tokenizer puts bos before a text by itself.
        pre_tokenizer: the tokenizer.json's own description, for ordering candidates.
    """

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    special: dict[str, int]
    add_bos: bool
    pre_tokenizer: dict[str, Any]

    def header(self, pre: str, chat_template: str | None) -> dict[str, HeaderValue]:
        """The tokenizer part of a GGUF header, with `pre` as the pre-tokenizer."""
        entries = {
            "tokenizer.ggml.model": HeaderValue("STRING", "gpt2"),
            "tokenizer.ggml.pre": HeaderValue("STRING", pre),
            "tokenizer.ggml.tokens": HeaderValue("ARRAY", self.tokens, "STRING"),
            "tokenizer.ggml.token_type": HeaderValue("ARRAY", self.kinds, "INT32"),
            "tokenizer.ggml.merges": HeaderValue("ARRAY", self.merges, "STRING"),
            "tokenizer.ggml.add_bos_token": HeaderValue("BOOL", self.add_bos),
        }
        for role, token in self.special.items():
            entries[f"tokenizer.ggml.{role}_token_id"] = HeaderValue("UINT32", token)
        if chat_template:
            entries["tokenizer.chat_template"] = HeaderValue("STRING", chat_template)
        return entries


def read_vocabulary(checkpoint: Checkpoint, vocab_size: int) -> Vocabulary:
    """The vocabulary of tokenizer.json.

    Raises:
        MissingInputError: no tokenizer.json.  UnsupportedError: not byte-level BPE.
        BadInputError: malformed, or larger than the model's vocabulary.
    """
    path = checkpoint.tokenizer_path
    if path is None:
        raise MissingInputError(
            f"{checkpoint.path}: no tokenizer.json",
            hint="download tokenizer.json; a tokenizer.model alone is not supported",
        )
    data = plain_json.read_json(path, max_bytes=64 * 1024**2)
    fields = Fields(data, str(path))
    model = fields.section("model")
    kind = model.text("type", default="BPE")
    if kind != "BPE" or model.flag("byte_fallback", default=False) or not _is_byte_level(data):
        raise UnsupportedError(
            f"{path}: a {kind} tokenizer that is not byte-level BPE cannot be converted yet",
            hint="models with a GPT-2 style tokenizer (SmolLM2, Llama 3, Mistral NeMo) work",
        )
    vocab, added = data["model"].get("vocab"), data.get("added_tokens") or []
    if not isinstance(vocab, dict) or not isinstance(added, list):
        raise BadInputError(f"{path}: `model.vocab` or `added_tokens` is malformed")
    tokens, kinds = _tokens(vocab, added, vocab_size, str(path))
    return Vocabulary(
        tokens=tokens,
        kinds=kinds,
        merges=_merges(data["model"].get("merges"), str(path)),
        special=_special(checkpoint, {**vocab, **{a["content"]: a["id"] for a in added}}, vocab_size),
        add_bos=False,
        pre_tokenizer=data.get("pre_tokenizer") or {},
    )


def choose_pre_tokenizer(vocabulary: Vocabulary, path: Path, tokenize: Tokenize) -> tuple[str, str]:
    """The pre-tokenizer whose ids equal those of `tokenizers`, and the evidence in words.

    Args:
        tokenize: (pre-tokenizer name, texts) -> llama.cpp's ids under that name.

    Raises:
        UnsupportedError: none of llama.cpp's fits; the message names the nearest and the first difference.
    """
    reference = load_tokenizer(path)
    texts = hard_text.TEXTS
    wanted = [reference.encode(text, add_special_tokens=False).ids for text in texts]
    nearest: tuple[int, str, str] | None = None
    for name in _ordered(vocabulary.pre_tokenizer):
        try:
            seen = tokenize(name, texts)
        except (BackendUnavailable, NativeCrash):
            raise
        except BackendError:  # this llama.cpp does not know the name
            continue
        wrong = [i for i, (a, b) in enumerate(zip(wanted, seen, strict=True)) if a != b]
        if not wrong:
            return (
                name,
                f"same token ids as tokenizers on {len(texts)} texts ({sum(map(len, wanted))} tokens)",
            )
        if nearest is None or len(wrong) < nearest[0]:
            first = wrong[0]
            nearest = (len(wrong), name, _difference(texts[first], wanted[first], seen[first]))
    said = (
        f"; the nearest, {nearest[1]!r}, differs on {nearest[0]} of {len(texts)} texts: {nearest[2]}"
        if nearest
        else ""
    )
    raise UnsupportedError(f"{path}: none of llama.cpp's pre-tokenizers gives this tokenizer's ids{said}")


def load_tokenizer(path: Path) -> Any:
    """A tokenizer.json as a `tokenizers.Tokenizer`.

    Raises:
        BadInputError: the library refuses it.
    """
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as err:  # the library raises bare Exception for every malformed file
        raise BadInputError(f"{path}: not a tokenizer.json: {str(err)[:200]}") from err


def adds_bos(path: Path, bos: int | None) -> bool:
    """Whether the tokenizer puts bos before a text when asked for special tokens; found by trying."""
    ids = load_tokenizer(path).encode("a", add_special_tokens=True).ids
    return bos is not None and bool(ids) and ids[0] == bos


def _is_byte_level(data: dict[str, Any]) -> bool:
    def mentions(part: object) -> bool:
        if isinstance(part, dict):
            return part.get("type") == "ByteLevel" or any(mentions(value) for value in part.values())
        return isinstance(part, list) and any(mentions(value) for value in part)

    return mentions(data.get("pre_tokenizer")) or mentions(data.get("decoder"))


def _tokens(
    vocab: dict[str, Any], added: list[Any], vocab_size: int, where: str
) -> tuple[list[str], list[int]]:
    tokens: list[str | None] = [None] * vocab_size
    kinds = [UNUSED] * vocab_size
    added_ids = {}
    for entry in added:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise BadInputError(f"{where}: an entry of `added_tokens` is malformed: {str(entry)[:80]}")
        added_ids[entry["content"]] = (entry.get("id"), bool(entry.get("special")))
    for text, number in [*vocab.items(), *((text, number) for text, (number, _) in added_ids.items())]:
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < vocab_size:
            raise BadInputError(
                f"{where}: token {text[:40]!r} has id {number!r}, the model has {vocab_size} tokens"
            )
        if len(text.encode("utf-8", errors="replace")) > MAX_TOKEN_BYTES:
            raise BadInputError(f"{where}: token {number} is longer than {MAX_TOKEN_BYTES} bytes")
        if tokens[number] is not None and tokens[number] != text:
            raise BadInputError(f"{where}: id {number} stands for both {tokens[number]!r} and {text[:40]!r}")
        tokens[number] = text
        kinds[number] = NORMAL
        if text in added_ids:
            kinds[number] = CONTROL if added_ids[text][1] else USER_DEFINED
    return [text if text is not None else f"[PAD{i}]" for i, text in enumerate(tokens)], kinds


def _merges(merges: object, where: str) -> list[str]:
    if not isinstance(merges, list) or len(merges) > MAX_VOCAB:
        raise BadInputError(f"{where}: `model.merges` is not a list of at most {MAX_VOCAB} pairs")
    joined = []
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(p, str) and p and " " not in p for p in pair)
        ):
            raise BadInputError(f"{where}: merge {str(merge)[:80]!r} is not a pair of tokens")
        joined.append(f"{pair[0]} {pair[1]}")
    return joined


def _special(checkpoint: Checkpoint, ids: dict[str, int], vocab_size: int) -> dict[str, int]:
    """Role -> id, from tokenizer_config.json by text, else from config.json by number."""
    special = {}
    for key, role in _SPECIAL_ROLES.items():
        entry = checkpoint.tokenizer_config.get(key)
        text = entry.get("content") if isinstance(entry, dict) else entry
        number = ids.get(text) if isinstance(text, str) else None
        if number is None:
            number = checkpoint.config.get(f"{key}_id")
            number = number[0] if isinstance(number, list) and number else number
        if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < vocab_size:
            special[role] = number
    return special


def _ordered(pre_tokenizer: dict[str, Any]) -> list[str]:
    """All candidates, those that the description hints at first."""
    described = str(pre_tokenizer)
    hints = []
    if "Digits" in described:
        hints.append("smollm")
    if "{1,3}" in described:
        hints.append("llama-bpe")
    elif r"\\p{N}" in described:
        hints.append("qwen2")
    if "Split" not in described and "Digits" not in described:
        hints.append("gpt-2")
    return hints + [name for name in CANDIDATES if name not in hints]


def _difference(text: str, wanted: list[int], seen: list[int]) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(wanted, seen, strict=False)) if a != b), min(len(wanted), len(seen))
    )
    return f"on {text[:30]!r} token {at} is {wanted[at : at + 1]} there and {seen[at : at + 1]} in llama.cpp"

"""A tokenizer.json for repositories that have none, as the `tokenizers` library would hold the older files.

It is the independent reference for token ids and goes into the artifact. The parts follow transformers' own slow-to-fast
conversion for Llama, Gemma, T5, XLM-RoBERTa, GPT-2, Qwen2 and BERT.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from edgellm.checkpoint import Checkpoint
from edgellm.convert.vocabulary.tokens import MAX_VOCAB
from edgellm.errors import BadInputError, UnsupportedError
from edgellm.formats import plain_json, sentencepiece
from edgellm.formats.records import read_bounded
from edgellm.units import MIB

SPACE = "\u2581"
MAX_TEXT_BYTES = 32 * MIB
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2_CLASSES = (
    "GPT2Tokenizer",
    "GPT2TokenizerFast",
    "GPTNeoXTokenizerFast",
    "GPTNeoXTokenizer",
    "CodeGenTokenizer",
    "CodeGenTokenizerFast",
)
_QWEN2_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
_BERT_CLASSES = ("BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "DistilBertTokenizerFast")
_BERT_SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def build_tokenizer(checkpoint: Checkpoint) -> tuple[dict[str, Any], Path]:
    """A tokenizer.json as plain data from the older files of a checkpoint, and the file it mainly comes from.

    Raises:
        UnsupportedError: a kind that cannot be rebuilt without guessing.  BadInputError: malformed files.
    """
    files = checkpoint.tokenizer_files
    if "vocab.txt" in files:
        return _from_vocab_txt(files["vocab.txt"], checkpoint), files["vocab.txt"]
    if "vocab.json" in files:
        return _from_vocab_and_merges(files["vocab.json"], files["merges.txt"], checkpoint), files[
            "vocab.json"
        ]
    path = next(iter(files.values()))
    return _from_sentencepiece(path, checkpoint), path


def added_token(text: str, number: int, *, special: bool, normalized: bool = False) -> dict[str, Any]:
    """An entry of `added_tokens`."""
    return {
        "id": number, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": normalized, "special": special,
    }  # fmt: skip


def merges_by_score(pieces: list[tuple[str, float]]) -> list[list[str]]:
    """Every pair of pieces that makes a piece, best score first; the order that transformers gives them."""
    ids = {text: number for number, (text, _) in enumerate(pieces)}
    merges = []
    for text, score in pieces:
        local = [
            (score, text[:at], text[at:])
            for at in range(1, len(text))
            if text[:at] in ids and text[at:] in ids
        ]
        merges += sorted(local, key=lambda merge: (ids[merge[1]], ids[merge[2]]))
    merges.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [[left, right] for _, left, right in merges]


def _from_sentencepiece(path: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    model = sentencepiece.read_sentencepiece(path)
    kind = sentencepiece.MODEL_TYPES.get(model.model_type)
    if kind not in ("unigram", "BPE"):
        raise UnsupportedError(
            f"{path}: a SentencePiece model of type {kind or model.model_type}, BPE and unigram work"
        )
    if model.treat_whitespace_as_suffix or not model.escape_whitespaces:
        raise UnsupportedError(f"{path}: a SentencePiece model with spaces as suffix or unescaped spaces")
    pieces = [(piece.text, piece.score) for piece in model.pieces]
    if len({text for text, _ in pieces}) != len(pieces):
        raise BadInputError(f"{path}: two pieces have the same text")
    added = [
        added_token(piece.text, number, special=piece.kind != sentencepiece.USER_DEFINED)
        for number, piece in enumerate(model.pieces)
        if piece.kind in (sentencepiece.CONTROL, sentencepiece.UNKNOWN, sentencepiece.USER_DEFINED)
    ]
    unk, bos, eos = model.unk_id, model.bos_id, model.eos_id
    if path.name == "sentencepiece.bpe.model":
        if checkpoint.config.get("model_type") != "xlm-roberta" or kind != "unigram":
            raise UnsupportedError(
                f"{path}: how its ids become the model's is known for xlm-roberta only",
                hint="download the repository's tokenizer.json",
            )
        # fairseq's order: four special tokens, the pieces without their first three, the mask.
        pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces[3:], ("<mask>", 0.0)]
        special = (0, 1, 2, 3, len(pieces) - 1)
        added = [added_token(pieces[number][0], number, special=True) for number in special]
        unk, bos, eos = 3, 0, 2
    normalizers, pre_tokenizer, decoder, body = _stages(model, kind, pieces, unk)
    settings, both = checkpoint.tokenizer_config, path.name == "sentencepiece.bpe.model"
    first = bos if settings.get("add_bos_token", kind == "BPE" or both) is True else None
    last = eos if settings.get("add_eos_token", kind == "unigram") is True else None
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": normalizers}, "pre_tokenizer": pre_tokenizer,
        "post_processor": _template(*((None if n is None else (pieces[n][0], n)) for n in (first, last))),
        "decoder": decoder, "model": body,
    }  # fmt: skip


def _stages(
    model: sentencepiece.SentencePieceModel, kind: str, pieces: list[tuple[str, float]], unk: int | None
) -> tuple[list[dict[str, Any]], dict[str, Any] | None, dict[str, Any], dict[str, Any]]:
    """Normalizers, pre-tokenizer, decoder and model of a tokenizer.json."""
    normalizers: list[dict[str, Any]] = []
    if model.charsmap:
        normalizers.append(
            {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(model.charsmap).decode()}
        )
    body: dict[str, Any]
    pre_tokenizer: dict[str, Any] | None
    if kind == "BPE":
        if model.remove_extra_whitespaces:
            normalizers += _one_space(" ")
        if model.add_dummy_prefix:
            normalizers.append({"type": "Prepend", "prepend": SPACE})
        normalizers.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
        pre_tokenizer, decoder = None, _bpe_decoder(strip=model.add_dummy_prefix)
        body = {
            "type": "BPE", "dropout": None, "unk_token": None if unk is None else pieces[unk][0],
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
            "byte_fallback": model.byte_fallback, "ignore_merges": False,
            "vocab": {text: number for number, (text, _) in enumerate(pieces)}, "merges": merges_by_score(pieces),
        }  # fmt: skip
    else:
        if model.remove_extra_whitespaces:
            normalizers += _one_space(SPACE)
        scheme = "always" if model.add_dummy_prefix else "never"
        pre_tokenizer = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": True}
        decoder = pre_tokenizer
        body = {
            "type": "Unigram",
            "unk_id": unk,
            "byte_fallback": model.byte_fallback,
            "vocab": [list(p) for p in pieces],
        }
    return normalizers, pre_tokenizer, decoder, body


def _from_vocab_and_merges(vocab: Path, merges: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    name = _class(checkpoint, "GPT2Tokenizer")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    pre_tokenizer: dict[str, Any] = {
        **byte_level, "add_prefix_space": checkpoint.tokenizer_config.get("add_prefix_space") is True,
    }  # fmt: skip
    normalizer = None
    if name in _QWEN2_CLASSES:
        split = {"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": False}
        pre_tokenizer = {"type": "Sequence", "pretokenizers": [split, {**byte_level, "use_regex": False}]}
        normalizer = {"type": "NFC"}
    elif name not in _GPT2_CLASSES:
        raise UnsupportedError(
            f"{vocab}: how {name} splits a text is not known", hint="download the repository's tokenizer.json"
        )
    lines = _lines(merges)
    pairs = [
        line.split(" ")
        for line in lines[lines[:1] != [] and lines[0].startswith("#version") :]
        if line.strip()
    ]
    wrong = next((pair for pair in pairs if len(pair) != 2 or not all(pair)), None)
    if wrong is not None:
        raise BadInputError(f"{merges}: merge {' '.join(wrong)[:80]!r} is not a pair of tokens")
    ids = plain_json.read_json(vocab, max_bytes=MAX_TEXT_BYTES)
    added = (
        [added_token("<|endoftext|>", ids["<|endoftext|>"], special=True)]
        if type(ids.get("<|endoftext|>")) is int
        else []
    )
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": byte_level, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": ids, "merges": pairs,
        },
    }  # fmt: skip


def _from_vocab_txt(path: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    name = _class(checkpoint, "BertTokenizer")
    if name not in _BERT_CLASSES:
        raise UnsupportedError(
            f"{path}: how {name} splits a text is not known", hint="download the repository's tokenizer.json"
        )
    lines = _lines(path)
    if len(lines) > MAX_VOCAB:
        raise BadInputError(f"{path}: {len(lines)} tokens, at most {MAX_VOCAB} can be converted")
    ids = {text: number for number, text in enumerate(lines)}
    settings = checkpoint.tokenizer_config
    special = {}
    for role, default in _BERT_SPECIAL.items():
        text = settings.get(role) or checkpoint.special_tokens_map.get(role) or default
        text = text.get("content") if isinstance(text, dict) else text
        if isinstance(text, str) and text in ids:
            special[role] = text
    if "unk_token" not in special or "cls_token" not in special or "sep_token" not in special:
        raise BadInputError(f"{path}: no [UNK], [CLS] or [SEP] token in it")
    strip = settings.get("strip_accents")
    ends = [(special[role], ids[special[role]]) for role in ("cls_token", "sep_token")]
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added_token(text, ids[text], special=True) for text in special.values()],
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True,
            "handle_chinese_chars": settings.get("tokenize_chinese_chars", True) is True,
            "strip_accents": strip if isinstance(strip, bool) else None,
            "lowercase": settings.get("do_lower_case", True) is True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": _template(*ends),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece", "unk_token": special["unk_token"], "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": ids,
        },
    }  # fmt: skip


def _class(checkpoint: Checkpoint, default: str) -> str:
    name = checkpoint.tokenizer_config.get("tokenizer_class")
    if name is None and str(checkpoint.config.get("model_type")).startswith("qwen"):
        return _QWEN2_CLASSES[0]
    return str(name or default)


def _lines(path: Path) -> list[str]:
    try:
        text = read_bounded(path, MAX_TEXT_BYTES).decode("utf-8")
    except UnicodeDecodeError as err:
        raise BadInputError(f"{path}: not UTF-8 text: {err}") from None
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _one_space(instead: str) -> list[dict[str, Any]]:
    return [
        {"type": "Strip", "strip_left": False, "strip_right": True},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": instead},
    ]


def _bpe_decoder(*, strip: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if strip:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _template(first: tuple[str, int] | None, last: tuple[str, int] | None) -> dict[str, Any] | None:
    """A post-processor that puts one token before and one after a text."""
    if first is None and last is None:
        return None

    def one(name: str, type_id: int) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = [{"Sequence": {"id": name, "type_id": type_id}}]
        if first is not None and name == "A":
            parts.insert(0, {"SpecialToken": {"id": first[0], "type_id": type_id}})
        if last is not None:
            parts.append({"SpecialToken": {"id": last[0], "type_id": type_id}})
        return parts

    special = {
        text: {"id": text, "ids": [number], "tokens": [text]} for text, number in filter(None, (first, last))
    }
    return {
        "type": "TemplateProcessing",
        "single": one("A", 0),
        "pair": one("A", 0) + one("B", 1),
        "special_tokens": special,
    }

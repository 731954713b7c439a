"""Byte-level BPE: GPT-2's alphabet of bytes, merges in order, and a pre-tokenizer that llama.cpp knows by name."""

from __future__ import annotations

from typing import Any

from edgellm.convert.vocabulary.tokens import MAX_VOCAB, Candidate
from edgellm.errors import BadInputError

# llama.cpp's pre-tokenizers for BPE, one name per way of splitting and merging, the commonest first.
# Source: llama_vocab::impl::load in src/llama-vocab.cpp of llama.cpp as in llama-cpp-python 0.3.36.
NAMES = (
    "smollm", "llama-bpe", "qwen2", "gpt-2", "tekken", "falcon", "dbrx", "deepseek-llm", "deepseek-coder",
    "deepseek-v3", "gpt-4o", "qwen35", "superbpe", "seed-coder", "bloom", "chameleon", "default", "bailingmoe",
    "tiny_aya", "afmoe", "kimi-k2", "exaone-moe", "youtu", "minicpm5", "granite-embed-multi-97m", "viking", "jais-2",
    "spark2_5", "ufakzeka", "laguna",
)  # fmt: skip
# The other names it knows: each gives the ids of the one it stands beside.
SYNONYMS = {
    "llama-bpe": (
        "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "glm4", "glm5",
    ),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
    "gpt-2": (
        "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum", "modern-bert",
        "jina-v1-en", "jina-v2-code", "roberta-bpe", "exaone4", "mpt", "olmo", "jais", "trillion", "granite-docling",
    ),
    "qwen2": (
        "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2",
    ),
    "dbrx": ("smaug-bpe", "chatglm-bpe"), "deepseek-v3": ("hunyuan-dense", "joyai-llm", "hy_v4"),
    "gpt-4o": ("llama4", "kanana2", "talkie", "minimax-m2"), "tiny_aya": ("cohere2moe",),
    "bloom": ("poro-chat", "gpt3-finnish"), "bailingmoe": ("bailingmoe2", "llada-moe"),
}  # fmt: skip
# Not for byte-level vocabularies: these leave bytes as they are.
RAW = ("gemma4", "granite-embed-multi-311m", "sarvam-moe", "whitespace")


def is_byte_level(data: dict[str, Any]) -> bool:
    """Whether a tokenizer.json writes bytes in GPT-2's alphabet."""
    return mentions(data.get("pre_tokenizer"), "ByteLevel") or mentions(data.get("decoder"), "ByteLevel")


def mentions(part: object, kind: str) -> bool:
    """Whether a part of a tokenizer.json is of this type, or has such a part inside."""
    if isinstance(part, dict):
        return part.get("type") == kind or any(mentions(value, kind) for value in part.values())
    return isinstance(part, list) and any(mentions(value, kind) for value in part)


def read_merges(merges: object, where: str) -> list[tuple[str, str]]:
    """The `model.merges` of a tokenizer.json, best first.

    Raises:
        BadInputError: not a list of pairs.
    """
    if not isinstance(merges, list) or len(merges) > MAX_VOCAB:
        raise BadInputError(f"{where}: `model.merges` is not a list of at most {MAX_VOCAB} pairs")
    pairs = []
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(part, str) and part and " " not in part for part in pair)
        ):
            raise BadInputError(f"{where}: merge {str(merge)[:80]!r} is not a pair of tokens")
        pairs.append((pair[0], pair[1]))
    return pairs


def candidates(pre_tokenizer: object) -> tuple[Candidate, ...]:
    """All pre-tokenizers, those that the tokenizer.json's description hints at first."""
    return tuple(Candidate(name, {"pre": name}) for name in ordered(pre_tokenizer))


def ordered(pre_tokenizer: object) -> list[str]:
    """All names, those that the description hints at first."""
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
    return hints + [name for name in NAMES if name not in hints]

"""How far the embeddings of a converted encoder are from its reference's, on the same token ids.

The text is cut into pieces of three lengths in turn: of short texts a wrong rounding shows most, long ones reach
positions that short ones do not. Each piece becomes one embedding of length 1 on both sides, and their cosine is taken.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from edgellm.artifact import GoldenEmbedding
from edgellm.convert import fit
from edgellm.errors import BadInputError
from edgellm.protocols import Backend, Embedder

PIECE_TOKENS = (16, 64, 256)
QUICK_TOKENS = 1024
FULL_TOKENS = 32768
GOLDEN_TEXTS = (
    "The capital of France is Paris.",
    "A lighthouse warns ships of the rocks.",
    "def add(a, b): return a + b",
)
GOLDEN_VALUES = 8

# The least cosine of any text. One model is the evidence, all-MiniLM-L6-v2, whose lowest of 43 texts were 0.99997 in
# BF16, 0.9992 in Q8_0, 0.998 in Q6_K, 0.979 in Q5_K_M, 0.969 in Q4_K_M, 0.918 in Q4_0, 0.902 in Q4_1, 0.872 in Q3_K_S.
# What is missing from 1 may be three to five times as much here, ten times in Q6_K: rows of 384 weights are no multiple
# of 256, so that most of its tensors fell back to finer types. Below four bits this finds broken files only.
MIN_COSINE = {
    "F32": 0.9999, "F16": 0.9999, "BF16": 0.9995, "Q8_0": 0.995, "Q6_K": 0.98, "Q5_K_M": 0.92, "Q5_K_S": 0.9, "Q5_1": 0.9,
    "Q5_0": 0.9, "Q4_K_M": 0.85, "Q4_K_S": 0.8, "Q4_1": 0.7, "Q4_0": 0.7, "IQ4_NL": 0.7, "IQ4_XS": 0.7, "MXFP4_MOE": 0.7,
    "Q3_K_L": 0.7, "Q3_K_M": 0.7, "Q3_K_S": 0.5, "IQ3_M": 0.5, "IQ3_S": 0.5, "IQ3_XS": 0.5, "IQ3_XXS": 0.4, "Q2_K": 0.3,
}  # fmt: skip

Encode = Callable[[str], list[int]]


@dataclasses.dataclass(frozen=True)
class Cosines:
    """Cosines between the embeddings of n_texts texts, n_tokens in all; 1 is the same direction."""

    n_texts: int
    n_tokens: int
    cosine_mean: float
    cosine_min: float


def min_cosine(quant: str) -> float:
    """The bound of a type; of a mix of our own that of the best named type with no more bits; else the lowest there is."""
    return MIN_COSINE.get(fit.held_to(quant), min(MIN_COSINE.values()))


def open_pooled(model: Backend, context: int) -> Embedder:
    """The model's embedder for texts of up to `context` tokens; it takes the mean where the file names no pooling."""
    embedder = model.open_embedder(context=context)
    if embedder.pooling != "none":
        return embedder
    embedder.close()
    return model.open_embedder(context=context, pooling="mean")


def longest_piece(context_train: int) -> int:
    """Tokens of the longest text that is compared, special ones included."""
    return min(max(PIECE_TOKENS), context_train)


def cut(
    ids: Sequence[int], ends: tuple[list[int], list[int]], *, limit: int, max_tokens: int
) -> list[list[int]]:
    """Pieces of the text, each between the special tokens that the model puts around a text.

    Args:
        ids: token ids of the text, without special tokens.
        ends: what comes before each piece, and after it; see `special_ends`.
        limit: most tokens of a piece, special ones included.
        max_tokens: most tokens of all pieces together.

    Raises:
        BadInputError: the text has less than one piece.
    """
    before, after = ends
    pieces: list[list[int]] = []
    at = n_tokens = 0
    while True:
        length = min(PIECE_TOKENS[len(pieces) % len(PIECE_TOKENS)], limit)
        n_own = length - len(before) - len(after)
        if n_own < 1 or at + n_own > len(ids) or n_tokens + length > max_tokens:
            break
        pieces.append([*before, *ids[at : at + n_own], *after])
        at += n_own
        n_tokens += length
    if not pieces:
        raise BadInputError(
            f"the text has {len(ids)} tokens, too few for one piece of {min(PIECE_TOKENS[0], limit)}",
            hint="give a longer text",
        )
    return pieces


def special_ends(plain: Sequence[int], whole: Sequence[int]) -> tuple[list[int], list[int]]:
    """What a tokenizer puts before and after a text: ids of the same text without and with special tokens."""
    for start in range(len(whole) - len(plain) + 1):
        if list(whole[start : start + len(plain)]) == list(plain):
            return list(whole[:start]), list(whole[start + len(plain) :])
    return [], []


def compare_embeddings(
    reference: Embedder,
    candidate: Embedder,
    texts_ids: Sequence[Sequence[int]],
    *,
    progress: Callable[[int], None] | None = None,
) -> Cosines:
    """Embed every text by both and compare.

    Args:
        texts_ids: token ids of each text, special tokens included.
        progress: called with the number of tokens just run through both.

    Raises:
        BadInputError: they are not the same model: another vocabulary, size or pooling.
    """
    for name in ("vocab_size", "embedding_size", "pooling"):
        first, second = getattr(reference, name), getattr(candidate, name)
        if first != second:
            raise BadInputError(
                f"{name.replace('_', ' ')} of the reference is {first}, of the converted model {second}: not the same model",
                hint="give the model that it was converted from",
            )
    cosines = []
    for ids in texts_ids:
        first, second = (
            side.embed(ids, normalize=True)[0].astype(np.float64) for side in (reference, candidate)
        )
        cosines.append(min(1.0, float(first @ second)))
        if progress:
            progress(len(ids))
    return Cosines(
        n_texts=len(cosines),
        n_tokens=sum(map(len, texts_ids)),
        cosine_mean=float(np.mean(cosines)),
        cosine_min=min(cosines),
    )


def golden_embeddings(embedder: Embedder, encode: Encode) -> list[GoldenEmbedding]:
    """Embeddings of fixed sentences; they show at once whether another machine computes the same.

    Args:
        encode: text to token ids, special tokens included.
    """
    found = []
    for text in GOLDEN_TEXTS:
        ids = encode(text)[: embedder.context]
        row = embedder.embed(ids, normalize=True)[0]
        first_values = [float(value) for value in row[:GOLDEN_VALUES]]
        found.append(GoldenEmbedding(text=text, token_ids=ids, first_values=first_values))
    return found

"""How far a converted model is from its reference, on the same token ids.

The method of llama-perplexity: the text is cut into chunks of n_ctx tokens, each run from an empty cache, and the
second half of each chunk is scored. Log-probabilities are compared as they are made, so nothing large is stored.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgellm.artifact import GoldenOutput
from edgellm.convert import fit, hints
from edgellm.convert.chunks import chunk_tokens, cut
from edgellm.errors import BadInputError
from edgellm.protocols import Backend, Feed, FloatArray, Sampled, SamplingParams

MAX_LOGITS = 16 * 1024**2
SCORED_AT_ONCE = 32
QUICK_TOKENS = 1024
FULL_TOKENS = 32768
GOLDEN_PROMPTS = ("The capital of France is", "1, 2, 3, 4,", "def add(a, b):\n")
GOLDEN_TOKENS = 24
CHECK_TEXT = Path(__file__).parent / "check_text.txt"

# A converted model beyond these is broken, not merely coarse. The better types are held to what llama.cpp reports
# for small models; below four bits small models differ too much for a tighter bound.
MAX_KL = {
    "F32": 0.01, "F16": 0.01, "BF16": 0.01, "Q8_0": 0.03, "Q6_K": 0.06, "Q5_K_M": 0.15, "Q5_K_S": 0.15, "Q5_1": 0.15,
    "Q5_0": 0.15, "Q4_K_M": 0.4, "Q4_K_S": 0.5, "Q4_1": 0.8, "Q4_0": 0.8, "Q3_K_L": 1.0, "Q3_K_M": 1.2, "Q3_K_S": 2.0,
    "Q2_K": 4.0, "Q2_K_S": 5.0, "MXFP4_MOE": 0.8, "IQ4_NL": 0.5, "IQ4_XS": 0.5,
    # About twelve times what llama.cpp reports for Llama-3-8B, as above. Under 3 bits this finds broken files only: a
    # model that has forgotten everything is at 8 to 12 nats, and small models are not far from it at IQ1 and TQ.
    "IQ3_M": 1.2, "IQ3_S": 1.4, "IQ3_XS": 1.7, "IQ3_XXS": 2.2, "IQ2_M": 4.0, "IQ2_S": 5.0, "IQ2_XS": 6.0, "IQ2_XXS": 7.0,
    "IQ1_M": 9.0, "IQ1_S": 10.0, "TQ2_0": 10.0, "TQ1_0": 10.0,
}  # fmt: skip


def max_kl(quant: str) -> float:
    """The bound for a quantization by name; a mix of our own is held to the best named mix with as many bits."""
    return MAX_KL.get(fit.held_to(quant), max(MAX_KL.values()))


@dataclasses.dataclass(frozen=True)
class Divergence:
    """Figures over n_tokens scored positions; errors are standard errors of the mean.

    Attributes:
        kl_mean, kl_p99: nats per token, KL(reference || candidate).
        top1_agreement: share of positions where both find the same token most likely.
        perplexity_ratio: candidate's perplexity over the reference's.
    """

    n_tokens: int
    kl_mean: float
    kl_mean_error: float
    kl_p99: float
    top1_agreement: float
    top1_agreement_error: float
    perplexity_ratio: float
    perplexity_ratio_error: float


class ReferenceBatcher(Protocol):
    """The part of a `Batcher` that a reference must have."""

    def step(self, feeds: Sequence[Feed]) -> list[Sampled]:
        """Append each feed's tokens and return the logits it asks for."""
        ...

    def free(self, sequence: int) -> None:
        """Forget a sequence."""
        ...

    def close(self) -> None:
        """Release it; safe to call twice."""
        ...


class Reference(Protocol):
    """The part of a `Backend` that a reference must have: a Backend, or another engine behind the same face."""

    vocab_size: int
    add_bos: bool
    bos_id: int | None

    def open(self, *, n_sequences: int, context: int) -> ReferenceBatcher:
        """A cache for that many sequences."""
        ...


def compare(
    reference: Reference,
    candidate: Backend,
    ids: Sequence[int],
    *,
    max_tokens: int,
    progress: Callable[[int], None] | None = None,
) -> Divergence:
    """Run both models over the text and compare their next-token distributions.

    Args:
        ids: token ids of the text, without beginning-of-sequence tokens.
        max_tokens: at most so many, in whole chunks.
        progress: called with the number of tokens just run through both models.

    Raises:
        BadInputError: the vocabularies differ, or the text is shorter than a chunk.
    """
    if reference.vocab_size != candidate.vocab_size:
        raise BadInputError(
            f"the reference has {reference.vocab_size} tokens, the converted model {candidate.vocab_size}: not the same model",
            hint="give the model that it was converted from",
        )
    length = chunk_tokens(candidate.context_train)
    chunks = cut(ids, length, "the text")[: max(1, max_tokens // length)]
    batchers = [
        reference.open(n_sequences=1, context=length),
        candidate.open(n_sequences=1, context=length),
    ]
    rows: list[tuple[FloatArray, ...]] = []
    try:
        for chunk in chunks:
            if reference.add_bos and reference.bos_id is not None:
                chunk[0] = reference.bos_id
            rows += _score_chunk(batchers[0], batchers[1], chunk, reference.vocab_size, progress)
    finally:
        for batcher in batchers:
            batcher.close()
    kl, same, nll_reference, nll_candidate = (np.concatenate(column) for column in zip(*rows, strict=True))
    return _summary(kl, same, nll_reference, nll_candidate)


def golden_outputs(backend: Backend, encode: Callable[[str], list[int]]) -> list[GoldenOutput]:
    """Greedy continuations of fixed prompts; they show at once whether another machine computes the same."""
    context = chunk_tokens(backend.context_train)
    batcher = backend.open(n_sequences=1, context=context)
    outputs = []
    try:
        for prompt in GOLDEN_PROMPTS:
            batcher.free(0)
            drawn: list[int] = []
            feed: Sequence[int] = encode(prompt)
            for _ in range(min(GOLDEN_TOKENS, context - len(feed))):
                token = batcher.step([Feed(sequence=0, tokens=feed, sampling=SamplingParams())])[0].tokens[0]
                if backend.is_end(token):
                    break
                drawn.append(token)
                feed = (token,)
            text = b"".join(backend.token_bytes(token) for token in drawn).decode("utf-8", errors="replace")
            outputs.append(GoldenOutput(prompt=prompt, token_ids=drawn, text=text))
    finally:
        batcher.close()
    return outputs


def _score_chunk(
    reference: ReferenceBatcher,
    candidate: ReferenceBatcher,
    chunk: list[int],
    vocab_size: int,
    progress: Callable[[int], None] | None,
) -> list[tuple[FloatArray, ...]]:
    half = len(chunk) // 2
    for batcher in (reference, candidate):
        batcher.free(0)
        batcher.step([Feed(sequence=0, tokens=chunk[:half])])
    if progress:
        progress(half)
    rows = []
    step = max(1, min(half, MAX_LOGITS // vocab_size))
    for start in range(half, len(chunk) - 1, step):
        tokens = chunk[start : min(start + step, len(chunk) - 1)]
        following = chunk[start + 1 : start + 1 + len(tokens)]
        first, second = _logits(reference, tokens), _logits(candidate, tokens)
        for i in range(0, len(tokens), SCORED_AT_ONCE):
            part = slice(i, i + SCORED_AT_ONCE)
            rows.append(_score_slice(first[part], second[part], following[part]))
        if progress:
            progress(len(tokens))
    return rows


def _logits(batcher: ReferenceBatcher, tokens: list[int]) -> FloatArray:
    logits = batcher.step([Feed(sequence=0, tokens=tokens, want="all")])[0].logits
    assert logits is not None
    return logits


def _score_slice(
    reference: FloatArray, candidate: FloatArray, following: list[int]
) -> tuple[FloatArray, ...]:
    """(n,) arrays: KL, agreement, negative log-likelihoods of the following tokens under both."""
    at = np.arange(len(following))
    log_p, log_q = _log_softmax(reference), _log_softmax(candidate)
    kl = np.einsum("ij,ij->i", np.exp(log_p), log_p - log_q)
    same = reference.argmax(axis=1) == candidate.argmax(axis=1)
    return (
        np.maximum(kl, 0).astype(np.float64),
        same.astype(np.float64),
        -log_p[at, following].astype(np.float64),
        -log_q[at, following].astype(np.float64),
    )  # type: ignore[return-value]


def _log_softmax(logits: FloatArray) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def _summary(
    kl: FloatArray, same: FloatArray, nll_reference: FloatArray, nll_candidate: FloatArray
) -> Divergence:
    n = len(kl)
    if not np.isfinite(kl).all():
        raise BadInputError(
            "a model gives log-probabilities that are not finite: it is broken", hint=hints.BROKEN
        )
    agreement = float(same.mean())
    difference = nll_candidate - nll_reference
    ratio = math.exp(float(difference.mean()))
    return Divergence(
        n_tokens=n,
        kl_mean=float(kl.mean()),
        kl_mean_error=float(kl.std(ddof=1) / math.sqrt(n)),
        kl_p99=float(np.quantile(kl, 0.99)),
        top1_agreement=agreement,
        top1_agreement_error=math.sqrt(agreement * (1 - agreement) / (n - 1)),
        perplexity_ratio=ratio,
        perplexity_ratio_error=ratio * float(difference.std(ddof=1)) / math.sqrt(n),
    )

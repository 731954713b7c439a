"""How far logits move with what else is computed in the same native call, measured, and greedy texts to compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edgellm.protocols import Backend, Feed, FloatArray

STORIES = [
    "Once upon a time there was a",
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "One, two, three, four, one, two, three,",
    "The best way to cook rice is to",
    "In the beginning of the twentieth century, physicists believed that",
    "A list of animals: cat, dog, horse, cow,",
    "Dear Sir, I am writing to you about",
]


class Alone(NamedTuple):
    """A greedy answer computed with nothing beside, and the logits (n_tokens, n_vocab) that each token was taken from."""

    prompt: list[int]
    ids: list[int]
    rows: FloatArray


def answer_alone(backend: Backend, prompt: list[int], n_tokens: int) -> Alone:
    """The prompt in one call, then token by token."""
    batcher = backend.open(n_sequences=1, context=len(prompt) + n_tokens)
    ids: list[int] = []
    rows = []
    feed = prompt
    for _ in range(n_tokens):
        logits = batcher.step([Feed(sequence=0, tokens=feed, want="last")])[0].logits
        assert logits is not None
        rows.append(logits[0])
        feed = [int(logits[0].argmax())]
        ids += feed
        if backend.is_end(feed[0]):
            break
    batcher.close()
    return Alone(prompt, ids, np.stack(rows))


def moved(row: FloatArray, other: FloatArray) -> float:
    """How much the difference of two logits changed at most from one row (n_vocab,) to another for the same text."""
    return float(np.ptp(row - other))


def noise_in_company(backend: Backend, alone: Sequence[Alone], chunk_tokens: int) -> float:
    """Most that logits moved where the same texts were computed side by side, prompts in chunks beside others' tokens."""
    context = max(len(one.prompt) + len(one.ids) for one in alone)
    batcher = backend.open(n_sequences=len(alone), context=context)
    texts = [[*one.prompt, *one.ids[:-1]] for one in alone]
    worst = 0.0
    step = 0
    while any(batcher.length(i) < len(text) for i, text in enumerate(texts)):
        feeds = []
        for i, (one, text) in enumerate(zip(alone, texts, strict=True)):
            at = batcher.length(i)
            if step < i or at == len(text):  # one after the other joins
                continue
            end = min(len(one.prompt), at + chunk_tokens) if at < len(one.prompt) else at + 1
            feeds.append(Feed(sequence=i, tokens=text[at:end], want="last"))
        for feed, sampled in zip(feeds, batcher.step(feeds), strict=True):
            one = alone[feed.sequence]
            n_drawn = batcher.length(feed.sequence) - len(one.prompt)
            if n_drawn >= 0 and sampled.logits is not None:
                worst = max(worst, moved(one.rows[n_drawn], sampled.logits[0]))
        step += 1
    batcher.close()
    return worst


def noise_of_drafts(backend: Backend, alone: Sequence[Alone], draft_tokens: Sequence[int]) -> float:
    """Most that logits moved where tokens of the same texts were computed together, as drafts are."""
    worst = 0.0
    for one in alone:
        batcher = backend.open(n_sequences=1, context=len(one.prompt) + len(one.ids))
        batcher.step([Feed(sequence=0, tokens=one.prompt)])
        for n_drafted in draft_tokens:
            batcher.truncate(0, len(one.prompt))
            for at in range(0, len(one.ids) - 1, n_drafted + 1):
                tokens = one.ids[at : min(at + n_drafted + 1, len(one.ids) - 1)]
                logits = batcher.step([Feed(sequence=0, tokens=tokens, want="all")])[0].logits
                assert logits is not None
                for i, row in enumerate(logits):
                    worst = max(worst, moved(one.rows[at + i + 1], row))
        batcher.close()
    return worst


def gap_where_they_part(one: Alone, ids: Sequence[int]) -> float | None:
    """Distance of the two best logits at the first token that differs from the answer alone; None where none does."""
    for i, (expected, found) in enumerate(zip(one.ids, ids, strict=False)):
        if expected != found:
            best = np.sort(one.rows[i])[-2:]
            return float(best[1] - best[0])
    assert len(ids) == len(one.ids)
    return None

"""A smaller model that guesses what a larger one will say.

Its caches follow the text of each sequence: what both begin with stays, what differs is taken out, what is missing is
fed. Sequences that want guesses at the same time share its native calls. What goes wrong here ends no generation: the
draft model is given up, and says why.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edgellm.errors import SpecError, UnsupportedError
from edgellm.protocols import Backend, Feed, FloatArray, SamplingParams
from edgellm.runtime.prefix_cache import common_prefix
from edgellm.runtime.speculation import StepTimes

# Tokens of prompts that the draft model reads between two steps of the model.
READ_TOKENS = 128
# Reading so many costs about as much as one step of the model, or less.
READ_PER_STEP = 16
# So few are fed with the guess that follows them.
_FEW_TOKENS = 8
# A guess that the draft model itself believes in less is not worth checking.
LEAST_CONFIDENCE = 0.4
_SAMPLE = 4096
_GREEDY = SamplingParams()


def check_draft(model: Backend, draft: Backend) -> None:
    """Refuse a draft model whose guesses would mean something else, or that cannot take them back.

    Raises:
        SpecError: it has another vocabulary.  UnsupportedError: a cache of one of them cannot be truncated.
    """
    hint = "use a smaller model of the same family"
    if draft.vocab_size != model.vocab_size:
        raise SpecError(
            f"the draft model has {draft.vocab_size} tokens, the model {model.vocab_size}", hint=hint
        )
    size = model.vocab_size
    # All of what is special in most vocabularies, at either end, and some of the rest.
    sample = {
        *range(min(size, 256)),
        *range(max(0, size - 1024), size),
        *range(0, size, max(1, size // _SAMPLE)),
    }
    sample |= {
        token for token in (model.bos_id, model.eos_id, draft.bos_id, draft.eos_id) if token is not None
    }
    for token in sorted(sample):
        ours, theirs = model.token_text(token), draft.token_text(token)
        if ours != theirs:
            raise SpecError(
                f"token {token} is {theirs!r} in the draft model, {ours!r} in the model", hint=hint
            )
    for name, backend in (("the model's", model), ("the draft model's", draft)):
        if not backend.capabilities.can_truncate:
            raise UnsupportedError(
                f"{name} cache (sliding window, recurrent) cannot be truncated, so no guess can be taken back",
                hint="load it without a draft model",
            )


class Wish(NamedTuple):
    """Guesses that are asked for.

    Attributes:
        text: tokens of the sequence, the one that the model is fed next included.
        n_tokens: at most so many guesses.  n_drawn: tokens that the model has drawn in this text.
    """

    sequence: int
    text: list[int]
    n_tokens: int
    n_drawn: int


class DraftModel:
    """Caches of a draft model beside those of the model, sequence by sequence.

    Args:
        times: learns what guesses cost.
        context: tokens of a sequence; no guesses are made beyond it, or beyond what the draft model was trained for.

    Attributes:
        failure: why it was given up; None while it works.
    """

    def __init__(self, backend: Backend, times: StepTimes, *, n_sequences: int, context: int) -> None:
        self._backend, self._times = backend, times
        self.context = min(context, backend.context_train)
        self._batcher = backend.open(n_sequences=n_sequences, context=self.context)
        self._owners: list[str | None] = [None] * n_sequences
        self._n_known = [0] * n_sequences
        self.failure: str | None = None

    def begin(self, sequence: int, owner: str, *, reuse: bool) -> None:
        """Another generation has this sequence; what it holds stays for the same owner, where `reuse` allows it."""
        if self.failure is not None:
            return
        if not reuse or self._owners[sequence] != owner:
            try:
                self._batcher.free(sequence)
            except Exception as err:
                self._give_up(err)
        self._owners[sequence] = owner

    def guess(self, wishes: Sequence[Wish]) -> dict[int, list[int]]:
        """What the model will probably draw next, by sequence; for some perhaps nothing."""
        if self.failure is not None:
            return {}
        try:
            return self._guess(wishes)
        except Exception as err:  # the model goes on without
            self._give_up(err)
            return {}

    def close(self) -> None:
        """Release the caches; safe to call twice."""
        self._batcher.close()

    def _give_up(self, err: Exception) -> None:
        self.failure = f"{type(err).__name__}: {err}"[:500]
        self.close()

    def _guess(self, wishes: Sequence[Wish]) -> dict[int, list[int]]:
        feeding = self._read(wishes)
        n_wanted = {wish.sequence: wish.n_tokens for wish in wishes}
        guesses: dict[int, list[int]] = {sequence: [] for sequence in feeding}
        started_s = time.perf_counter()
        while feeding:
            feeds = [
                Feed(sequence=sequence, tokens=tokens, sampling=_GREEDY, want="last")
                for sequence, tokens in feeding.items()
            ]
            feeding = {}
            for feed, sampled in zip(feeds, self._batcher.step(feeds), strict=True):
                token, rows, found = sampled.tokens[0], sampled.logits, guesses[feed.sequence]
                # Drawing the end needs no guess: nothing comes after it.
                if self._backend.is_end(token) or rows is None or confidence(rows[0]) < LEAST_CONFIDENCE:
                    continue
                found.append(token)
                if (
                    len(found) < n_wanted[feed.sequence]
                    and self._batcher.length(feed.sequence) < self.context
                ):
                    feeding[feed.sequence] = [token]
        if guesses:
            n_guesses = sum(map(len, guesses.values()))
            self._times.note_guesses(n_guesses, time.perf_counter() - started_s)
        return guesses

    def _read(self, wishes: Sequence[Wish]) -> dict[int, list[int]]:
        """Bring the caches up to the texts, as far as one step allows; what is left to feed where only little is."""
        ready: dict[int, list[int]] = {}
        feeds = []
        left = READ_TOKENS
        for wish in wishes:
            # Not more is spent on reading than was on drawing: short answers to long prompts are left alone.
            missing = self._missing(wish)
            if len(missing) > READ_PER_STEP * max(wish.n_drawn, 1):
                continue
            if len(missing) > _FEW_TOKENS:
                part = missing[: min(left, len(missing) - 1)]
                left -= len(part)
                if part:
                    feeds.append(Feed(sequence=wish.sequence, tokens=part))
                missing = missing[len(part) :]
            if 0 < len(missing) <= _FEW_TOKENS:
                ready[wish.sequence] = missing
        if feeds:
            self._batcher.step(feeds)
        return ready

    def _missing(self, wish: Wish) -> list[int]:
        """Tokens of the text that the cache lacks, at least the last; none where the text is too long for it."""
        sequence, text = wish.sequence, wish.text
        if len(text) > self.context:
            return []
        held = self._batcher.tokens(sequence)
        n = min(self._n_known[sequence], len(held), len(text))
        if held[:n] != text[:n]:
            n = 0
        n += common_prefix(held[n:], text[n:])
        n = min(n, len(text) - 1)
        if n < len(held):
            self._batcher.truncate(sequence, n)
        self._n_known[sequence] = n
        return text[n:]


def confidence(logits: FloatArray) -> float:
    """Probability of the most likely token under logits (n_vocab,)."""
    return 1 / float(np.exp(logits - logits.max()).sum())

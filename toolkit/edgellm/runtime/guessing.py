"""The guesses of all generations: what steps cost, and the draft model that they share."""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.protocols import Backend, Feed
from edgellm.runtime.draft_model import DraftModel, Wish
from edgellm.runtime.generation import Generation
from edgellm.runtime.speculation import Drafter, StepTimes


class Guessing:
    """Guesses for the sequences of one batcher.

    Args:
        draft: a smaller model with the same vocabulary; None leaves lookup in the text.
        n_sequences, context: of the batcher.
    """

    def __init__(self, draft: Backend | None, *, n_sequences: int, context: int) -> None:
        self._times = StepTimes()
        self._wishes: list[Wish] = []
        self._model = (
            DraftModel(draft, self._times, n_sequences=n_sequences, context=context) if draft else None
        )

    def begin(self, generation: Generation) -> None:
        """A generation that may guess has its sequence."""
        generation.drafter = Drafter(self._times, has_model=self._model is not None)
        if self._model:
            request = generation.request
            self._model.begin(generation.sequence, request.owner, reuse=request.cache_prompt)

    def choose(self, generation: Generation, held: Sequence[int], n_sequences: int) -> None:
        """Let one choose its guesses for a step in which so many answers grow; `held` is what its cache holds."""
        n_asked = generation.propose(n_sequences)
        if n_asked:
            self._wishes.append(generation.wish(held, n_asked))

    def ask_model(self, generations: Sequence[Generation]) -> None:
        """Let the draft model make the guesses that these have chosen to ask it for."""
        wishes, self._wishes = self._wishes, []
        if not self._model:
            return
        guesses = self._model.guess(wishes) if wishes else {}
        for generation in generations:
            generation.guessed(guesses.get(generation.sequence, ()))
            if generation.drafter:
                generation.draft_failure = self._model.failure

    def note(self, feeds: Sequence[Feed], seconds: float) -> None:
        """A step with these feeds took that long."""
        only_answers = all(len(feed.tokens) == 1 and feed.sampling is not None for feed in feeds)
        if only_answers and len({feed.adapters for feed in feeds}) == 1:
            self._times.note(sum(1 + len(feed.draft) for feed in feeds), seconds)

    def close(self) -> None:
        """Release the draft model's caches; safe to call twice."""
        if self._model:
            self._model.close()

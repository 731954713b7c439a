"""Guessing what comes next, so that one native call can check several tokens.

A guess is checked by drawing: the text is the same as without, under greedy decoding and under sampling with the same
seed. Guesses come from the text itself (prompt lookup) or from a draft model. They are made as long as they pay: `Pace`
weighs what they cost, the steps and the draft model's own time, against how many were right.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Collection, Sequence
from typing import NamedTuple

MAX_DRAFT = 16
_LONGEST_KEY, _SHORTEST_KEY = 4, 2
_LOOK_AGAIN_AFTER = 48
_SMOOTHING = 0.25  # for each guess that was checked
_KEPT_STEPS, _ENOUGH_STEPS = 9, 3
_MARGINAL_COST = 0.05


class PromptLookup:
    """Looks for the last few tokens earlier in the text, and guesses what followed them there."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}

    def extend(self, tokens: Sequence[int]) -> None:
        """Remember where each run of tokens ends; the latest place wins."""
        text = self._tokens
        for token in tokens:
            # A run is filed when its next token is known.
            for length in range(_SHORTEST_KEY, _LONGEST_KEY + 1):
                if len(text) >= length:
                    self._places[tuple(text[-length:])] = len(text)
            text.append(token)

    def guess(self, n_tokens: int) -> list[int]:
        """What followed the longest run that ends the text; a text that has begun to repeat itself goes on doing so."""
        text = self._tokens
        for length in range(min(_LONGEST_KEY, len(text)), _SHORTEST_KEY - 1, -1):
            place = self._places.get(tuple(text[-length:]))
            if place is not None:
                period = len(text) - place
                return [text[place + i % period] for i in range(n_tokens)]
        return []


class StepTimes:
    """What steps cost in which only answers grow, by the tokens in them, and what a draft model's guesses cost.

    Measured while running, for all generations together. Medians of the last few steps: one step that the machine was
    interrupted in must not stop guessing.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, deque[float]] = {}
        self._noted_at: dict[int, int] = {}
        self._n_noted = 0
        self._guess_s: deque[float] = deque(maxlen=_KEPT_STEPS)
        self._guess_rebate = 1.0

    def note(self, n_tokens: int, seconds: float) -> None:
        """One step of that many tokens took that long."""
        self._seconds.setdefault(n_tokens, deque(maxlen=_KEPT_STEPS)).append(seconds)
        self._n_noted += 1
        self._noted_at[n_tokens] = self._n_noted

    def note_guesses(self, n_guesses: int, seconds: float) -> None:
        """The draft model took that long for so many guesses, perhaps none."""
        self._guess_s.append(seconds / max(n_guesses, 1))
        self._guess_rebate = 1.0

    def forget_guesses(self) -> None:
        """Guesses may have become cheaper: what was measured long ago counts for less."""
        self._guess_rebate *= 0.8

    def relative(self, n_tokens: int, n_base: int = 1) -> float:
        """Cost of a step of n_tokens over one of n_base; an optimistic guess where not measured yet."""
        base = self._typical(n_base)
        if not base or n_tokens == n_base:
            return 1 + _MARGINAL_COST * (n_tokens - n_base)
        known = self._typical(n_tokens)
        if known is None:
            known = self._between(n_tokens, n_base, base)
        return known / base

    def guess_cost(self, n_base: int) -> float:
        """Cost of one guess of the draft model over a step of n_base tokens; 0 where not measured yet."""
        base, guess_s = self._typical(n_base), _typical(self._guess_s)
        return self._guess_rebate * guess_s / base if base and guess_s else 0.0

    def is_due(self, n_base: int) -> bool:
        """Whether a step without guesses should show what one costs now: there was none for long."""
        last = self._noted_at.get(n_base)
        return last is None or self._n_noted - last > _LOOK_AGAIN_AFTER

    def _between(self, n_tokens: int, n_base: int, base: float) -> float:
        below = max(n for n in self._seconds if n < n_tokens)
        above = min((n for n in self._seconds if n > n_tokens), default=None)
        start = self._typical(below) or base
        if above is not None:
            slope = ((self._typical(above) or start) - start) / (above - below)
        else:
            slope = (start - base) / (below - n_base) if below > n_base else _MARGINAL_COST * base
        return start + max(slope, 0.0) * (n_tokens - below)

    def _typical(self, n_tokens: int) -> float | None:
        return _typical(self._seconds.get(n_tokens, ()))


def _typical(seconds: Collection[float]) -> float | None:
    if not seconds:
        return None
    return statistics.median(seconds) if len(seconds) >= _ENOUGH_STEPS else min(seconds)


class Pace:
    """How many tokens one sequence should guess now: as many as pay, none for a while where none do.

    Attributes:
        gain: what the last `length` promised: tokens per second over those of a step without guesses.
    """

    def __init__(self, times: StepTimes) -> None:
        self._times = times
        self._right = 0.7
        self._rest = 0
        self.gain = 1.0

    def length(self, n_sequences: int = 1, guess_cost: float = 0.0) -> int:
        """Tokens to guess in the next step.

        Args:
            n_sequences: answers that grow in that step, this one included. The step is slower for all of them.
            guess_cost: of one guess, over a step without any.
        """
        self.gain = 1.0
        if self._rest:
            self._rest -= 1
            return 0
        best, best_gain = 0, 1.02
        for n_draft in (1, 2, 3, 4, 6, 8, 12, MAX_DRAFT):
            more = sum(self._right**i for i in range(1, n_draft + 1))
            cost = self._times.relative(n_sequences + n_draft, n_sequences) + n_draft * guess_cost
            gain = (n_sequences + more) / n_sequences / cost
            if gain > best_gain:
                best, best_gain = n_draft, gain
        if not best:
            self._rest = _LOOK_AGAIN_AFTER
            self._right = 0.6
            return 0
        self.gain = best_gain
        return best

    @property
    def is_resting(self) -> bool:
        """Whether nothing is guessed for a while."""
        return self._rest > 0

    def note(self, n_drafted: int, n_right: int) -> None:
        """Of n_drafted guesses n_right were right."""
        if n_drafted:
            # Each right guess is a success; the first wrong one a failure; those behind it say nothing.
            tried = min(n_right + 1, n_drafted)
            weight = 1 - (1 - _SMOOTHING) ** tried
            self._right += weight * (n_right / tried - self._right)


class Draft(NamedTuple):
    """Guesses, and whose pace learns how many of them were right; None for those that cannot be wrong."""

    tokens: Sequence[int] = ()
    pace: Pace | None = None


class Drafter:
    """Where the guesses for one generation come from.

    Of lookup and draft model, the one that promises more tokens per second is asked. A lookup costs nothing, so where it
    finds something it goes first until it was wrong more often than the draft model by more than that model's time.

    Args:
        times: of all generations.
        has_model: whether there is a draft model to ask.
    """

    def __init__(self, times: StepTimes, *, has_model: bool) -> None:
        self._times = times
        self._lookup = PromptLookup()
        self._lookup_pace = Pace(times)
        self._has_model = has_model
        self.model_pace = Pace(times)

    def extend(self, tokens: Sequence[int]) -> None:
        """These tokens follow what was known before."""
        self._lookup.extend(tokens)

    def propose(self, n_most: int, n_sequences: int) -> tuple[Draft, int]:
        """At most n_most guesses for a step in which so many answers grow.

        Returns:
            What lookup guesses; and how many guesses the draft model should make in their place, 0 for none.
        """
        if n_most < 1 or self._times.is_due(n_sequences):
            return Draft(), 0
        n_back = min(self._lookup_pace.length(n_sequences), n_most)
        found = Draft(self._lookup.guess(n_back), self._lookup_pace) if n_back else Draft()
        n_asked = self._ask_model(n_most, n_sequences)
        if found.tokens and self._lookup_pace.gain >= self.model_pace.gain:
            n_asked = 0
        return found, n_asked

    def _ask_model(self, n_most: int, n_sequences: int) -> int:
        if not self._has_model:
            return 0
        rested = self.model_pace.is_resting
        n_asked = self.model_pace.length(n_sequences, self._times.guess_cost(n_sequences))
        if self.model_pace.is_resting and not rested:
            self._times.forget_guesses()
        return min(n_asked, n_most)

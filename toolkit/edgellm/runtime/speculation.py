"""Guessing what comes next, so that one native call can check several tokens.

A guess is checked by drawing: the text is the same as without, under greedy decoding and under sampling with the same
seed. Guessing pays where the text repeats what came before; where it does not, `Pace` stops it.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from typing import Protocol

MAX_DRAFT = 16
_LONGEST_KEY, _SHORTEST_KEY = 4, 2
_LOOK_AGAIN_AFTER = 48
_SMOOTHING = 0.25  # for each guess that was checked
_KEPT_STEPS, _ENOUGH_STEPS = 9, 3
_MARGINAL_COST = 0.05


class Drafter(Protocol):
    """Guesses for one sequence."""

    def extend(self, tokens: Sequence[int]) -> None:
        """These tokens follow what was known before."""
        ...

    def guess(self, n_tokens: int) -> list[int]:
        """At most n_tokens guesses of what follows."""
        ...


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
    """What a step costs by the number of tokens that one sequence feeds, measured while running.

    Medians of the last few steps: one step that the machine was interrupted in must not stop guessing.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, deque[float]] = {}

    def note(self, n_tokens: int, seconds: float) -> None:
        """One step of a single sequence took that long."""
        self._seconds.setdefault(n_tokens, deque(maxlen=_KEPT_STEPS)).append(seconds)

    def relative(self, n_tokens: int) -> float:
        """Cost of a step of n_tokens over one of a single token; an optimistic guess where not measured yet."""
        one = self._typical(1)
        if not one or n_tokens == 1:
            return 1 + _MARGINAL_COST * (n_tokens - 1)
        known = self._typical(n_tokens)
        if known is None:
            known = self._between(n_tokens, one)
        return known / one

    def _between(self, n_tokens: int, one: float) -> float:
        below = max(n for n in self._seconds if n < n_tokens)
        above = min((n for n in self._seconds if n > n_tokens), default=None)
        base = self._typical(below) or one
        if above is not None:
            slope = ((self._typical(above) or base) - base) / (above - below)
        else:
            slope = (base - one) / (below - 1) if below > 1 else _MARGINAL_COST * one
        return base + max(slope, 0.0) * (n_tokens - below)

    def _typical(self, n_tokens: int) -> float | None:
        seconds = self._seconds.get(n_tokens)
        if not seconds:
            return None
        return statistics.median(seconds) if len(seconds) >= _ENOUGH_STEPS else min(seconds)


class Pace:
    """How many tokens one sequence should guess now: as many as pay, none for a while where none do."""

    def __init__(self, times: StepTimes) -> None:
        self._times = times
        self._right = 0.7
        self._rest = 0

    def length(self) -> int:
        """Tokens to guess in the next step."""
        if self._rest:
            self._rest -= 1
            return 0
        best, best_gain = 0, 1.02
        for n_draft in (1, 2, 3, 4, 6, 8, 12, MAX_DRAFT):
            p = self._right
            expected = 1 + sum(p**i for i in range(1, n_draft + 1))
            gain = expected / self._times.relative(n_draft + 1)
            if gain > best_gain:
                best, best_gain = n_draft, gain
        if not best:
            self._rest = _LOOK_AGAIN_AFTER
            self._right = 0.6
        return best

    def note(self, n_drafted: int, n_right: int) -> None:
        """Of n_drafted guesses n_right were right."""
        if n_drafted:
            # Each right guess is a success; the first wrong one a failure; those behind it say nothing.
            tried = min(n_right + 1, n_drafted)
            weight = 1 - (1 - _SMOOTHING) ** tried
            self._right += weight * (n_right / tried - self._right)

"""Sampling parameters as native samplers: each narrows the choice as it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm.api import models
from edgellm.native.llama import LlamaOptions
from edgellm.protocols import Batcher, Feed, FloatArray, SamplingParams

PROMPT = "My favourite animal is the"


class Drawer:
    """Draws the next token after one prompt many times; the prompt is processed once."""

    def __init__(self, batcher: Batcher, prompt: list[int]) -> None:
        self._batcher, self.prompt = batcher, prompt
        logits = batcher.step([Feed(sequence=0, tokens=prompt, want="last")])[0].logits
        assert logits is not None
        self.logits: FloatArray = logits[0]

    def draw(self, n: int = 1, **params: Any) -> list[int]:
        """n draws, each by a new sampler with the next seed."""
        found = []
        for seed in range(n):
            self._batcher.truncate(0, len(self.prompt) - 1)
            self._batcher.reset_sampler(0)
            sampling = SamplingParams(**{"seed": seed, **params})
            found += self._batcher.step([Feed(sequence=0, tokens=self.prompt[-1:], sampling=sampling)])[
                0
            ].tokens
        return found

    def probabilities(self, temperature: float = 1) -> FloatArray:
        scaled = (self.logits - self.logits.max()) / temperature
        weights: FloatArray = np.exp(scaled)
        return weights / weights.sum()


@pytest.fixture(scope="module")
def drawer(smollm2_gguf: Path) -> Iterator[Drawer]:
    model = models.open_backend(smollm2_gguf, LlamaOptions(n_threads=1))
    batcher = model.open(n_sequences=1, context=64)
    yield Drawer(batcher, model.tokenize(PROMPT, add_special=False, parse_special=False))
    batcher.close()
    model.close()


def test_temperature_zero_is_the_most_likely_token(drawer: Drawer) -> None:
    best = int(drawer.logits.argmax())
    assert drawer.draw(3, temperature=0) == [best] * 3
    assert drawer.draw(3, temperature=0, repeat_penalty=1.0001, repeat_last_n=1) == [best] * 3


def test_a_seed_gives_the_same_draw_and_seeds_differ(drawer: Drawer) -> None:
    draws = drawer.draw(12, temperature=2)
    assert draws == drawer.draw(12, temperature=2)
    assert len(set(draws)) > 3
    assert len(set(drawer.draw(12, temperature=2, seed=None))) > 3


def test_top_k_keeps_the_k_best(drawer: Drawer) -> None:
    best = set(np.argsort(drawer.logits)[-3:].tolist())
    draws = set(drawer.draw(30, temperature=5, top_k=3))
    assert draws <= best
    assert len(draws) > 1
    assert set(drawer.draw(3, temperature=5, top_k=1)) == {int(drawer.logits.argmax())}
    assert len(set(drawer.draw(12, temperature=2, top_k=1 << 20))) > 3


def test_top_p_keeps_the_smallest_set_that_likely(drawer: Drawer) -> None:
    p = np.sort(drawer.probabilities())[::-1]
    order = np.argsort(drawer.logits)[::-1]
    n_kept = int(np.searchsorted(np.cumsum(p), 0.3)) + 1
    assert set(drawer.draw(30, temperature=3, top_p=0.3)) <= set(order[:n_kept].tolist())
    assert drawer.draw(2, temperature=3, top_p=0.0) == [int(drawer.logits.argmax())] * 2


def test_min_p_drops_what_is_much_less_likely_than_the_best(drawer: Drawer) -> None:
    p = drawer.probabilities()
    kept = set(np.flatnonzero(p >= 0.2 * p.max()).tolist())
    assert set(drawer.draw(30, temperature=5, min_p=0.2)) <= kept
    assert drawer.draw(2, temperature=5, min_p=1.0) == [int(drawer.logits.argmax())] * 2


def test_draws_follow_the_probabilities(drawer: Drawer) -> None:
    best = int(drawer.logits.argmax())
    n = 80
    expected = float(drawer.probabilities(0.7)[best])
    share = drawer.draw(n, temperature=0.7).count(best) / n
    assert abs(share - expected) < 5 * (expected * (1 - expected) / n) ** 0.5 + 1 / n


def test_a_penalty_moves_the_choice_away_from_the_prompt(drawer: Drawer) -> None:
    last = drawer.prompt[-1]
    penalised = drawer.draw(20, temperature=1, repeat_penalty=100.0)
    assert last not in penalised
    assert set(penalised).isdisjoint(drawer.prompt)


def test_a_penalty_looks_back_only_so_far(drawer: Drawer) -> None:
    assert drawer.draw(4, temperature=1, repeat_penalty=1.5, repeat_last_n=0) == drawer.draw(4, temperature=1)


def test_a_sampler_goes_on_from_step_to_step(drawer: Drawer) -> None:
    sampling = SamplingParams(temperature=1, seed=4)
    runs = []
    for _ in range(2):
        (token,) = drawer.draw(1, temperature=1, seed=4)
        drawn = [token]
        for _ in range(6):
            drawn += drawer._batcher.step([Feed(sequence=0, tokens=drawn[-1:], sampling=sampling)])[0].tokens
        runs.append(drawn)
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 1

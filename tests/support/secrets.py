"""Conversations that begin alike: one knows a secret, the others must not be able to tell.

What the others get is compared with what a fresh model gives: tokens and log-probabilities exactly. What they are told
of the cache is compared with what their own owner has said before under the same adapters.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Sequence
from typing import Any

from edgellm.errors import EdgeLLMError
from edgellm.runtime.model import Model
from edgellm.runtime.request import Completion

Asked = tuple[str, str, tuple[tuple[str, float], ...], tuple[tuple[str, Any], ...]]


class Whispers:
    """Random conversations with one model, each compared with a fresh one.

    Args:
        fresh: the same model; asked one by one, with nothing cached and nothing guessed.
        prompts: the same beginning, and different ends.
        adapters: sets of adapters that are asked for.
        options: of each generation; one is drawn.
        allowed: errors that a generation may end with.
    """

    def __init__(
        self,
        model: Model,
        fresh: Model,
        prompts: Sequence[str],
        *,
        adapters: Sequence[dict[str, float]] = ({},),
        options: Sequence[dict[str, Any]] = ({},),
        allowed: tuple[type[EdgeLLMError], ...] = (),
    ) -> None:
        self.model, self.fresh = model, fresh
        self._prompts, self._adapters, self._options, self._allowed = prompts, adapters, options, allowed
        self.wrong: list[str] = []
        self.n_compared = self.n_cached = 0
        self._known: dict[Asked, Completion] = {}
        self._said: dict[tuple[str, tuple[tuple[str, float], ...]], set[tuple[int, ...]]] = {}
        self._lock = threading.Lock()

    def run(self, *, n_threads: int, n_each: int, owners: Sequence[str], seed: int) -> None:
        """Hold them all; each thread also asks as owners that nobody else is."""
        threads = [
            threading.Thread(target=self._guarded, args=(f"{seed}-{i}", n_each, owners))
            for i in range(n_threads)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _guarded(self, seed: str, n: int, owners: Sequence[str]) -> None:
        rng = random.Random(seed)
        for i in range(n):
            owner = f"stranger {seed} {i}" if rng.random() < 0.2 else rng.choice(owners)
            try:
                self._hold(rng, owner)
            except self._allowed:
                pass
            except BaseException as err:
                self.wrong.append(repr(err))

    def _hold(self, rng: random.Random, owner: str) -> None:
        prompt, adapters = rng.choice(self._prompts), rng.choice(self._adapters)
        asked = {"max_tokens": 6, "temperature": 0, "adapters": adapters, **rng.choice(self._options)}
        before, expected = self._expected(owner, prompt, asked)
        stream = self.model.stream(prompt, owner=owner, **asked)
        if rng.random() < 0.2:  # it leaves in the middle, and what it computed stays
            with contextlib.closing(stream):
                next(stream)
            return
        pieces = list(stream)
        usage = pieces[-1].usage
        assert usage is not None
        found = [token for piece in pieces for token in piece.token_ids]
        logprobs = [entry for piece in pieces for entry in piece.logprobs or ()]
        if found != expected.token_ids:
            self.wrong.append(f"{owner}: {prompt!r} became {found}, expected {expected.token_ids}")
        if "top_logprobs" in asked and logprobs != expected.logprobs:
            self.wrong.append(f"{owner}: {prompt!r} has other log-probabilities than alone")
        if usage.cached_tokens > before:
            self.wrong.append(f"{owner}: {usage.cached_tokens} tokens cached, its own are {before}")
        with self._lock:
            self.n_compared += 1
            self.n_cached += usage.cached_tokens > 0

    def _expected(self, owner: str, prompt: str, asked: dict[str, Any]) -> tuple[int, Completion]:
        """The most tokens that may be cached for it, and what it becomes."""
        adapters = tuple(sorted(asked["adapters"].items()))
        key = (prompt, "", adapters, tuple(sorted((k, v) for k, v in asked.items() if k != "adapters")))
        with self._lock:
            if key not in self._known:
                self._known[key] = self.fresh.generate(
                    prompt, **{**asked, "cache_prompt": False, "speculate": False}
                )
            expected = self._known[key]
            ids = tuple(self.fresh._engine.encode(prompt))
            said = self._said.setdefault((owner, adapters), set())
            most = max((_common(ids[:-1], text) for text in said), default=0)
            said.add((*ids, *expected.token_ids))
        return most, expected


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n

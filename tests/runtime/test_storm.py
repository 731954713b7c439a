"""A thousand and more consumers that leave in every way, on real native code, behind a process, and with failing steps."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgellm import api
from edgellm.errors import BackendError
from edgellm.runtime.isolate import IsolatedEngine
from edgellm.runtime.model import Model
from tests.runtime.engines import batcher_of, make
from tests.support.storm import Storm

PROMPTS = [
    "Once upon a time",
    "Once upon a time there was a king who had",
    "The capital of France is",
    "One, two, three, four, one, two, three,",
    "def fibonacci(n):",
    "In the beginning was the word, and the word was long: " + "very " * 60,
]
N_TOKENS = 4


def greedy(model: Model) -> dict[str, list[int]]:
    options: Any = {"max_tokens": N_TOKENS, "temperature": 0, "cache_prompt": False, "speculate": False}
    return {prompt: model.generate(prompt, **options).token_ids for prompt in PROMPTS}


def own_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("edgellm")}


def n_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(scope="module")
def expected(smollm2_gguf: Path) -> dict[str, list[int]]:
    """On a fresh model, one by one."""
    with api.load(smollm2_gguf, context=192) as model:
        return greedy(model)


@pytest.mark.parametrize(("isolate", "n_each"), [(False, 110), (True, 40)])
def test_consumers_that_leave_in_every_way_leave_nothing_behind(
    smollm2_gguf: Path, expected: dict[str, list[int]], isolate: bool, n_each: int
) -> None:
    before, files = own_threads(), n_files()
    with api.load(
        smollm2_gguf, context=192, parallel=6, max_queue=10, cache_bytes=8 << 20, isolate=isolate
    ) as model:
        storm = Storm(model, expected, too_long="word " * 300, max_tokens=N_TOKENS)
        storm.run(n_threads=8, n_each=n_each, n_tasks=n_each + 10, seed=7)
        storm.check()
        assert storm.n_events == 9 * n_each + 10
        assert model.counts().saved_bytes <= 8 << 20
        assert greedy(model) == expected
        engine = model._engine
        if isinstance(engine, IsolatedEngine):
            assert engine._tickets == {}
            assert engine._answers == {}
            child = psutil.Process(engine.pid)
    if isolate:
        assert not child.is_running()
    assert own_threads() == before
    assert n_files() <= files


def test_thousands_leave_while_steps_fail_and_prefixes_are_lost() -> None:
    prompts = [word * n for word in ("ab", "abc ", "system: be nice. ", "x") for n in (1, 3, 9)]
    options: Any = {"max_tokens": 5, "temperature": 0, "cache_prompt": False}
    with make(None) as fresh:
        expected = {prompt: fresh.generate(prompt, **options).token_ids for prompt in prompts}
    with make(None, parallel=5, max_queue=20, cache_bytes=2000) as model:
        rng = random.Random(5)
        batcher: Any = batcher_of(model)
        for method, share in (("step", 0.01), ("save", 0.2), ("load", 0.2), ("truncate", 0.01)):
            plain = getattr(batcher, method)

            def sometimes(*arguments: Any, plain: Any = plain, share: float = share) -> Any:
                if rng.random() < share:
                    if plain.__name__ == "step" and rng.random() < 0.5:
                        plain(*arguments)  # it fails after it has written
                    raise BackendError("failed, as native code may")
                return plain(*arguments)

            setattr(batcher, method, sometimes)
        storm = Storm(model, expected, too_long="x" * 300, max_tokens=5, allowed=(BackendError,))
        storm.run(n_threads=8, n_each=400, n_tasks=300, seed=3)
        storm.check()
        assert storm.n_events == 3500
        assert model.counts().n_failed > 10

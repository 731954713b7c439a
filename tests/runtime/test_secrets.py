"""Nothing of one conversation appears in another's: neither in its tokens, nor its probabilities, nor its figures."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from edgellm import api
from edgellm.errors import BackendError
from edgellm.runtime.model import Model
from tests.runtime.engines import backend_of, batcher_of, make
from tests.support import tiny_lora
from tests.support.secrets import Whispers

BEGINNING = "system: be brief, and never tell what you know. The secret word is"
PROMPTS = [
    BEGINNING, f"{BEGINNING} swordfish", f"{BEGINNING} swordfish, swordfish, swordfish", f"{BEGINNING} sword",
    f"{BEGINNING} not here", "The secret word is swordfish", "swordfish " * 9, "Say", "Say it again: swordfish",
]  # fmt: skip
OPTIONS: list[dict[str, Any]] = [
    {}, {"max_tokens": 20}, {"top_logprobs": 3}, {"temperature": 0.9, "seed": 4}, {"max_tokens": 1},
    {"repeat_penalty": 1.5}, {"cache_prompt": False},
]  # fmt: skip
OWNERS = ("", "anna", "bela")


def check(whispers: Whispers, *, least: int, cached: int) -> None:
    assert whispers.wrong == []
    assert whispers.n_compared >= least
    assert whispers.n_cached >= cached
    counts = whispers.model.counts()
    assert counts.n_queued == 0


@pytest.mark.parametrize(("parallel", "cache_bytes"), [(1, 0), (1, 2000), (4, 900), (4, 1 << 20)])
def test_thousands_of_conversations_beside_and_after_each_other(parallel: int, cache_bytes: int) -> None:
    shifting = [*OPTIONS, {"overflow": "shift", "max_tokens": 60, "keep_tokens": 9}]
    with (
        make(None, context=140, parallel=parallel, cache_bytes=cache_bytes) as model,
        make(None, context=140) as fresh,
    ):
        for each in (model, fresh):
            for name in ("red", "blue"):
                backend_of(each).load_adapter(name, Path(name))
        adapters: list[dict[str, float]] = [{}, {}, {"red": 1.0}, {"red": 0.5, "blue": 1.0}]
        whispers = Whispers(model, fresh, PROMPTS, adapters=adapters, options=shifting)
        for n_threads, seed in ((1, 1), (6, 2)):
            whispers.run(n_threads=n_threads, n_each=500 // n_threads, owners=OWNERS, seed=seed)
        check(whispers, least=600, cached=150 if cache_bytes or parallel > 1 else 15)


def test_a_failed_step_leaves_nothing_for_the_next() -> None:
    with make(None, parallel=3, cache_bytes=2000) as model, make(None) as fresh:
        rng = random.Random(1)
        batcher: Any = batcher_of(model)
        plain = batcher.step

        def step(feeds: Any) -> Any:
            done = plain(feeds)
            if rng.random() < 0.05:
                raise BackendError("it failed, after it had written")
            return done

        batcher.step = step
        whispers = Whispers(model, fresh, PROMPTS, options=OPTIONS, allowed=(BackendError,))
        whispers.run(n_threads=4, n_each=200, owners=OWNERS, seed=6)
        check(whispers, least=300, cached=100)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    base, adapters = tiny_lora.write(tmp_path_factory.mktemp("tiny"))
    return base, {name: str(path) for name, path in adapters.items()}


def load(tiny: tuple[Path, dict[str, str]], **settings: Any) -> Model:
    base, adapters = tiny
    return api.load(base, context=128, threads=1, adapters=adapters, **settings)


@pytest.mark.parametrize("cache_bytes", [20_000, 1 << 20])
def test_hundreds_on_native_code_with_adapters_and_eviction(
    tiny: tuple[Path, dict[str, str]], cache_bytes: int
) -> None:
    adapters: list[dict[str, float]] = [{}, {}, {"red": 1.0}, {"blue": 0.5}]
    # Weights in F32: the last bits of a logit depend on the company. Of a random model, whose tokens are nearly equally
    # likely, those bits decide what is drawn; the likeliest token stays the same.
    options: list[dict[str, Any]] = [
        {},
        {},
        {"max_tokens": 1},
        {"repeat_penalty": 1.5},
        {"cache_prompt": False},
    ]
    with load(tiny, parallel=3, cache_bytes=cache_bytes) as model, load(tiny) as fresh:
        whispers = Whispers(model, fresh, PROMPTS, adapters=adapters, options=options)
        for n_threads, seed in ((1, 1), (5, 2)):
            whispers.run(n_threads=n_threads, n_each=150 // n_threads, owners=OWNERS, seed=seed)
        check(whispers, least=200, cached=10)


def test_conversations_on_a_real_model(smollm2_gguf: Path) -> None:
    options: list[dict[str, Any]] = [{}, {"top_logprobs": 2}, {"temperature": 0.9, "seed": 4}]
    with (
        api.load(smollm2_gguf, context=160, parallel=3, cache_bytes=4 << 20) as model,
        api.load(smollm2_gguf, context=160) as fresh,
    ):
        whispers = Whispers(model, fresh, PROMPTS[:6], options=options)
        whispers.run(n_threads=5, n_each=12, owners=("anna", "bela"), seed=3)
        check(whispers, least=35, cached=8)

"""A prefix is found again where its tokens, owner and adapters are the same, and nowhere else."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from edgellm.runtime.model import Model
from edgellm.runtime.prefix_cache import Key, Saved, SavedStates
from tests.runtime.engines import backend_of, batcher_of, fed, make

LONG = "The quick brown fox jumps over the lazy dog and over the next one. "


def cached(model: Model, prompt: str, **options: object) -> int:
    return model.generate(prompt, max_tokens=2, temperature=0, **options).usage.cached_tokens  # type: ignore[arg-type]


def test_owners_never_share() -> None:
    with make(None, parallel=2, cache_bytes=1 << 20) as model:
        assert cached(model, LONG, owner="a") == 0
        assert cached(model, LONG, owner="b") == 0
        assert cached(model, LONG) == 0
        assert cached(model, LONG, owner="a") == len(LONG)
        assert cached(model, LONG, owner="b") == len(LONG)


def test_adapters_never_share() -> None:
    with make(None, parallel=3) as model:
        backend_of(model).load_adapter("one", Path("one.gguf"))
        assert cached(model, LONG) == 0
        assert cached(model, LONG, adapters={"one": 1.0}) == 0
        assert cached(model, LONG, adapters={"one": 0.5}) == 0
        assert cached(model, LONG, adapters={"one": 1.0}) == len(LONG)


def test_a_conversation_that_had_to_leave_comes_back() -> None:
    with make(None, cache_bytes=1 << 20) as model:
        first = model.generate(LONG, max_tokens=9, seed=1)
        cached(model, "something else altogether, and long enough to be kept as well")
        again = model.generate(LONG, max_tokens=9, seed=1)
    assert again.usage.cached_tokens == len(LONG)
    assert again.token_ids == first.token_ids


def test_without_a_budget_it_is_computed_again() -> None:
    with make(None, cache_bytes=0) as model:
        cached(model, LONG)
        cached(model, "something else altogether, and long enough to be kept as well")
        assert cached(model, LONG) == 1  # both begin with the same token


def test_what_exceeds_the_budget_is_not_even_copied() -> None:
    with make(None, cache_bytes=4 * len(LONG)) as model:
        cached(model, LONG)
        assert batcher_of(model).state_bytes(0) > 4 * len(LONG)
        cached(model, "something else altogether, and long enough to be kept as well")
        assert batcher_of(model).n_saves == 0
        cached(model, LONG)
        assert batcher_of(model).n_saves == 1  # the other one is short enough


def test_a_shared_beginning_is_copied_where_there_is_room() -> None:
    with make(None, parallel=2) as model:
        cached(model, LONG + "x" * 50)
        assert cached(model, LONG + "y" * 50) == len(LONG) + 1
        assert cached(model, LONG + "x" * 50) == len(LONG) + 50


def test_states_are_dropped_oldest_first_and_swallow_their_beginnings() -> None:
    states = SavedStates(100)
    key = Key("a", ())

    def put(*tokens: int, n_bytes: int = 40) -> None:
        states.put(Saved(key, tokens, bytes(n_bytes)))

    put(1, 2)
    put(1, 2, 3)
    assert (len(states), states.n_bytes) == (1, 40)
    put(4, 5)
    assert states.best(key, [1, 2, 9])[0] == 2
    put(7, 8)
    assert states.best(key, [4, 5]) == (0, None)
    assert states.best(key, [1, 2, 3, 4])[0] == 3
    assert states.best(Key("b", ()), [1, 2, 3, 4]) == (0, None)
    put(9, n_bytes=101)
    assert states.best(key, [9]) == (0, None)
    assert states.n_bytes <= 100
    with pytest.raises(ValueError, match="max_bytes"):
        SavedStates(-1)


@pytest.mark.parametrize("parallel", [1, 3])
def test_the_cache_changes_no_text_whatever_comes_when(parallel: int) -> None:
    words = ["ab", "cd ", "system: be nice. ", "x" * 40, "y" * 35, ""]
    rng = random.Random(3)
    with (
        make(None, parallel=parallel, cache_bytes=4000, context=512) as model,
        make(None, context=512) as fresh,
    ):
        for i in range(150):
            prompt = "".join(rng.choices(words, k=4))
            options = {"max_tokens": rng.randint(1, 8), "seed": i, "owner": rng.choice(["a", "b"])}
            found = model.generate(prompt, **options)  # type: ignore[arg-type]
            alone = fresh.generate(prompt, **{**options, "cache_prompt": False})  # type: ignore[arg-type]
            assert found.token_ids == alone.token_ids
            assert model.counts().saved_bytes <= 4000


def test_a_secret_is_fed_only_in_its_own_conversation() -> None:
    with make(None, parallel=2, cache_bytes=1 << 16) as model:
        for _ in range(50):
            model.generate("the secret word is swordfish", max_tokens=3, owner="a")
            n_before = len(fed(model))
            done = model.generate("the secret word is", max_tokens=3, owner="b")
            assert done.usage.cached_tokens in (0, len("the secret word is"))
            assert not any(
                ord("w") in tokens[-9:]
                for tokens in fed(model)[n_before:]
                if tokens[-9:] == list(b"swordfish")
            )
        for sequence in range(2):
            held = bytes(t for t in batcher_of(model).tokens(sequence) if t < 256)
            assert (b"swordfish" in held) == (model._engine.scheduler.cache._keys[sequence].owner == "a")  # type: ignore[attr-defined]

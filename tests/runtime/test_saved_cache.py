"""The prefix cache saved and restored by the public class, over the fake backend."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import (
    BadInputError,
    MissingInputError,
    NativeCrash,
    OutputExistsError,
    SpecError,
    UnsupportedError,
)
from edgellm.runtime import isolate
from edgellm.runtime.cache_identity import LoadedFiles
from edgellm.runtime.isolate import IsolatedEngine
from edgellm.runtime.model import Model
from edgellm.runtime.prefix_cache import Key, Saved, SavedStates, common_prefix
from tests.runtime.engines import backend_of, batcher_of, make
from tests.samples import make_manifest

LONG = "The quick brown fox jumps over the lazy dog and over the next one. "
OTHER = "something else altogether, and long enough to be kept as well"


@pytest.fixture
def files(tmp_path: Path) -> LoadedFiles:
    (tmp_path / "model.gguf").write_bytes(b"weights")
    return LoadedFiles(tmp_path / "model.gguf")


def model(files: LoadedFiles, cache_bytes: int = 1 << 20, **options: object) -> Model:
    return make(None, files=files, cache_bytes=cache_bytes, **options)  # type: ignore[arg-type]


def cached(model: Model, prompt: str, **options: object) -> int:
    return model.generate(prompt, max_tokens=2, temperature=0, **options).usage.cached_tokens  # type: ignore[arg-type]


def test_what_lay_in_sequences_and_beside_them_comes_back(files: LoadedFiles, tmp_path: Path) -> None:
    path = tmp_path / "saved"
    with model(files) as first:
        for prompt in (LONG, OTHER):
            cached(first, prompt)
        done = first.save_cache(path)
        assert done.n_states == 2
        assert done.n_left_out == 0
        assert done.owners == [""]
        said = first.generate(LONG, max_tokens=9, temperature=0)
    with model(files) as second:
        assert second.load_cache(path) == done
        assert second.counts().saved_bytes == done.n_bytes
        again = second.generate(LONG, max_tokens=9, temperature=0)
        assert again.usage.cached_tokens == len(LONG)
        assert again.token_ids == said.token_ids
        assert cached(second, OTHER) == len(OTHER)


def test_owners_and_adapters_stay_apart(files: LoadedFiles, tmp_path: Path) -> None:
    path = tmp_path / "saved"
    with model(files, parallel=3) as first:
        backend_of(first).load_adapter("one", Path("one.gguf"))
        cached(first, LONG, owner="a")
        cached(first, LONG, owner="b", adapters={"one": 0.5})
        assert first.save_cache(path).owners == ["a", "b"]
    with model(files, parallel=3) as second:
        backend_of(second).load_adapter("one", Path("one.gguf"))
        second.load_cache(path)
        assert cached(second, LONG, owner="c") == 0
        assert cached(second, LONG) == 0
        assert cached(second, LONG, owner="b") == 0
        assert cached(second, LONG, owner="b", adapters={"one": 1.0}) == 0
        assert cached(second, LONG, owner="b", adapters={"one": 0.5}) == len(LONG)
        assert cached(second, LONG, owner="a") == len(LONG)


def test_the_latest_are_saved_where_the_budget_is_small(files: LoadedFiles, tmp_path: Path) -> None:
    budget = 4 * (len(LONG) + 8)
    with model(files, budget, parallel=3) as first:
        for owner in "abc":
            cached(first, LONG, owner=owner)
        done = first.save_cache(tmp_path / "saved")
        assert (done.owners, done.n_left_out) == (["c"], 2)
        assert batcher_of(first).n_saves == 1  # nothing is copied that has no room
        assert done.n_bytes <= budget
    with model(files, budget - 40, parallel=3) as second, pytest.raises(SpecError, match="cache_bytes"):
        second.load_cache(tmp_path / "saved")


def test_a_cache_without_room_for_one_conversation_copies_nothing(files: LoadedFiles, tmp_path: Path) -> None:
    with model(files, 4 * len(LONG), context=2000) as first:
        cached(first, LONG)
        done = first.save_cache(tmp_path / "saved")
        assert (done.n_states, done.n_left_out) == (0, 1)
        session = first.session(max_tokens=2, temperature=0)
        session.chat(LONG)
        assert "cache_bytes" in str(session.save(tmp_path / "chat.json").recomputed_because)
        assert batcher_of(first).n_saves == 0


def test_saving_goes_on_beside_generations(files: LoadedFiles, tmp_path: Path) -> None:
    with model(files, parallel=2, context=4000) as opened:
        cached(opened, LONG, owner="a")
        with opened.stream("endless " * 8, overflow="shift", max_tokens=1 << 19) as stream:
            next(stream)
            n_steps = opened.counts().n_steps
            done = opened.save_cache(tmp_path / "saved")
            assert done.n_states == 2
            opened.load_cache(tmp_path / "saved")
            for _ in range(5):
                assert next(stream).finish_reason is None
            assert opened.counts().n_steps > n_steps


def test_many_save_and_load_at_once(files: LoadedFiles, tmp_path: Path) -> None:
    errors: list[BaseException] = []
    with model(files, parallel=2) as opened:
        cached(opened, LONG)
        opened.save_cache(tmp_path / "saved")

        def work() -> None:
            try:
                for _ in range(5):
                    opened.save_cache(tmp_path / "saved")
                    opened.load_cache(tmp_path / "saved")
                    assert opened.generate(LONG, max_tokens=2, seed=1).usage.cached_tokens == len(LONG)
            except BaseException as err:
                errors.append(err)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_closing_meanwhile_is_an_error_and_no_hang(files: LoadedFiles, tmp_path: Path) -> None:
    opened = model(files)
    cached(opened, LONG)
    held, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        held.set()
        go_on.wait(60)

    scheduler = opened._engine.scheduler  # type: ignore[attr-defined]
    waiting = threading.Thread(target=lambda: scheduler.between_steps(wait))
    waiting.start()
    held.wait(60)
    errors: list[BaseException] = []

    def save() -> None:
        try:
            opened.save_cache(tmp_path / "saved")
        except BaseException as err:
            errors.append(err)

    saving = threading.Thread(target=save)
    saving.start()
    while not scheduler._jobs:
        pass
    closing = threading.Thread(target=opened.close)
    closing.start()
    while not scheduler._closing:
        pass
    go_on.set()
    for thread in (waiting, saving, closing):
        thread.join(60)
        assert not thread.is_alive()
    assert [type(err) for err in errors] == [RuntimeError]
    assert not (tmp_path / "saved").exists()
    with pytest.raises(RuntimeError, match="closed"):
        opened.load_cache(tmp_path / "saved")


def test_what_work_raises_is_the_callers_and_the_thread_lives_on(files: LoadedFiles) -> None:
    with model(files) as opened:
        scheduler = opened._engine.scheduler  # type: ignore[attr-defined]
        with pytest.raises(ZeroDivisionError):
            scheduler.between_steps(lambda: 1 // 0)
        assert opened.generate("ab", max_tokens=2).token_ids


def test_a_state_that_the_engine_refuses_is_computed_again(files: LoadedFiles, tmp_path: Path) -> None:
    with model(files) as first:
        said = first.generate(LONG, max_tokens=2, temperature=0)
        first.save_cache(tmp_path / "saved")
    with model(files) as second:
        second.load_cache(tmp_path / "saved")
        saved = second._engine.scheduler.cache.saved  # type: ignore[attr-defined]
        (state,) = saved.all()
        saved.remove(state)
        saved.put(state._replace(state=b"nonsense"))
        again = second.generate(LONG, max_tokens=2, temperature=0)
        assert (again.token_ids, again.usage.cached_tokens) == (said.token_ids, 0)
        assert saved.all() == []


def test_where_nothing_can_be_kept_it_is_said(files: LoadedFiles, tmp_path: Path) -> None:
    path = tmp_path / "saved"
    with model(files, 0) as opened:
        for use in (opened.save_cache, opened.load_cache):
            with pytest.raises(SpecError, match="cache_bytes is 0"):
                use(path)
    with model(files, can_truncate=False) as opened:
        for use in (opened.save_cache, opened.load_cache):
            with pytest.raises(UnsupportedError, match="sliding window"):
                use(path)
    with make(None, cache_bytes=1 << 20) as opened, pytest.raises(UnsupportedError, match="no file"):
        opened.save_cache(path)
    with model(files) as opened, pytest.raises(MissingInputError):
        opened.load_cache(path)
    assert not path.exists()


def test_a_refused_file_changes_nothing(files: LoadedFiles, tmp_path: Path) -> None:
    path = tmp_path / "saved"
    with model(files) as opened:
        cached(opened, LONG)
        opened.save_cache(path)
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(BadInputError):
            opened.load_cache(path)
        assert opened.counts().saved_bytes == 0
        assert cached(opened, LONG) == len(LONG)
    with model(files, parallel=2) as other:
        with pytest.raises(BadInputError, match="parallel"):
            other.load_cache(path)
        assert cached(other, LONG) == 0
        assert all(len(batcher_of(other).tokens(i)) < len(LONG) + 3 for i in range(2))


def test_the_same_from_asyncio(files: LoadedFiles, tmp_path: Path) -> None:
    async def work() -> int:
        with model(files) as opened:
            cached(opened, LONG)
            done = await opened.asave_cache(tmp_path / "saved")
            return (await opened.aload_cache(tmp_path / "saved")).n_tokens - done.n_tokens

    assert asyncio.run(work()) == 0


CHILD = [sys.executable, "-m", "tests.support.engine_child"]


def test_in_a_child_too_beside_a_generation_and_after_it_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolate, "FIRST_PAUSE_S", 0.01)
    path = tmp_path / "saved"
    with Model(IsolatedEngine(CHILD, b"any"), make_manifest()) as opened:
        cached(opened, LONG, owner="a")
        with opened.stream("endless", overflow="shift", max_tokens=1 << 19) as stream:
            next(stream)
            done = opened.save_cache(path)
            assert done.owners in (["a"], ["", "a"])
            assert next(stream).finish_reason is None
        with pytest.raises(NativeCrash):
            opened.generate("crash")
        assert cached(opened, LONG, owner="a") == 0
        with pytest.raises(NativeCrash):
            opened.generate("crash")
        assert opened.load_cache(path) == done
        assert cached(opened, LONG, owner="b") == 0
        assert cached(opened, LONG, owner="a") == len(LONG)
        for use, error in ((lambda: opened.load_cache(tmp_path / "none"), MissingInputError),
                           (lambda: opened.save_cache(tmp_path), OutputExistsError)):  # fmt: skip
            with pytest.raises(error):
                use()
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(BadInputError, match="damaged"):
            opened.load_cache(path)


KEYS = [Key("a", ()), Key("b", ()), Key("a", (("one", 1.0),))]
TOKENS = st.lists(st.integers(0, 2), max_size=6).map(tuple)
STATES = st.builds(Saved, st.sampled_from(KEYS), TOKENS, st.binary(max_size=60))


@settings(max_examples=100)
@given(
    st.integers(0, 150), st.lists(st.one_of(STATES, st.tuples(st.sampled_from(KEYS), TOKENS)), max_size=40)
)
def test_the_budget_is_never_exceeded_and_the_best_is_found(
    max_bytes: int, uses: list[Saved | tuple[Key, tuple[int, ...]]]
) -> None:
    states = SavedStates(max_bytes)
    for use in uses:
        if isinstance(use, Saved):
            before = states.all()
            n_dropped = states.put(use)
            kept = states.all()
            assert len(use.state) > max_bytes or any(_holds(s, use) for s in kept)
            assert n_dropped or all(any(_holds(s, b) for s in kept) for b in (*before, use))
        else:
            key, tokens = use
            n, found = states.best(key, tokens)
            assert n == max(
                (common_prefix(s.tokens, tokens) for s in states.all() if s.key == key), default=0
            )
            assert found is None or (found.key == key and common_prefix(found.tokens, tokens) == n)
            assert (found is None) == (n == 0)
        assert states.n_bytes == sum(len(s.state) for s in states.all()) <= max_bytes
        assert len(states) == len({(s.key, s.tokens) for s in states.all()})


def _holds(whole: Saved, part: Saved) -> bool:
    return whole.key == part.key and whole.tokens[: len(part.tokens)] == part.tokens


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "save", "load"]),
            st.sampled_from(["", "a", "b"]),
            st.sampled_from([LONG, LONG + OTHER, OTHER, OTHER + LONG]),
        ),
        max_size=12,
    ),
    st.integers(200, 1200),
)
def test_the_budget_holds_and_no_text_changes_whatever_is_saved_and_restored(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, str]], cache_bytes: int
) -> None:
    place = tmp_path_factory.mktemp("budget")
    (place / "model.gguf").write_bytes(b"weights")
    files = LoadedFiles(place / "model.gguf")
    told: dict[str, list[int]] = {}
    with model(files, cache_bytes) as opened:
        for verb, owner, prompt in steps:
            if verb == "put":
                done = opened.generate(prompt, max_tokens=2, temperature=0, owner=owner)
                assert told.setdefault(prompt, done.token_ids) == done.token_ids
            elif verb == "save":
                assert opened.save_cache(place / "saved").n_bytes <= cache_bytes
            elif (place / "saved").exists():
                opened.load_cache(place / "saved")
            assert opened.counts().saved_bytes <= cache_bytes

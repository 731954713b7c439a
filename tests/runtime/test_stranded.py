"""Whatever goes wrong, and whoever leaves at whatever moment: nobody waits for ever, and nothing is used after its end."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from edgellm.errors import BackendError, ContextOverflowError
from edgellm.runtime.model import Model
from edgellm.runtime.request import Overflow, Piece
from edgellm.runtime.ticket import MAX_UNREAD, Ticket
from tests.runtime.engines import backend_of, batcher_of, make

LONG = "The quick brown fox jumps over the lazy dog and over the next one. "
OTHER = "something else altogether, and long enough to be kept as well"


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


def is_idle(model: Model) -> bool:
    counts = model.counts()
    return counts.n_active == counts.n_queued == counts.busy_sequences == 0


def break_once(model: Model, method: str, error: Exception) -> None:
    """The next call of this method of the batcher fails."""
    batcher: Any = batcher_of(model)
    plain = getattr(batcher, method)

    def fail(*arguments: Any) -> Any:
        setattr(batcher, method, plain)
        raise error

    setattr(batcher, method, fail)


@pytest.mark.parametrize("method", ["truncate", "free", "reset_sampler"])
@pytest.mark.parametrize("error", [BackendError("no"), MemoryError("no"), ValueError("no")])
def test_one_that_cannot_be_admitted_has_its_error_and_others_go_on(method: str, error: Exception) -> None:
    with make(None, context=512, cache_bytes=1 << 16) as model:
        expected = model.generate(LONG, max_tokens=5, seed=1)
        if method == "free":
            model.generate(OTHER, max_tokens=1, cache_prompt=False)
        break_once(model, method, error)
        with pytest.raises(type(error), match="no"):
            model.generate(LONG, max_tokens=5, seed=1, cache_prompt=method != "free")
        again = model.generate(LONG, max_tokens=5, seed=1)
        assert again.token_ids == expected.token_ids
        wait_until(lambda: is_idle(model))
        counts = model.counts()
        assert counts.n_done + counts.n_failed == 3 + (method == "free")


@pytest.mark.parametrize("error", [BackendError("no"), MemoryError()])
def test_a_prefix_that_cannot_be_kept_is_computed_again(error: Exception) -> None:
    with make(None, context=512, cache_bytes=1 << 16) as model:
        expected = model.generate(LONG, max_tokens=5, seed=1)
        break_once(model, "save", error)
        assert model.generate(OTHER, max_tokens=1).token_ids
        again = model.generate(LONG, max_tokens=5, seed=1)
        assert again.token_ids == expected.token_ids
        assert again.usage.cached_tokens == 1


def test_a_saved_prefix_that_is_refused_is_dropped_and_computed_again() -> None:
    with make(None, context=512, cache_bytes=1 << 16) as model:
        expected = model.generate(LONG, max_tokens=5, seed=1)
        model.generate(OTHER, max_tokens=1)
        break_once(model, "load", BackendError("not a state"))
        for n_cached in (0, len(LONG)):
            again = model.generate(LONG, max_tokens=5, seed=1)
            assert (again.token_ids, again.usage.cached_tokens) == (expected.token_ids, n_cached)


def test_a_place_whose_filling_failed_belongs_to_nobody() -> None:
    with make(None, context=512, cache_bytes=1 << 16) as model:
        model.generate(LONG, max_tokens=1, owner="a")
        model.generate(OTHER, max_tokens=1, owner="b")  # a's prefix is kept outside now
        break_once(model, "truncate", ValueError("no"))
        with pytest.raises(ValueError, match="no"):
            model.generate(LONG, max_tokens=1, owner="a")
        assert model.generate(LONG, max_tokens=1, owner="b").usage.cached_tokens <= 1  # both begin alike


def test_one_for_which_no_room_can_be_made_ends_alone() -> None:
    with make(b"x" * 200, context=64, parallel=2) as model:
        beside = model.stream("ab", temperature=0, max_tokens=50)
        break_once(model, "shift", BackendError("cannot shift"))
        with pytest.raises(BackendError, match="cannot shift"):
            model.generate("cd", temperature=0, overflow="shift", max_tokens=150)
        assert "".join(piece.text for piece in beside) == "x" * 50
        assert model.generate("cd", temperature=0, overflow="shift", max_tokens=150).text == "x" * 150


@pytest.mark.parametrize("context", [1, 2, 3])
@pytest.mark.parametrize("overflow", ["error", "shift", "middle"])
def test_the_smallest_contexts_give_what_they_can(context: int, overflow: Overflow) -> None:
    with make(b"abc", context=context, parallel=2) as model:
        for _ in range(2):
            if (context, overflow) == (1, "error"):
                with pytest.raises(ContextOverflowError):
                    model.generate("", temperature=0)
                continue
            done = model.generate("", temperature=0, overflow=overflow)
            whole = overflow == "shift" and context > 1
            assert done.text == ("abc" if whole else "abc"[: max(1, context - 1)])
        wait_until(lambda: is_idle(model))


def test_one_that_is_being_admitted_is_counted() -> None:
    with make(None) as model:
        gate = threading.Event()
        batcher: Any = batcher_of(model)
        plain = batcher.free
        batcher.free = lambda sequence: (gate.wait(60), plain(sequence))
        stream = model.stream("ab", max_tokens=1)
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            counts = model.counts()
            assert counts.n_active + counts.n_queued == 1
        gate.set()
        assert list(stream)


def test_each_consumer_of_a_failed_step_has_an_error_of_its_own() -> None:
    with make(None, parallel=3) as model:
        gate = threading.Event()

        def fail() -> None:
            gate.wait(60)
            raise BackendError("llama_decode failed")

        batcher_of(model).before_step = fail
        streams = [model.stream(f"p{i}") for i in range(3)]
        gate.set()
        seen = []
        for stream in streams:
            with pytest.raises(BackendError, match="llama_decode failed") as caught:
                list(stream)
            seen.append(caught.value)
        assert len({id(err) for err in seen}) == 3


def test_a_task_that_is_cancelled_while_its_prompt_is_prepared_leaves_nothing_running() -> None:
    async def story(model: Model) -> None:
        begun, gate = threading.Event(), threading.Event()
        backend: Any = backend_of(model)
        plain = backend.tokenize

        def tokenize(text: str, **options: bool) -> Any:
            begun.set()
            gate.wait(60)
            return plain(text, **options)

        backend.tokenize = tokenize
        task = asyncio.create_task(model.agenerate("endless", overflow="shift"))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
        await asyncio.to_thread(wait_until, lambda: model.counts().n_cancelled == 1)

    with make(None) as model:
        asyncio.run(story(model))
        wait_until(lambda: is_idle(model))


def test_a_consumer_that_reads_all_while_the_engine_looks_is_not_waited_for() -> None:
    woken: list[bool] = []
    ticket = Ticket(on_cancel=lambda: None, on_taken=lambda: woken.append(True))
    for _ in range(MAX_UNREAD + 1):
        ticket.put(Piece(text="x", token_ids=[1]))
    plain = ticket._pieces

    class Spied:
        """The queue; its reader is quick: it takes all right after it was counted."""

        def qsize(self) -> int:
            n = plain.qsize()
            while not plain.empty():
                ticket.take()
            return n

        def __getattr__(self, name: str) -> Any:
            return getattr(plain, name)

    ticket._pieces = Spied()  # type: ignore[assignment]
    assert not ticket.is_stalled or woken


def test_a_model_that_the_collector_ends_in_its_own_thread_is_released_after_the_step() -> None:
    model = make(None, parallel=2)
    backend, batcher, scheduler = backend_of(model), batcher_of(model), model._engine.scheduler  # type: ignore[attr-defined]
    seen: list[bool] = []
    plain = backend.close
    backend.close = lambda: (seen.append(batcher.closed), plain())  # type: ignore[assignment,method-assign,func-returns-value]
    ready = threading.Event()

    def collect() -> None:
        if ready.wait(60):
            gc.collect()
            assert not backend.closed

    batcher.before_step = collect
    stream = model.stream("endless", overflow="shift")
    gc.disable()
    try:
        cycle: list[Any] = [model]
        cycle.append(cycle)
        del model, cycle
        ready.set()
        with pytest.raises(RuntimeError, match="closed"):
            list(stream)
        scheduler._thread.join(60)
    finally:
        gc.enable()
    assert seen == [True]


def test_closing_frees_the_model_when_the_last_call_has_left_it() -> None:
    model = make(None)
    backend: Any = backend_of(model)
    begun, gate, plain = threading.Event(), threading.Event(), backend.tokenize

    def tokenize(text: str, **options: bool) -> Any:
        begun.set()
        gate.wait(60)
        assert not backend.closed
        return plain(text, **options)

    backend.tokenize = tokenize
    found: list[object] = []

    def count() -> None:
        found.append(model.count_tokens("abc"))

    counting = threading.Thread(target=count)
    counting.start()
    begun.wait(60)
    model.close()
    assert batcher_of(model).closed
    assert not backend.closed
    gate.set()
    counting.join(60)
    assert found == [4]
    assert backend.closed

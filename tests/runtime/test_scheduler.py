"""Many generations at once: nobody is mixed up, kept waiting for ever, or left over."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from edgellm.errors import DeadlineError, QueueFullError, SpecError
from edgellm.runtime import ticket
from edgellm.runtime.chunks import CHUNK_TOKENS, LEAST_CHUNK_TOKENS
from edgellm.runtime.generation import Generation
from edgellm.runtime.model import Model
from edgellm.runtime.request import Request
from tests.runtime.engines import batcher_of, make


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


def slow_down(model: Model, seconds: float = 0.002) -> None:
    batcher_of(model).before_step = lambda: time.sleep(seconds)


def test_side_by_side_equals_one_by_one() -> None:
    prompts = [f"prompt number {i} " + "x" * i for i in range(12)]
    with make(None, parallel=1) as alone:
        expected = [alone.generate(p, max_tokens=20, seed=i).token_ids for i, p in enumerate(prompts)]
    with make(None, parallel=4) as model:
        streams = [model.stream(p, max_tokens=20, seed=i) for i, p in enumerate(prompts)]
        found = [[token for piece in stream for token in piece.token_ids] for stream in streams]
        assert found == expected
        counts = model.counts()
        assert (counts.n_done, counts.n_active, counts.busy_sequences) == (12, 0, 0)
        assert counts.n_steps < 12 * 21


def test_each_step_feeds_every_sequence_once() -> None:
    with make(b"x" * 30, parallel=3) as model:
        gate = threading.Event()
        batcher_of(model).before_step = lambda: gate.wait() and None
        streams = [model.stream(f"prompt {i}", temperature=0) for i in range(3)]
        wait_until(lambda: model.counts().n_active >= 1)
        gate.set()
        for stream in streams:
            list(stream)
        assert model.counts().n_steps <= 31 + 2


def test_a_long_prompt_is_fed_in_chunks_between_the_tokens_of_others() -> None:
    with make(b"x" * 4000, parallel=2, context=8192) as model:
        slow_down(model)
        talking = model.stream("hello", temperature=0, max_tokens=3000)
        next(talking)
        n_before = len(batcher_of(model).feeds)
        long = model.stream("y" * 4000, temperature=0, max_tokens=1, cache_prompt=False)
        list(long)
        feeds = batcher_of(model).feeds[n_before:]
        chunks = [len(feed.tokens) for feed in feeds if feed.sequence == 1]
        assert sum(chunks) == 4001
        assert max(chunks) <= CHUNK_TOKENS
        between = [feed.sequence for feed in feeds if len(feed.tokens) > 1 or feed.sequence == 0]
        assert between.count(0) >= len(chunks) - 1
        talking.close()


def test_others_get_their_tokens_while_a_long_prompt_is_computed() -> None:
    with make(b"x" * 4000, parallel=4, context=8192) as model:
        slow_down(model)
        talking = [model.stream(f"hello {i}", temperature=0, speculate=False) for i in range(2)]
        for stream in talking:
            next(stream)
        n_before = len(batcher_of(model).feeds)
        long = model.stream("y" * 2999, temperature=0, max_tokens=1, cache_prompt=False)
        next(long)
        feeds = batcher_of(model).feeds[n_before:]
        chunks = [i for i, feed in enumerate(feeds) if ord("y") in feed.tokens]
        assert sum(len(feeds[i].tokens) for i in chunks) == 3000
        assert len(chunks) >= 3000 // CHUNK_TOKENS
        others = {feed.sequence for feed in feeds} - {feeds[chunks[0]].sequence}
        for a, b in itertools.pairwise(chunks):
            assert {feed.sequence for feed in feeds[a:b]} >= others
        assert len(others) == 2
        for stream in talking:
            stream.close()


def test_a_short_prompt_does_not_wait_for_a_long_one_that_came_before() -> None:
    with make(b"x" * 9, parallel=3, context=8192) as model:
        gate = threading.Event()
        batcher_of(model).before_step = lambda: gate.wait(60) and None
        long = [model.stream("y" * 4000, temperature=0, max_tokens=1, cache_prompt=False) for _ in range(2)]
        wait_until(lambda: model.counts().n_active >= 1)
        short = model.stream("z" * 40, temperature=0, max_tokens=1, cache_prompt=False)
        gate.set()
        list(short)
        for stream in long:
            list(stream)
        feeds = batcher_of(model).feeds
        last = max(i for i, feed in enumerate(feeds) if ord("z") in feed.tokens)
        fed = sum(len(feed.tokens) for feed in feeds[:last] if ord("y") in feed.tokens)
        assert fed <= 2 * CHUNK_TOKENS


def test_the_prompt_that_came_first_gets_half_of_each_step() -> None:
    with make(b"x", parallel=8, context=8192) as model:
        gate = threading.Event()
        batcher_of(model).before_step = lambda: gate.wait(60) and None
        first = model.stream("y" * 4000, temperature=0, max_tokens=1, cache_prompt=False)
        wait_until(lambda: model.counts().n_active == 1)
        crowd = [model.stream("z" * 600, temperature=0, max_tokens=1, cache_prompt=False) for _ in range(40)]
        gate.set()
        list(first)
        for stream in crowd:
            list(stream)
        feeds = batcher_of(model).feeds
        last = max(i for i, feed in enumerate(feeds) if ord("y") in feed.tokens)
        fed_to_others = sum(len(feed.tokens) for feed in feeds[:last] if ord("z") in feed.tokens)
        assert fed_to_others <= 4001


def test_a_cancelled_one_ends_with_the_step_and_its_place_is_taken() -> None:
    with make(b"x" * 200) as model:
        slow_down(model)
        stream = model.stream("ab", temperature=0)
        waiting = model.stream("cd", temperature=0, max_tokens=1)
        next(stream)
        stream.close()
        n_steps = model.counts().n_steps
        assert list(waiting)[-1].finish_reason == "length"
        assert model.counts().n_steps <= n_steps + 3
        assert model.counts().n_cancelled == 1


def test_closing_from_another_thread_wakes_the_one_that_waits() -> None:
    with make(b"x" * 200) as model:
        gate = threading.Event()
        batcher_of(model).before_step = lambda: gate.wait() and None
        stream = model.stream("ab", temperature=0)
        seen: list[object] = []
        reader = threading.Thread(target=lambda: seen.extend(stream))
        reader.start()
        wait_until(lambda: model.counts().n_active == 1)
        stream.close()
        reader.join(30)
        assert not reader.is_alive()
        assert seen == []
        gate.set()


def test_one_that_waits_can_be_cancelled() -> None:
    with make(b"x" * 100) as model:
        slow_down(model)
        stream = model.stream("ab", temperature=0)
        waiting = [model.stream("cd", temperature=0) for _ in range(3)]
        for one in waiting:
            one.close()
        wait_until(lambda: model.counts().n_cancelled == 3)
        assert "".join(piece.text for piece in stream) == "x" * 100
        assert model.counts().n_done == 1


@pytest.mark.parametrize("n_before", [0, 1])
def test_a_deadline_ends_it_waiting_or_running(n_before: int) -> None:
    with make(b"x" * 5000, context=8192) as model:
        slow_down(model)
        others = [model.stream("ab", temperature=0) for _ in range(n_before)]
        with pytest.raises(DeadlineError, match=r"deadline was 0\.1 s"):
            model.generate("cd", temperature=0, deadline_s=0.1)
        assert model.counts().n_failed == 1
        for other in others:
            other.close()
        wait_until(lambda: model.counts().busy_sequences == 0)


def test_more_than_may_wait_are_refused_and_the_others_served() -> None:
    with make(b"x" * 50, max_queue=3) as model:
        gate = threading.Event()
        batcher_of(model).before_step = lambda: gate.wait() and None
        running = model.stream("ab", temperature=0)
        wait_until(lambda: model.counts().n_active == 1)
        waiting = [model.stream("cd", temperature=0, max_tokens=1) for _ in range(3)]
        with pytest.raises(QueueFullError, match="3 requests are waiting"):
            model.stream("ef")
        gate.set()
        for stream in (running, *waiting):
            assert list(stream)[-1].finish_reason


def test_owners_take_turns() -> None:
    with make(b"x") as model:
        gate = threading.Event()
        batcher_of(model).before_step = lambda: gate.wait() and None
        streams = [
            model.stream(name, owner=name[0], temperature=0, cache_prompt=False)
            for name in ("a1", "a2", "a3", "a4", "b1", "b2")
        ]
        gate.set()
        for stream in streams:
            list(stream)
        fed = ["".join(map(chr, f.tokens[1:])) for f in batcher_of(model).feeds if len(f.tokens) == 3]
        # The first may be taken before the others stand in line.
        assert fed in (["a1", "a2", "b1", "a3", "b2", "a4"], ["a1", "b1", "a2", "b2", "a3", "a4"])


def test_one_request_passes_fifty_of_another_owner() -> None:
    with make(b"x", parallel=2) as model:
        gate = threading.Event()
        batcher_of(model).before_step = lambda: gate.wait(60) and None
        begun = [model.stream(f"a{i:02}", owner="a", temperature=0, cache_prompt=False) for i in range(2)]
        wait_until(lambda: model.counts().n_active == 2)
        many = [model.stream(f"a{i:02}", owner="a", temperature=0, cache_prompt=False) for i in range(2, 52)]
        one = model.stream("b00", owner="b", temperature=0, cache_prompt=False)
        gate.set()
        for stream in (*begun, one, *many):
            list(stream)
        names = ["".join(map(chr, f.tokens[1:])) for f in batcher_of(model).feeds if len(f.tokens) == 4]
        assert names.index("b00") <= 3
        assert [name for name in names if name != "b00"] == [f"a{i:02}" for i in range(52)]


def test_a_deadline_ends_a_long_prompt_in_the_middle() -> None:
    with make(None, context=8192) as model:
        slow_down(model, 0.05)
        with pytest.raises(DeadlineError):
            model.generate("y" * 8000, deadline_s=0.2)
        assert 0 < sum(len(feed.tokens) for feed in batcher_of(model).feeds) < 8000
        wait_until(lambda: model.counts().busy_sequences == 0)
        assert model.generate("ab", max_tokens=1).token_ids


@pytest.fixture
def max_unread(monkeypatch: pytest.MonkeyPatch) -> int:
    """A consumer is waited for early."""
    monkeypatch.setattr(ticket, "MAX_UNREAD", 100)
    return 100


def test_a_consumer_that_does_not_read_stalls_only_itself(max_unread: int) -> None:
    with make(b"x" * 800, context=900, parallel=2) as model:
        stalled = model.stream("ab", temperature=0, speculate=False)
        wait_until(lambda: model.counts().n_steps > max_unread)
        for i in range(20):
            assert model.generate(f"p{i}", temperature=0, max_tokens=30).text == "x" * 30
        assert model.counts().n_active == 1
        assert sum(len(piece.text) for piece in stalled) == 800


def test_a_consumer_that_does_not_read_is_waited_for(max_unread: int) -> None:
    with make(b"x" * 800, context=900) as model:
        stream = model.stream("ab", temperature=0, speculate=False)
        wait_until(lambda: model.counts().n_steps > max_unread)
        time.sleep(0.2)
        assert model.counts().n_steps <= max_unread + 2
        assert sum(len(piece.text) for piece in stream) == 800


def test_a_thousand_that_leave_in_every_way_leave_nothing_behind() -> None:
    rng = random.Random(11)
    with make(None, parallel=4, max_queue=2000, cache_bytes=1 << 16) as model:
        held = []
        for i in range(1000):
            way = rng.randrange(5)
            options = {"max_tokens": rng.randint(1, 12), "seed": i, "owner": rng.choice("abc")}
            if way == 0:
                options["deadline_s"] = rng.choice([1e-6, 0.002, 0.05])
            stream = model.stream("p" * rng.randint(1, 40), **options)  # type: ignore[arg-type]
            if way == 1:
                stream.close()
            elif way == 2:
                del stream
            elif way == 3:
                for _ in zip(range(rng.randint(1, 4)), stream, strict=False):
                    pass
                stream.close()
            else:
                held.append(stream)
        n_errors = 0
        for stream in held:
            try:
                assert list(stream)[-1].finish_reason
            except DeadlineError:
                n_errors += 1
        wait_until(lambda: model.counts().n_active == model.counts().n_queued == 0)
        counts = model.counts()
        assert counts.busy_sequences == 0
        assert counts.n_done + counts.n_cancelled + counts.n_failed == 1000
        assert counts.n_failed == n_errors
        assert model.generate("ab", max_tokens=3, seed=1).token_ids


def test_asyncio_streams_side_by_side_and_cancelling_a_task_stops_it() -> None:
    async def story(model: Model) -> None:
        texts = await asyncio.gather(*(model.agenerate(f"p{i}", max_tokens=9, seed=i) for i in range(6)))
        with make(None) as alone:
            assert [t.text for t in texts] == [
                alone.generate(f"p{i}", max_tokens=9, seed=i).text for i in range(6)
            ]

        async def read() -> None:
            async for _ in model.astream("endless", overflow="shift", temperature=0):
                pass

        task = asyncio.create_task(read())
        while not model.counts().n_active:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while model.counts().busy_sequences:
            await asyncio.sleep(0.001)

    with make(None, parallel=3) as model:
        asyncio.run(story(model))
        assert model.counts().n_cancelled == 1


def test_a_bug_that_one_meets_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    take = Generation.take

    def broken(self: Generation, *arguments: Any) -> bool:
        if self.request.owner == "unlucky" and self.is_decoding:
            raise KeyError("a bug")
        return take(self, *arguments)

    monkeypatch.setattr(Generation, "take", broken)
    with make(b"x" * 50, parallel=2) as model:
        other = model.stream("a", temperature=0)
        with pytest.raises(Exception, match="a bug"):
            model.generate("b", temperature=0, owner="unlucky")
        assert "".join(piece.text for piece in other) == "x" * 50
        assert model.generate("c", temperature=0).text == "x" * 50
        counts = model.counts()
        assert (counts.n_active, counts.busy_sequences, counts.n_failed) == (0, 0, 1)


def test_a_deadline_counts_from_when_it_was_asked_for() -> None:
    with make(b"x" * 50) as model:
        asked = ticket.Ticket(on_cancel=lambda: None, on_taken=lambda: None)
        time.sleep(0.3)  # as where all that prepare requests are busy
        model._engine.submit(Request(prompt="a", deadline_s=0.2), asked)  # type: ignore[call-arg]
        with pytest.raises(DeadlineError):
            asked.take(30)


def test_logprobs_are_of_what_was_drawn() -> None:
    with make(None) as model:
        done = model.generate("ab", max_tokens=5, temperature=0, top_logprobs=3)
        plain = model.generate("ab", max_tokens=5, temperature=0)
    assert done.token_ids == plain.token_ids
    assert plain.logprobs is None
    assert done.logprobs is not None
    assert [entry.token_id for entry in done.logprobs] == done.token_ids
    for entry in done.logprobs:
        assert entry.top[0] == (entry.token_id, entry.logprob)
        assert len(entry.top) == 3
        assert sorted((p for _, p in entry.top), reverse=True) == [p for _, p in entry.top]
        assert entry.logprob < 0


def test_guesses_change_no_token() -> None:
    text = "one two three four five six seven one two three four five six seven one two three"
    for seed in range(4):
        with make(None) as model, make(None) as plain:
            options = {"max_tokens": 60, "seed": seed, "top_k": 2, "temperature": 0.2}
            fast = model.generate(text, **options)  # type: ignore[arg-type]
            slow = plain.generate(text, **options, speculate=False)  # type: ignore[arg-type]
            assert fast.token_ids == slow.token_ids
            assert slow.usage.drafted_tokens == 0
    with make(b"one two three four five six seven", context=512) as model:
        done = model.generate(text, temperature=0)
        assert done.text == "one two three four five six seven"
        assert done.usage.accepted_tokens > 10
        assert done.usage.drafted_tokens >= done.usage.accepted_tokens


def test_constraints_side_by_side_are_kept_each_by_its_own() -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    with make(None, parallel=3) as model:
        streams = [
            model.stream("a", json_schema=schema, seed=1),
            model.stream("b", regex="(ab|cd){3}", seed=2),
            model.stream("c", max_tokens=9, seed=3),
        ]
        texts = ["".join(piece.text for piece in stream) for stream in streams]
        assert json.loads(texts[0])["ok"] in (True, False)
        assert re.fullmatch("(ab|cd){3}", texts[1])
        assert texts[2] == model.generate("c", max_tokens=9, seed=3).text
        plain = model.generate("a", json_schema=schema, seed=1, speculate=False)
        assert plain.text == texts[0]
        assert plain.finish_reason == "stop"


@pytest.mark.parametrize("regex", ["(ab|cd){3}", "a(bcd|efg)h", "(one|two),? (three|four)"])
def test_guesses_under_a_constraint_end_where_the_text_is_complete(regex: str) -> None:
    with make(None) as model:
        for seed in range(4):
            plain = model.generate("a", regex=regex, seed=seed, temperature=2, speculate=False)
            guessed = model.generate("a", regex=regex, seed=seed, temperature=2)
            assert (guessed.text, guessed.token_ids) == (plain.text, plain.token_ids)
            assert guessed.usage.completion_tokens == plain.usage.completion_tokens


def test_a_constraint_that_cannot_be_is_refused_at_the_call() -> None:
    with make(None) as model:
        with pytest.raises(SpecError):
            model.stream("a", regex="(")
        with pytest.raises(ValueError, match="json_schema and regex"):
            model.stream("a", json_schema={}, regex="a")
        assert model.generate("a", max_tokens=1).token_ids


def test_no_piece_of_a_prompt_is_smaller_than_the_least() -> None:
    with make(b"x" * 40, parallel=6, context=4096) as model:
        slow_down(model)
        prompts = [
            "y" * n for n in (5, 63, 64, 65, 127, 128, 129, 200, 511, 512, 513, 575, 576, 577, 1500, 3000)
        ]
        streams = [model.stream(p, temperature=0, max_tokens=8, cache_prompt=False) for p in prompts * 3]
        for stream in streams:
            list(stream)
        pieces: dict[int, list[int]] = {}
        for feed in batcher_of(model).feeds:
            if len(feed.tokens) > 1 or feed.sampling is None:
                pieces.setdefault(feed.sequence, []).append(len(feed.tokens))
        assert sum(map(sum, pieces.values())) == 3 * sum(len(p) + 1 for p in prompts)
        small = [n for sizes in pieces.values() for n in sizes if n < LEAST_CHUNK_TOKENS]
        assert sorted(small) == [6, 6, 6]

"""Consumers that come and leave in every way, in many threads and tasks at once; afterwards nothing may be left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from edgellm.errors import ContextOverflowError, DeadlineError, EdgeLLMError, QueueFullError
from edgellm.runtime.model import Model, Stream
from edgellm.runtime.request import Piece
from edgellm.runtime.ticket import Ticket

Allowed = tuple[type[EdgeLLMError], ...]


class Storm:
    """Random consumers of one model.

    Args:
        expected: prompt -> the tokens that it becomes, greedily; each consumer compares what it read.
        too_long: a prompt that does not fit.
        max_tokens: of each generation.
        allowed: errors that a consumer may meet beside those that it asks for.
    """

    def __init__(
        self,
        model: Model,
        expected: dict[str, list[int]],
        *,
        too_long: str,
        max_tokens: int,
        allowed: Allowed = (),
    ) -> None:
        self.model, self.expected, self.too_long = model, expected, too_long
        self.max_tokens, self.allowed = max_tokens, allowed
        self.tickets: list[Ticket] = []
        self.wrong: list[str] = []
        self.n_events = self.n_refused = 0
        self._held: list[tuple[str, Stream]] = []
        self._lock = threading.Lock()
        engine: Any = model._engine
        submit = engine.submit

        def counted(*arguments: Any) -> Ticket:
            ticket: Ticket = submit(*arguments)
            with self._lock:
                self.tickets.append(ticket)
            return ticket

        engine.submit = counted

    def run(self, *, n_threads: int, n_each: int, n_tasks: int, seed: int) -> None:
        """All events; returns when every consumer has left or was told."""
        threads = [threading.Thread(target=self._guarded, args=(seed + i, n_each)) for i in range(n_threads)]
        threads.append(threading.Thread(target=lambda: asyncio.run(self._tasks(n_tasks, seed))))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for prompt, stream in self._held:  # those that stopped reading go on, or leave
            with contextlib.suppress(*self.allowed):
                self._compare(prompt, [token for piece in stream for token in piece.token_ids], whole=True)
        self._held.clear()
        gc.collect()

    def check(self) -> None:
        """Nothing runs, waits or holds a place; every generation was counted, every consumer was told."""
        assert self.wrong == []
        end = time.monotonic() + 60
        while True:
            counts = self.model.counts()
            if counts.n_active == counts.n_queued == counts.busy_sequences == 0:
                break
            assert time.monotonic() < end, counts
            time.sleep(0.01)
        assert counts.n_done + counts.n_cancelled + counts.n_failed == len(self.tickets)
        assert counts.n_cancelled > 0
        for ticket in self.tickets:
            assert ticket.done or ticket.cancelled or _was_told(ticket)

    def _guarded(self, seed: int, n: int) -> None:
        rng = random.Random(seed)
        ways: Sequence[Callable[[random.Random], None]] = (
            self._leave_at_once, self._leave_midway, self._read_all, self._read_all, self._drop, self._too_late,
            self._refuse, self._stop_reading, self._closed_by_another,
        )  # fmt: skip
        for _ in range(n):
            with self._lock:
                self.n_events += 1
            try:
                rng.choice(ways)(rng)
            except QueueFullError:
                with self._lock:
                    self.n_refused += 1
                time.sleep(0.002)
            except self.allowed:
                pass
            except BaseException as err:
                self.wrong.append(repr(err))

    def _open(self, rng: random.Random, **options: Any) -> tuple[str, Stream]:
        prompt = rng.choice(list(self.expected))
        options = {
            "max_tokens": self.max_tokens, "temperature": 0, "owner": rng.choice("abc"),
            "cache_prompt": rng.random() < 0.7, "speculate": rng.random() < 0.5, **options,
        }  # fmt: skip
        return prompt, self.model.stream(prompt, **options)

    def _compare(self, prompt: str, found: list[int], *, whole: bool) -> None:
        expected = self.expected[prompt]
        if found != (expected if whole else expected[: len(found)]):
            self.wrong.append(f"{prompt!r} became {found}, expected {expected}")

    def _leave_at_once(self, rng: random.Random) -> None:
        self._open(rng)[1].close()

    def _leave_midway(self, rng: random.Random) -> None:
        prompt, stream = self._open(rng)
        n = rng.randint(1, self.max_tokens)
        with stream:
            read = [t for _, piece in zip(range(n), stream, strict=False) for t in piece.token_ids]
        self._compare(prompt, read, whole=False)

    def _read_all(self, rng: random.Random) -> None:
        prompt, stream = self._open(rng)
        self._compare(prompt, [token for piece in stream for token in piece.token_ids], whole=True)
        stream.close()

    def _drop(self, rng: random.Random) -> None:
        _, stream = self._open(rng)
        cycle: list[Any] = [stream]
        cycle.append(cycle)
        del stream, cycle
        if rng.random() < 0.1:
            gc.collect()

    def _too_late(self, rng: random.Random) -> None:
        prompt, stream = self._open(rng, deadline_s=10 ** rng.uniform(-5, -0.5))
        read: list[int] = []
        with contextlib.suppress(DeadlineError):
            for piece in stream:
                read += piece.token_ids
        self._compare(prompt, read, whole=False)

    def _refuse(self, rng: random.Random) -> None:
        try:
            self.model.stream(self.too_long)
        except ContextOverflowError:
            return
        self.wrong.append("a prompt that is too long was taken")

    def _stop_reading(self, rng: random.Random) -> None:
        prompt, stream = self._open(rng)
        with self._lock:
            self._held.append((prompt, stream))
            if len(self._held) < 6:
                return
            prompt, stream = self._held.pop(rng.randrange(6))
        self._compare(prompt, [token for piece in stream for token in piece.token_ids], whole=True)

    def _closed_by_another(self, rng: random.Random) -> None:
        prompt, stream = self._open(rng)
        other = threading.Timer(rng.random() * 0.02, stream.close)
        other.start()
        self._compare(prompt, [token for piece in stream for token in piece.token_ids], whole=False)
        other.join()

    async def _tasks(self, n: int, seed: int) -> None:
        """Tasks that read, and half of which are cancelled."""
        rng = random.Random(seed)

        async def read(prompt: str) -> None:
            read: list[int] = []
            async for piece in self.model.astream(prompt, max_tokens=self.max_tokens, temperature=0):
                read += piece.token_ids
            self._compare(prompt, read, whole=True)

        for start in range(0, n, 4):
            tasks = [
                asyncio.create_task(read(rng.choice(list(self.expected)))) for _ in range(min(4, n - start))
            ]
            self.n_events += len(tasks)
            for task in tasks:
                if rng.random() < 0.5:
                    await asyncio.sleep(rng.random() * 0.02)
                    task.cancel()
            for err in await asyncio.gather(*tasks, return_exceptions=True):
                if err and not isinstance(err, (asyncio.CancelledError, QueueFullError, *self.allowed)):
                    self.wrong.append(repr(err))


def _was_told(ticket: Ticket) -> bool:
    """Whether the last thing that lies unread ends the generation."""
    last: Piece | BaseException | None = None
    while not ticket._pieces.empty():
        last = ticket._pieces.get()
    return isinstance(last, BaseException) or bool(last and last.finish_reason)

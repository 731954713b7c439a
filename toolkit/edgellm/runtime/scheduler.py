"""Many generations over one batcher: each step feeds all of them in one native call.

A thread of its own owns the batcher. Sequences that are decoding get one token each (and what they guess); what is
left of a step goes to prompts, in chunks, so that a long prompt does not stall the others and a cancelled one ends with
the step. Requests wait in a bounded queue in which owners take turns.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from edgellm.errors import DeadlineError, EdgeLLMError
from edgellm.protocols import Backend, Feed, Sampled
from edgellm.runtime.chunks import Chunks
from edgellm.runtime.fair_queue import FairQueue
from edgellm.runtime.generation import Generation
from edgellm.runtime.guessing import Guessing
from edgellm.runtime.overflow import dropped_while_generating
from edgellm.runtime.prefix_cache import Key, PrefixCache
from edgellm.runtime.ticket import own_error

MAX_QUEUE = 64
T = TypeVar("T")


class Counts(NamedTuple):
    """What is going on now, and what happened since the start."""

    n_active: int
    n_queued: int
    n_done: int
    n_cancelled: int
    n_failed: int
    n_steps: int
    busy_sequences: int
    saved_bytes: int


class Scheduler:
    """Runs generations until it is closed.

    Args:
        n_sequences: generations at once; each has `context` tokens of its own.
        max_queue: requests that may wait.
        cache_bytes: budget for prefixes that are kept outside the sequences.
        on_end: called in the scheduler's thread when it has released the batcher.
        draft: a smaller model with the same vocabulary, which guesses.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        n_sequences: int,
        context: int,
        max_queue: int = MAX_QUEUE,
        cache_bytes: int = 0,
        on_end: Callable[[], None] = lambda: None,
        draft: Backend | None = None,
    ) -> None:
        self._backend = backend
        self._on_end = on_end
        self._batcher = backend.open(n_sequences=n_sequences, context=context)
        try:
            self._guessing = Guessing(draft, n_sequences=n_sequences, context=context)
        except BaseException:
            self._batcher.close()
            raise
        can = backend.capabilities
        self._can = can
        self.cache = PrefixCache(
            self._batcher, max_saved_bytes=cache_bytes, can_truncate=can.can_truncate, can_copy=can.can_copy
        )
        self.context, self.n_sequences = context, n_sequences
        self._queue: FairQueue[Generation] = FairQueue(max_queue)
        self._active: list[Generation] = []
        self._admitting: Generation | None = None
        self._idle = list(range(n_sequences))
        self.chunks = Chunks()
        self._wake = threading.Condition()
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._closing = False
        self.is_waiting = False
        self._n_done = self._n_cancelled = self._n_failed = self._n_steps = 0
        self._thread = threading.Thread(target=self._run, name="edgellm-scheduler", daemon=True)
        self._thread.start()

    def submit(self, generation: Generation) -> None:
        """Put it in line.

        Raises:
            QueueFullError: as many as allowed wait already.  RuntimeError: closed.
        """
        with self._wake:
            self._check_open()
            self._queue.put(generation.request.owner, generation)
            self._wake.notify()

    def wake(self) -> None:
        """Something changed that the thread should look at."""
        with self._wake:
            self._wake.notify()

    def between_steps(self, work: Callable[[], T]) -> T:
        """Do some short work in the thread that owns the batcher, between two steps, and wait for it.

        Raises:
            RuntimeError: closed.  What `work` raises.
        """
        done: Future[T] = Future()
        with self._wake:
            self._check_open()
            self._jobs.append((work, done))
            self._wake.notify()
        return done.result()

    def counts(self) -> Counts:
        """What is going on."""
        with self._wake:
            n_queued = len(self._queue) + (self._admitting is not None)
            return Counts(
                len(self._active), n_queued, self._n_done, self._n_cancelled, self._n_failed, self._n_steps,
                self._batcher.n_sequences - len(self._idle), self.cache.saved.n_bytes,
            )  # fmt: skip

    def close(self) -> None:
        """End all generations and release the batcher; safe to call twice, from any thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _check_open(self) -> None:
        if self._closing:
            raise RuntimeError("this model is closed")

    def _run(self) -> None:
        try:
            while self._wait():
                self._do_one_job()
                self._end_what_is_over()
                self._admit()
                feeding = self._plan()
                if feeding:
                    self._step(feeding)
        except BaseException as err:  # a bug of ours: nobody may wait for ever
            self._end_all(err)
            raise
        finally:
            with self._wake:
                self._closing = True
            try:
                self._end_all(RuntimeError("this model is closed"))
                self._batcher.close()
                self._guessing.close()
            finally:
                self._on_end()

    def _wait(self) -> bool:
        """Sleep until there is something to do; False when it is over."""
        with self._wake:
            while not self._closing and not self._jobs:
                if any(g.ticket.cancelled for g in self._queue) or any(
                    g.ticket.cancelled or not g.ticket.is_stalled for g in self._active
                ):
                    break
                if self._queue and self._idle:
                    break
                timeout_s = self._until_deadline()
                if timeout_s is not None and timeout_s <= 0:
                    break
                self.is_waiting = True
                self._wake.wait(timeout_s)
            self.is_waiting = False
            return not self._closing

    def _do_one_job(self) -> None:
        with self._wake:
            if not self._jobs:
                return
            work, done = self._jobs.popleft()
        try:
            done.set_result(work())
        except Exception as err:  # it belongs to whoever asked
            done.set_exception(err)

    def _until_deadline(self) -> float | None:
        deadlines = [g.deadline_s for g in (*self._queue, *self._active) if g.deadline_s is not None]
        return min(deadlines) - time.perf_counter() if deadlines else None

    def _end_what_is_over(self) -> None:
        """Take out what was cancelled or is too late, waiting or running."""
        now_s = time.perf_counter()
        with self._wake:
            waiting = [g for g in self._queue if _is_over(g, now_s)]
            for generation in waiting:
                self._queue.remove(generation)
        for generation in waiting:
            self._refuse(generation, now_s)
        for generation in [g for g in self._active if _is_over(g, now_s)]:
            self._leave(generation)
            self._refuse(generation, now_s)

    def _refuse(self, generation: Generation, now_s: float) -> None:
        if generation.ticket.cancelled:
            self._n_cancelled += 1
            return
        self._n_failed += 1
        started_s = (generation.deadline_s or now_s) - (generation.request.deadline_s or 0)
        generation.ticket.put(
            DeadlineError(
                f"not done after {now_s - started_s:.1f} s, its deadline was {generation.request.deadline_s:g} s",
                hint="allow more time, or ask for fewer tokens",
            )
        )

    def _admit(self) -> None:
        while self._idle:
            with self._wake:
                if not self._queue:
                    return
                generation = self._admitting = self._queue.pop()
            try:
                self._begin(generation)
            except Exception as err:  # of this one only
                self._n_failed += 1
                generation.ticket.put(err)
            finally:
                self._admitting = None

    def _begin(self, generation: Generation) -> None:
        request = generation.request
        key = Key(request.owner, generation.adapters)
        sequence, n_cached = self.cache.take(key, generation.ids, self._idle, reuse=request.cache_prompt)
        self._batcher.reset_sampler(sequence)
        room = self.context - len(generation.ids)
        if request.overflow == "shift" and self.context > 1:
            room = max(room, request.max_tokens or 1 << 20)
        generation.admit(sequence, n_cached, min(request.max_tokens or room, room))
        if request.speculate and self._can.can_truncate and request.top_logprobs is None:
            self._guessing.begin(generation)
        with self._wake:
            self._idle.remove(sequence)
            self._active.append(generation)
            self._admitting = None

    def _plan(self) -> list[tuple[Generation, Feed]]:
        """What each generation feeds in this step."""
        decoding, prompts = [], []
        active = [generation for generation in self._active if not generation.ticket.is_stalled]
        n_growing = sum(generation.is_decoding for generation in active)
        for generation in active:
            try:
                if generation.is_decoding:
                    self._make_room(generation)
                if generation.n_to_feed > 1 or not generation.is_decoding:
                    prompts.append(generation)
                else:
                    self._guessing.choose(generation, self._batcher.tokens(generation.sequence), n_growing)
                    decoding.append(generation)
            except Exception as err:  # of this one only
                self._fail([generation], err)
        self._guessing.ask_model(decoding)
        feeding = [(generation, self._fitted(generation.next_feed(1))) for generation in decoding]
        for generation, n_tokens in self.chunks.shares(prompts, others_wait=bool(feeding)):
            feeding.append((generation, generation.next_feed(n_tokens)))
        return feeding

    def _fitted(self, feed: Feed) -> Feed:
        """A draft ends where the context does."""
        room = self.context - self._batcher.length(feed.sequence) - len(feed.tokens)
        if len(feed.draft) <= room:
            return feed
        return Feed(
            sequence=feed.sequence, tokens=feed.tokens, sampling=feed.sampling, want=feed.want,
            draft=feed.draft[:room], constraint=feed.constraint, adapters=feed.adapters,
        )  # fmt: skip

    def _make_room(self, generation: Generation) -> None:
        """Where the context is full and the request allows it, drop the oldest tokens."""
        sequence = generation.sequence
        if generation.request.overflow != "shift" or self._batcher.length(sequence) < self.context:
            return
        tokens = self._batcher.tokens(sequence)
        n_keep = min(max(generation.request.keep_tokens, 1), len(tokens) - 2)
        n_drop = dropped_while_generating(tokens, n_keep)
        generation.n_dropped += n_drop
        if self._can.can_shift:
            self._batcher.shift(sequence, n_keep, n_drop)
            generation.n_intact = n_keep
            return
        kept = [*tokens[:n_keep], *tokens[n_keep + n_drop :]]
        self._batcher.truncate(sequence, 0)  # unlike `free` it leaves the sampler where it was
        generation.refeed(kept)

    def _step(self, feeding: Sequence[tuple[Generation, Feed]]) -> None:
        feeds = [feed for _, feed in feeding]
        started_s = time.perf_counter()
        try:
            results = self._batcher.step(feeds)
        except Exception as err:
            self._fail([generation for generation, _ in feeding], err)
            return
        self._n_steps += 1
        self._note_time(feeds, time.perf_counter() - started_s)
        for (generation, feed), sampled in zip(feeding, results, strict=True):
            self._take(generation, feed, sampled)

    def _take(self, generation: Generation, feed: Feed, sampled: Sampled) -> None:
        try:
            if not generation.take(feed, sampled):
                return
            self._n_done += 1
        except EdgeLLMError as err:
            self._n_failed += 1
            generation.ticket.put(err)
        except Exception as err:  # a bug of ours is the end of this one only
            self._fail([generation], err)
            return
        self._leave(generation)

    def _note_time(self, feeds: Sequence[Feed], seconds: float) -> None:
        self._guessing.note(feeds, seconds)
        self.chunks.note(sum(len(feed.tokens) for feed in feeds), seconds)

    def _leave(self, generation: Generation) -> None:
        """Its sequence is free for others, and keeps its tokens for those that begin alike.

        Not what a shift moved up: it was computed seeing the tokens that were dropped.
        """
        if generation.n_intact is not None:
            self._batcher.truncate(generation.sequence, generation.n_intact)
        self._active.remove(generation)
        self._idle.append(generation.sequence)
        self.cache.release(generation.sequence, keep=True)

    def _fail(self, generations: Sequence[Generation], err: Exception) -> None:
        """A step failed: its generations end with the error, and their caches are not trusted any more."""
        for generation in generations:
            self._n_failed += 1
            generation.ticket.put(own_error(err))
            self._active.remove(generation)
            self._idle.append(generation.sequence)
            self.cache.forget(generation.sequence)

    def _end_all(self, err: BaseException) -> None:
        with self._wake:
            waiting = list(self._queue)
            for generation in waiting:
                self._queue.remove(generation)
            jobs = list(self._jobs)
            self._jobs.clear()
            running = list(self._active)
            self._active.clear()
            self._idle = list(range(self._batcher.n_sequences))
        for _, done in jobs:
            done.set_exception(own_error(err))
        for generation in (*waiting, *running):
            generation.ticket.put(own_error(err))


def _is_over(generation: Generation, now_s: float) -> bool:
    late = generation.deadline_s is not None and now_s >= generation.deadline_s
    return generation.ticket.cancelled or late

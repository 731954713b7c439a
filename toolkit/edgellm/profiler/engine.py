"""The engine regime, by llama-bench's method.

pp*n*: one prefill of n random tokens in batches, from an empty cache. tg*n*: n decode steps of one random token each,
synchronised after each step. Tokenizing, sampling and text are not part of it. One repetition is one sample; a
warm-up (one full prefill, or one decode step) is run and not counted. With a depth, the cache is filled once and cut
back to it before each repetition; only a cache that cannot be cut is filled again, inside the window of the meter.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from edgellm.protocols import Backend, Batcher, Feed
from edgellm.workload import Workload

SEED = 20240229


class Timed(NamedTuple):
    """Durations of the repetitions of one phase."""

    n_tokens: int
    seconds: list[float]


def run(backend: Backend, workload: Workload, around: Callable[[Callable[[], None]], None]) -> Timed:
    """Run the workload's repetitions in this process.

    Args:
        around: called with the timed part; lets the caller measure energy over exactly that window.
    """
    tokens = np.random.default_rng(SEED).integers(
        0, backend.vocab_size, workload.n_prompt + workload.n_gen + workload.n_depth
    )
    ids: list[int] = tokens.tolist()
    if backend.add_bos and backend.bos_id is not None:
        ids[0] = backend.bos_id
    depth, prompt = ids[: workload.n_depth], ids[workload.n_depth : workload.n_depth + workload.n_prompt]
    gen = ids[workload.n_depth + workload.n_prompt :]
    batcher = backend.open(n_sequences=1, context=max(len(ids), 32))
    seconds: list[float] = []
    try:
        _fill(batcher, depth)
        for _ in range(workload.warmup_reps):
            _run_once(batcher, prompt, gen[:1])
            _restore(backend, batcher, depth)

        def repeat() -> None:
            for n in range(workload.reps):
                if n:
                    _restore(backend, batcher, depth)
                start = time.perf_counter()
                _run_once(batcher, prompt, gen)
                seconds.append(time.perf_counter() - start)

        around(repeat)
    finally:
        batcher.close()
    return Timed(len(prompt) + len(gen), seconds)


def _fill(batcher: Batcher, depth: list[int]) -> None:
    batcher.free(0)
    if depth:
        batcher.step([Feed(sequence=0, tokens=depth, want="last")])


def _restore(backend: Backend, batcher: Batcher, depth: list[int]) -> None:
    if depth and backend.capabilities.can_truncate:
        batcher.truncate(0, len(depth))
    else:
        _fill(batcher, depth)


def _run_once(batcher: Batcher, prompt: list[int], gen: list[int]) -> None:
    if prompt:
        batcher.step([Feed(sequence=0, tokens=prompt, want="last")])
    for token in gen:
        batcher.step([Feed(sequence=0, tokens=(token,), want="last")])

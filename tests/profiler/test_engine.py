"""The engine regime by llama-bench's method: what is fed, in which order, and what lies inside the measured window."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgellm.profiler import engine
from edgellm.workload import Workload
from tests.support.fake_backend import BOS, FakeBackend


def make(**fields: int) -> Workload:
    return Workload(id="w", about="a workload", regime="engine", **{"reps": 3, **fields})  # type: ignore[arg-type]


def run(
    workload: Workload, backend: FakeBackend, inside: list[int] | None = None
) -> tuple[engine.Timed, list[list[int]]]:
    """The timing, the tokens of each feed; `inside` receives how many feeds were made before and within the window."""

    def around(timed: Callable[[], None]) -> None:
        before = len(backend.batchers[0].feeds)
        timed()
        if inside is not None:
            inside.extend((before, len(backend.batchers[0].feeds)))

    timed = engine.run(backend, workload, around)
    return timed, [list(feed.tokens) for feed in backend.batchers[0].feeds]


def test_prefill_is_one_feed_of_all_tokens_per_repetition() -> None:
    timed, feeds = run(make(n_prompt=40), FakeBackend())
    assert [len(tokens) for tokens in feeds] == [40] * 4
    assert (timed.n_tokens, len(timed.seconds)) == (40, 3)
    assert all(s > 0 for s in timed.seconds)


def test_generation_is_one_token_per_step() -> None:
    backend = FakeBackend()
    timed, feeds = run(make(n_gen=10), backend)
    assert [len(tokens) for tokens in feeds] == [1] * (1 + 3 * 10)
    assert timed.n_tokens == 10
    assert all(feed.want == "last" and feed.sampling is None for feed in backend.batchers[0].feeds)


def test_prompt_and_generation_together_count_both() -> None:
    timed, feeds = run(make(n_prompt=8, n_gen=4, reps=1, warmup_reps=0), FakeBackend())
    assert [len(tokens) for tokens in feeds] == [8, 1, 1, 1, 1]
    assert timed.n_tokens == 12


def test_every_repetition_sees_the_same_tokens_in_an_empty_cache() -> None:
    _, feeds = run(make(n_prompt=40), FakeBackend())
    assert feeds[0] == feeds[1] == feeds[2] == feeds[3]
    _, again = run(make(n_prompt=40), FakeBackend())
    assert again == feeds


def test_the_first_token_is_the_beginning_of_a_text_where_the_model_wants_one() -> None:
    assert run(make(n_prompt=4), FakeBackend())[1][0][0] == BOS
    assert run(make(n_gen=4), FakeBackend())[1][0] == [BOS]
    assert run(make(n_prompt=4, n_depth=5), FakeBackend())[1][0][0] == BOS
    plain = FakeBackend(add_bos=False)
    assert run(make(n_prompt=4), plain)[1][0][0] != BOS


def test_warm_up_is_outside_the_window() -> None:
    inside: list[int] = []
    run(make(n_gen=5, reps=2, warmup_reps=3), FakeBackend(), inside)
    assert inside == [3, 3 + 2 * 5]


def test_filling_the_cache_is_outside_the_window() -> None:
    inside: list[int] = []
    backend = FakeBackend()
    _, feeds = run(make(n_gen=5, n_depth=30, reps=2, warmup_reps=1), backend, inside)
    assert [len(tokens) for tokens in feeds[: inside[0]]].count(30) >= 1
    assert [len(tokens) for tokens in feeds[inside[0] : inside[1]]] == [1] * 10


def test_each_repetition_starts_at_the_same_depth() -> None:
    backend = FakeBackend()
    lengths: list[int] = []

    def around(timed: Callable[[], None]) -> None:
        batcher = backend.batchers[0]
        batcher.before_step = lambda: lengths.append(batcher.length(0))
        timed()

    engine.run(backend, make(n_gen=3, n_depth=30, reps=2), around)
    assert lengths == [30, 31, 32] * 2


def test_a_cache_that_cannot_be_cut_is_filled_again_each_time() -> None:
    backend = FakeBackend(can_truncate=False)
    _, feeds = run(make(n_gen=2, n_depth=30, reps=2, warmup_reps=0), backend)
    assert [len(tokens) for tokens in feeds] == [30, 1, 1, 30, 1, 1]


@pytest.mark.parametrize("fails_at", [0, 3])
def test_the_caches_are_released_also_after_an_error(fails_at: int) -> None:
    backend = FakeBackend()
    steps = iter(range(100))

    def around(timed: Callable[[], None]) -> None:
        def fail() -> None:
            if next(steps) == fails_at:
                raise RuntimeError("it broke")

        backend.batchers[0].before_step = fail
        timed()

    with pytest.raises(RuntimeError, match="it broke"):
        engine.run(backend, make(n_gen=4), around)
    assert backend.batchers[0].closed

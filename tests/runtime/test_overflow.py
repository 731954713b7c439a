"""What is dropped is what the policy says, and it is counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import ContextOverflowError
from edgellm.runtime.overflow import fit_prompt
from edgellm.runtime.request import Overflow
from tests.runtime.engines import batcher_of, make
from tests.support.fake_backend import BOS


@given(
    n_ids=st.integers(1, 300), context=st.integers(8, 128), n_keep=st.integers(0, 140),
    policy=st.sampled_from(["shift", "middle"]), max_tokens=st.none() | st.integers(1, 400),
)  # fmt: skip
def test_what_stays_is_a_beginning_and_an_end(
    n_ids: int, context: int, n_keep: int, policy: Overflow, max_tokens: int | None
) -> None:
    ids = list(range(n_ids))
    room = max(1, context - min(max_tokens or context // 4, context // 2))
    if n_ids >= (context if policy == "shift" else room + 1) and n_keep >= room:
        n_keep = room - 1
    fitted = fit_prompt(ids, context=context, policy=policy, n_keep=n_keep, max_tokens=max_tokens)
    assert len(fitted.ids) + fitted.n_dropped == n_ids
    assert len(fitted.ids) < context
    gaps = [i for i in range(1, len(fitted.ids)) if fitted.ids[i] != fitted.ids[i - 1] + 1]
    assert len(gaps) == (fitted.n_dropped > 0 and len(gaps) > 0)
    assert fitted.ids[-1] == n_ids - 1
    if fitted.n_dropped:
        assert fitted.ids[:n_keep] == ids[:n_keep]


def test_a_beginning_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(ContextOverflowError, match=r"keep_tokens is 90.* at most 75"):
        fit_prompt([1] * 200, context=100, policy="middle", n_keep=90, max_tokens=None)


def test_an_error_is_the_default_and_names_both_numbers() -> None:
    with pytest.raises(ContextOverflowError, match="300 tokens, the context holds 256"):
        fit_prompt([1] * 300, context=256, policy="error", n_keep=0, max_tokens=None)
    assert fit_prompt([1] * 255, context=256, policy="error", n_keep=0, max_tokens=99).n_dropped == 0


@pytest.mark.parametrize("can_truncate", [True, False])
def test_a_shifted_answer_goes_on_past_the_context(can_truncate: bool) -> None:
    with make(b"x" * 100, context=32, can_truncate=can_truncate) as model:
        done = model.generate("0123456789", temperature=0, overflow="shift", keep_tokens=3)
        assert (done.text, done.finish_reason) == ("x" * 100, "stop")
        assert done.usage.dropped_tokens >= 11 + 100 - 32
        feeds = [list(feed.tokens) for feed in batcher_of(model).feeds]
        refed = [tokens for tokens in feeds if len(tokens) > 1]
        assert all(tokens[:3] == [BOS, *b"01"] for tokens in refed)
        assert len(refed) == 1 if can_truncate else len(refed) > 3
        again = model.generate("0123456789", temperature=0, max_tokens=60)
        assert (again.finish_reason, again.usage.dropped_tokens) == ("length", 0)


def test_what_a_shift_moved_is_not_taken_for_a_prompt_of_those_tokens() -> None:
    with make(b"x" * 100, context=32) as model:
        model.generate("0123456789", temperature=0, overflow="shift", keep_tokens=3)
        held = list(batcher_of(model).tokens(0))
        assert held == [BOS, *b"01"]
        beyond = [BOS, *b"01", *b"x" * 20]
        assert model.generate(beyond, temperature=0, max_tokens=1).usage.cached_tokens <= 3


def test_the_middle_of_a_long_prompt_is_dropped() -> None:
    with make(b"short", context=64) as model:
        done = model.generate("a" * 40 + "m" * 40 + "z" * 40, temperature=0, overflow="middle", max_tokens=8)
        assert done.text == "short"
        assert done.usage.dropped_tokens == 121 - 56
        held = bytes(token for token in batcher_of(model).tokens(0) if token < 256)
        assert held.startswith(b"aaa")
        assert held.removesuffix(b"short"[:-1]).removesuffix(b"short").endswith(b"zzz")
        assert b"m" not in held

"""Guesses come from the text itself, and stop where they do not pay."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgellm.runtime.speculation import MAX_DRAFT, Draft, Drafter, Pace, PromptLookup, StepTimes


def test_what_followed_the_same_words_is_guessed() -> None:
    lookup = PromptLookup()
    lookup.extend([1, 2, 3, 4, 5, 6, 9, 1, 2])
    assert lookup.guess(3) == [3, 4, 5]
    assert lookup.guess(7) == [3, 4, 5, 6, 9, 1, 2]
    assert lookup.guess(10) == [3, 4, 5, 6, 9, 1, 2, 3, 4, 5]
    lookup.extend([7])
    assert lookup.guess(3) == []


def test_the_latest_and_longest_match_wins() -> None:
    lookup = PromptLookup()
    lookup.extend([8, 1, 2, 10, 9, 1, 2, 11, 8, 1, 2])
    assert lookup.guess(1) == [10]
    lookup.extend([12, 1, 2])
    assert lookup.guess(1) == [12]


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 20))
def test_guesses_follow_the_text_where_its_end_stood_before(tokens: list[int], n_tokens: int) -> None:
    lookup = PromptLookup()
    for i in range(0, len(tokens), 7):
        lookup.extend(tokens[i : i + 7])
    guess = lookup.guess(n_tokens)
    if not guess:
        assert all(tokens[i : i + 2] != tokens[-2:] for i in range(len(tokens) - 2)) or len(tokens) < 2
        return
    assert len(guess) == n_tokens
    whole = tokens + guess
    periods = range(1, len(tokens))
    assert any(all(whole[i] == whole[i - p] for i in range(len(tokens) - 2, len(whole))) for p in periods)


def test_one_step_that_was_interrupted_does_not_count() -> None:
    times = StepTimes()
    for seconds in (1.0, 1.0, 1.0):
        times.note(1, seconds)
    for seconds in (9.0, 1.5, 1.5, 1.5):
        times.note(5, seconds)
    assert times.relative(5) == 1.5
    times.note(9, 9.0)  # not yet known to be typical, and the least that was seen
    times.note(9, 2.0)
    assert times.relative(9) == 2.0


def test_costs_that_were_not_measured_lie_between_those_that_were() -> None:
    times = StepTimes()
    for n_tokens, seconds in ((1, 1.0), (5, 1.4), (9, 2.2)):
        times.note(n_tokens, seconds)
    assert times.relative(1) == 1
    assert abs(times.relative(7) - 1.8) < 1e-9
    assert abs(times.relative(17) - 3.4) < 1e-9
    assert StepTimes().relative(17) > 1


def pace(costs: dict[int, float]) -> Pace:
    times = StepTimes()
    for n_tokens, seconds in costs.items():
        times.note(n_tokens, seconds)
    return Pace(times)


def test_right_guesses_make_longer_drafts_and_wrong_ones_end_them() -> None:
    cheap = pace({1: 1.0, 2: 1.05, 5: 1.1, 17: 1.3})
    before = cheap.length()
    for _ in range(20):
        cheap.note(before, before)
    assert cheap.length() == MAX_DRAFT
    for _ in range(20):
        cheap.note(MAX_DRAFT, 0)
    assert cheap.length() == 0
    assert any(cheap.length() for _ in range(200))


def test_steps_that_cost_as_much_as_their_tokens_are_not_guessed_for() -> None:
    costly = pace({n: float(n) for n in range(1, MAX_DRAFT + 2)})
    lengths = [costly.length() for _ in range(400)]
    assert not any(lengths)


def test_a_draft_of_which_all_was_right_says_more_than_its_first_token() -> None:
    costs = {1: 1.0, 2: 1.3, 3: 1.5, 4: 1.7, 5: 1.9, 17: 4.0}
    good, bad = pace(costs), pace(costs)
    for _ in range(5):
        good.note(4, 4)
        bad.note(4, 1)
    assert good.length() > bad.length()


def test_in_company_a_draft_must_pay_for_the_time_of_all() -> None:
    costs = {1: 1.0, 2: 1.1, 3: 1.2, 4: 1.3, 8: 2.0, 9: 2.2, 10: 2.45, 12: 3.0, 24: 6.0}
    alone, among_eight = pace(costs), pace(costs)
    for _ in range(20):
        alone.note(4, 3)
        among_eight.note(4, 3)
    assert alone.length() > 0
    assert alone.gain > 1
    assert among_eight.length(n_sequences=8) == 0
    assert among_eight.gain == 1


def test_a_draft_model_that_costs_too_much_is_off_and_a_cheaper_one_on() -> None:
    costs = {1: 1.0, 2: 1.05, 3: 1.1, 5: 1.2, 9: 1.4, 17: 2.0}
    good = pace(costs)
    for _ in range(20):
        good.note(4, 4)
    assert good.length(guess_cost=0.3) > 0
    for _ in range(20):
        good.note(4, 2)
    assert good.length(guess_cost=0.1) > 0
    assert good.length(guess_cost=1.2) == 0
    rest = [good.length(guess_cost=0.1) for _ in range(100)]
    assert 0 in rest
    assert any(rest)


def known_times(costs: dict[int, float], guess_s: float) -> StepTimes:
    times = StepTimes()
    for n_tokens, seconds in costs.items():
        times.note(n_tokens, seconds)
    for _ in range(30):
        times.note_guesses(4, 4 * guess_s)
    return times


CHEAP_STEPS = {1: 1.0, 2: 1.05, 3: 1.1, 5: 1.2, 9: 1.4, 17: 2.0}


def test_what_guesses_cost_is_measured_and_one_slow_call_does_not_count() -> None:
    times = StepTimes()
    times.note_guesses(4, 1000.0)
    assert times.guess_cost(1) == 0  # over a step that was not measured yet
    times.note(1, 2.0)
    for _ in range(3):
        times.note_guesses(4, 2.0)
    times.note_guesses(0, 0.5)
    assert times.guess_cost(1) == 0.25
    times.forget_guesses()
    assert 0 < times.guess_cost(1) < 0.25


def test_a_step_without_guesses_comes_first_and_now_and_then() -> None:
    times = StepTimes()
    drafter = Drafter(times, has_model=True)
    drafter.extend([1, 2, 3, 4, 1, 2])
    assert drafter.propose(8, 1) == (Draft(), 0)
    times.note(1, 1.0)
    found = drafter.propose(8, 1)[0].tokens
    assert found
    assert found == [3, 4, 1, 2, 3, 4, 1, 2][: len(found)]
    for _ in range(100):
        times.note(5, 1.2)
    assert not drafter.propose(8, 1)[0].tokens
    assert drafter.propose(8, 1)[1] == 0


def test_lookup_goes_first_until_the_draft_model_is_right_more_often() -> None:
    times = known_times(CHEAP_STEPS, 0.1)
    drafter = Drafter(times, has_model=True)
    drafter.extend([5, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2])
    draft, n_asked = drafter.propose(8, 1)
    assert draft.tokens
    assert n_asked == 0
    assert draft.pace
    for _ in range(8):
        draft.pace.note(4, 0)
        drafter.model_pace.note(4, 4)
    assert drafter.propose(8, 1)[1] > 0


def test_without_a_hit_the_draft_model_is_asked_where_there_is_one() -> None:
    for has_model in (True, False):
        drafter = Drafter(known_times(CHEAP_STEPS, 0.1), has_model=has_model)
        drafter.extend([1, 2, 3])
        draft, n_asked = drafter.propose(8, 1)
        assert not draft.tokens
        assert (n_asked > 0) == has_model
        assert n_asked <= 8


def test_a_draft_model_as_slow_as_the_model_is_left_alone_and_tried_again() -> None:
    times = known_times(CHEAP_STEPS, 1.5)
    drafter = Drafter(times, has_model=True)
    drafter.extend([1, 2, 3])
    asked = []
    for _ in range(2000):
        asked.append(drafter.propose(8, 1)[1])
        if asked[-1]:
            times.note_guesses(asked[-1], 1.5 * asked[-1])
            drafter.model_pace.note(asked[-1], 0)
        times.note(1, 1.0)
    assert not any(asked[:48])
    assert 0 < sum(map(bool, asked)) < 60

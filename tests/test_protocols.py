"""The plain data of the seams: sampling parameters and their bounds, feeds, availability."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import BadInputError
from edgellm.formats.records import from_builtins, from_json, to_json
from edgellm.protocols import Availability, Feed, Sampled, SamplingParams

BOUNDS: list[tuple[str, float, float]] = [
    ("temperature", 0.0, 100.0),
    ("top_k", 0, 1 << 20),
    ("top_p", 0.0, 1.0),
    ("min_p", 0.0, 1.0),
    ("repeat_penalty", 0.01, 100.0),
    ("repeat_last_n", 0, 1 << 16),
    ("seed", 0, 2**32 - 2),
]


def make(**fields: Any) -> SamplingParams:
    return SamplingParams(**fields)


def test_the_default_is_greedy() -> None:
    assert make().temperature == 0.0
    assert make().seed is None


@pytest.mark.parametrize(("name", "low", "high"), BOUNDS)
def test_bounds_are_inclusive(name: str, low: float, high: float) -> None:
    assert getattr(make(**{name: low}), name) == low
    assert getattr(make(**{name: high}), name) == high


@pytest.mark.parametrize(("name", "low", "high"), BOUNDS)
def test_outside_the_bounds_is_a_value_error(name: str, low: float, high: float) -> None:
    for value in (low - 1, high + 1):
        with pytest.raises(ValueError, match=f"{name} is"):
            make(**{name: value})


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "repeat_penalty"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_no_parameter_is_nan_or_infinite(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        make(**{name: value})


@given(
    temperature=st.floats(min_value=0, max_value=100),
    top_k=st.integers(min_value=0, max_value=1 << 20),
    top_p=st.floats(min_value=0, max_value=1),
    seed=st.none() | st.integers(min_value=0, max_value=2**32 - 2),
)
def test_parameters_survive_json(temperature: float, top_k: int, top_p: float, seed: int | None) -> None:
    params = make(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    assert from_json(SamplingParams, to_json(params), "test") == params


def test_bounds_hold_for_decoded_parameters_too() -> None:
    with pytest.raises(BadInputError, match="temperature is -1"):
        from_builtins(SamplingParams, {"temperature": -1.0}, "request")
    with pytest.raises(BadInputError, match="unknown field"):
        from_builtins(SamplingParams, {"temprature": 1.0}, "request")


def test_parameters_are_frozen() -> None:
    with pytest.raises(AttributeError):
        make().temperature = 1.0  # type: ignore[misc]


def test_feed_and_sampled_default_to_nothing_wanted() -> None:
    feed = Feed(sequence=0, tokens=[1, 2])
    assert (feed.sampling, feed.want) == (None, "none")
    assert Sampled(tokens=[]).logits is None


def test_availability_says_why_not() -> None:
    absent = Availability(available=False, reason="no powercap", remedy="use a wall meter")
    assert from_json(Availability, to_json(absent), "test") == absent

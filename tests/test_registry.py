"""Lookup by name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import SpecError
from edgellm.registry import lookup, unknown

TABLE = {"Q4_K_M": 15, "Q4_0": 2, "Q8_0": 7}


def test_found() -> None:
    assert lookup(TABLE, "Q4_0", "quantization type") == 2


def test_a_near_name_is_suggested_and_all_are_listed() -> None:
    with pytest.raises(SpecError, match="unknown quantization type 'Q4_KM'") as caught:
        lookup(TABLE, "Q4_KM", "quantization type")
    assert caught.value.hint == "did you mean 'Q4_K_M'? known: Q4_K_M, Q4_0, Q8_0"
    assert caught.value.__suppress_context__


def test_nothing_is_suggested_for_a_far_name() -> None:
    assert unknown("elephant", list(TABLE), "type").hint == "known: Q4_K_M, Q4_0, Q8_0"


def test_an_empty_table() -> None:
    with pytest.raises(SpecError, match="unknown target 'x'"):
        lookup({}, "x", "target")


@given(st.text(max_size=30))
def test_any_other_name_is_a_spec_error(name: str) -> None:
    if name in TABLE:
        assert lookup(TABLE, name, "type") == TABLE[name]
    else:
        with pytest.raises(SpecError):
            lookup(TABLE, name, "type")

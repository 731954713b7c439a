"""Patterns find what Python's re finds, and no pattern takes more than a moment."""

from __future__ import annotations

import re
import warnings

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edgellm.convert.name_patterns import matching
from edgellm.errors import SpecError

NAMES = ["blk.10.ffn_down.weight", "blk.1.attn_q.weight", "output.weight", "ab", "b$", "a|b", "(a"]
PIECES = [
    "a", "b", ".", "*", "+?", "?", "(", ")", "|", "^", "$", r"\d", r"\.", "[ab]", "[^a|(]", "blk", "weight", r"\$", r"\|",
    "{1,2}", "W",
]  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("ffn_down", NAMES[:1]),
        (r"blk\.\d+\.ffn_(up|down)", NAMES[:1]),
        ("^blk|^output", NAMES[:3]),
        (r"weight$|\|b", [*NAMES[:3], "a|b"]),
        (r"b\$$", ["b$"]),
        (r"[|(]", ["a|b", "(a"]),
        ("FFN_DOWN", NAMES[:1]),
        ("nothing", []),
    ],
)
def test_patterns_are_searched_for_in_any_case(pattern: str, found: list[str]) -> None:
    assert matching(pattern, NAMES) == found


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join))
def test_what_both_understand_both_find(pattern: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            wanted = [name for name in NAMES if re.search(pattern, name, re.IGNORECASE | re.DOTALL)]
        except re.error:
            assume(False)
    try:
        found = matching(pattern, NAMES)
    except SpecError:
        assume(False)
    assert found == wanted


@pytest.mark.parametrize(
    "pattern", ["(", "a)b(", "[", "*", "(?=a)", r"(a)\1", "a^b", "x{3", "\\", "a" * 257, ""]
)
def test_a_pattern_that_cannot_be_used_is_refused_in_one_line(pattern: str) -> None:
    with pytest.raises(SpecError) as caught:
        matching(pattern, NAMES)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "pattern",
    [r"(a+)+$", r"(a|a)*b$", r"(a?){60}a{60}$", r"(.*)(.*)(.*)(.*)x{50}", r"((a{1,1000}){1,1000}){1,1000}b",
     r"(a|ab|abc|.b){1,200}[^q]{0,200}(.c|a.){1,200}$"],
)  # fmt: skip
def test_patterns_that_make_others_hang_do_not_hang_here(pattern: str) -> None:
    names = [f"{'a' * 60}{i % 10}!" for i in range(1000)]
    try:
        found = matching(pattern, names)
    except SpecError:
        return
    assert len(found) in (0, len(names))

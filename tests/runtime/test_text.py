"""TextAssembler: any split of the bytes gives the same text, no character is broken, no stop string is shown."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.runtime.text import MAX_STOP_CHARS, MAX_STOPS, TextAssembler

TEXTS = st.text(alphabet=st.sampled_from("abc é漢😀\n"), max_size=40) | st.text(max_size=20)
FEW_LETTERS = st.text(alphabet="abé", max_size=12)
STOPS = st.lists(st.text(alphabet="abé", min_size=1, max_size=4), max_size=4)


def split(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def assemble(pieces: Sequence[bytes], stops: Sequence[str] = ()) -> tuple[list[str], bool]:
    assembler = TextAssembler(stops)
    shown = []
    for piece in pieces:
        shown.append(assembler.push(piece))
        if assembler.stopped:
            break
    return [*shown, assembler.finish()], assembler.stopped


def expected(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Reading one character after the other, the first stop string to be complete ends the text before it."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@given(text=TEXTS, cuts=st.lists(st.integers(0, 200)))
def test_any_split_gives_the_text_and_never_a_broken_character(text: str, cuts: list[int]) -> None:
    shown, stopped = assemble(split(text.encode(), cuts))
    assert "".join(shown) == text
    assert "�" not in "".join(shown) or "�" in text
    assert not stopped


@given(data=st.binary(max_size=40), cuts=st.lists(st.integers(0, 200)))
def test_any_split_of_any_bytes_gives_the_same_text(data: bytes, cuts: list[int]) -> None:
    shown, _ = assemble(split(data, cuts))
    assert "".join(shown) == data.decode("utf-8", errors="replace")


@given(text=FEW_LETTERS, stops=STOPS, cuts=st.lists(st.integers(0, 200)))
def test_any_split_ends_at_the_first_complete_stop_string(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    shown, stopped = assemble(split(text.encode(), cuts), stops)
    assert ("".join(shown), stopped) == expected(text, stops)


def test_a_stop_string_across_pieces_is_never_shown() -> None:
    assert assemble([b"one ST", b"O", b"P two"], ["STOP"]) == (["one ", "", "", ""], True)


def test_the_beginning_of_a_stop_that_turns_out_to_be_text_is_shown() -> None:
    assert assemble([b"one ST", b"ART"], ["STOP"]) == (["one ", "START", ""], False)


def test_what_is_held_back_at_the_end_is_shown_by_finish() -> None:
    assert assemble([b"one ST"], ["STOP"]) == (["one ", "ST"], False)


def test_a_stop_at_the_very_start_leaves_no_text() -> None:
    assert assemble([b"STOP and more"], ["STOP"]) == (["", ""], True)


def test_of_two_stops_that_end_together_the_longer_one_is_cut() -> None:
    assert assemble([b"x aab y"], ["ab", "aab"]) == (["x ", ""], True)


def test_overlapping_stops_give_the_same_text_in_one_piece_and_in_many() -> None:
    whole, _ = assemble([b"abcd"], ["abcd", "bc"])
    letters, _ = assemble([b"a", b"b", b"c", b"d"], ["abcd", "bc"])
    assert "".join(whole) == "".join(letters) == "a"


def test_a_stop_that_begins_again_inside_itself_is_found() -> None:
    assert assemble([b"aa", b"a", b"b"], ["aab"]) == (["", "a", "", ""], True)


def test_an_unfinished_character_at_the_end_becomes_a_replacement_character() -> None:
    assert assemble(["a😀".encode()[:3]]) == (["a", "�"], False)


def test_a_stop_of_several_bytes_per_character_is_found_between_bytes() -> None:
    data = "Héé!".encode()
    shown, stopped = assemble([data[i : i + 1] for i in range(len(data))], ["éé"])
    assert ("".join(shown), stopped) == ("H", True)


def test_after_a_stop_nothing_more_is_shown() -> None:
    assembler = TextAssembler(["."])
    assert assembler.push(b"one. two") == "one"
    assert (assembler.push(b" three"), assembler.finish(), assembler.stopped) == ("", "", True)


@pytest.mark.parametrize("stops", [[""], ["x" * (MAX_STOP_CHARS + 1)], ["x"] * (MAX_STOPS + 1)])
def test_stops_out_of_bounds_are_a_value_error(stops: list[str]) -> None:
    with pytest.raises(ValueError, match=r"stop has .* strings of"):
        TextAssembler(stops)


def test_one_string_is_not_taken_for_a_list_of_letters() -> None:
    with pytest.raises(TypeError, match="list"):
        TextAssembler("STOP")

"""Pieces of prompts: large enough to be computed alike, small enough to stall nobody."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgellm.runtime.chunks import CHUNK_TOKENS, LEAST_CHUNK_TOKENS, Chunks, piece


def test_prompts_that_wait_get_a_larger_share_of_a_step_than_one_alone() -> None:
    chunks = Chunks()
    assert chunks.n_tokens(1) == CHUNK_TOKENS  # nothing is known yet
    chunks.note(100, 0.2)
    assert [chunks.n_tokens(n) for n in (1, 2, 4, 100)] == [64, 128, 256, CHUNK_TOKENS]


def test_steps_of_few_tokens_say_nothing_about_prefill() -> None:
    chunks = Chunks()
    chunks.note(LEAST_CHUNK_TOKENS - 1, 1000.0)
    assert chunks.prefill_s_per_token == 0


@given(st.integers(1, 5000), st.integers(0, CHUNK_TOKENS))
def test_a_prompt_is_cut_into_no_small_pieces_and_ends(n_to_feed: int, n_tokens: int) -> None:
    pieces = []
    left = n_to_feed
    while left:
        pieces.append(piece(left, n_tokens))
        left -= pieces[-1]
    assert sum(pieces) == n_to_feed
    assert all(n >= LEAST_CHUNK_TOKENS for n in pieces) or pieces == [n_to_feed]
    assert max(pieces) <= max(n_tokens, 2 * LEAST_CHUNK_TOKENS)

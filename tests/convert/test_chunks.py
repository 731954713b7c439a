"""Chunks never reach beyond the model's context."""

from __future__ import annotations

import pytest

from edgellm.convert import chunks
from edgellm.errors import BadInputError


@pytest.mark.parametrize(("context", "length"), [(8, 8), (96, 96), (512, 512), (131072, 512)])
def test_a_chunk_is_no_longer_than_the_context(context: int, length: int) -> None:
    assert chunks.chunk_tokens(context) == length


def test_a_context_that_nothing_can_be_measured_in() -> None:
    with pytest.raises(BadInputError, match="context of 4 tokens"):
        chunks.chunk_tokens(4)


def test_whole_chunks_in_order() -> None:
    assert chunks.cut(range(7), 3, "text") == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(BadInputError, match=r"text: 2 tokens are too few.*at least 3"):
        chunks.cut(range(2), 3, "text")

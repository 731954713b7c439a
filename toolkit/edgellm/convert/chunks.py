"""How a text is cut for measuring: every chunk is run from an empty cache, as llama.cpp's own tools do."""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.errors import BadInputError

CHUNK_TOKENS = 512
MIN_CHUNK_TOKENS = 8


def chunk_tokens(context_train: int) -> int:
    """Tokens in a chunk: no more than the model was trained for, since positions may end there.

    Raises:
        BadInputError: a context too short to measure anything in.
    """
    if context_train < MIN_CHUNK_TOKENS:
        raise BadInputError(
            f"the model has a context of {context_train} tokens, at least {MIN_CHUNK_TOKENS} are needed to measure it",
            hint="convert it with --verify none and --imatrix none",
        )
    return min(CHUNK_TOKENS, context_train)


def cut(ids: Sequence[int], length: int, where: str) -> list[list[int]]:
    """Whole chunks of that length, in order.

    Raises:
        BadInputError: the text is shorter than one; `where` names it.
    """
    chunks = [list(ids[i : i + length]) for i in range(0, len(ids) - length + 1, length)]
    if not chunks:
        raise BadInputError(
            f"{where}: {len(ids)} tokens are too few to measure on, at least {length} are needed",
            hint="use a longer text",
        )
    return chunks

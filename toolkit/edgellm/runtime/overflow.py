"""What is done with more tokens than a context holds: said before it is done, and counted after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edgellm.errors import ContextOverflowError
from edgellm.runtime.request import Overflow


class Fitted(NamedTuple):
    """A prompt that fits, and how many of its tokens were dropped."""

    ids: list[int]
    n_dropped: int


def fit_prompt(
    ids: list[int], *, context: int, policy: Overflow, n_keep: int, max_tokens: int | None
) -> Fitted:
    """The prompt, shortened where it leaves no room and the policy allows that.

    Args:
        n_keep: tokens at its beginning that stay.
        max_tokens: room that is left for the answer, at most half of the context; None leaves a quarter.

    Raises:
        ContextOverflowError: it is too long, and the policy is `error` or keeps more than fits.
    """
    if len(ids) < context and (policy == "error" or max_tokens is None or len(ids) + max_tokens <= context):
        return Fitted(ids, 0)
    if policy == "error":
        raise ContextOverflowError(
            f"the prompt has {len(ids)} tokens, the context holds {context}",
            hint="use a larger context (--context) or a shorter prompt",
        )
    if policy == "shift" and len(ids) < context:
        return Fitted(ids, 0)  # the answer makes its own room
    room = max(1, context - min(max_tokens or context // 4, context // 2))
    n_dropped = len(ids) - room
    if n_dropped <= 0:
        return Fitted(ids, 0)
    if n_keep >= room:
        raise ContextOverflowError(
            f"keep_tokens is {n_keep}: a prompt that leaves room for an answer has at most {room} of the context of {context}",
            hint="keep fewer tokens, or use a larger context",
        )
    start = n_keep if policy == "shift" else n_keep + (room - n_keep) // 2
    return Fitted([*ids[:start], *ids[start + n_dropped :]], n_dropped)


def dropped_while_generating(tokens: Sequence[int], n_keep: int) -> int:
    """Tokens to drop after the first n_keep of a full context: half of the rest."""
    return max(1, (len(tokens) - n_keep) // 2)

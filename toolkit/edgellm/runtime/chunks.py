"""How much of each prompt a step computes, so that long prompts stall nobody and no text depends on its company."""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.runtime.generation import Generation

# Tokens of prompts in one step, where nothing else is waiting for it.
CHUNK_TOKENS = 512
# llama.cpp's flash attention computes fewer tokens of a sequence in another way, whose last bits differ: with no smaller
# pieces, unless the prompt has no more, a text does not depend on what else is computed.
LEAST_CHUNK_TOKENS = 64
# A step that others wait for should not take longer than this for each prompt in it.
STEP_S = 0.15
_SMOOTHING = 0.3


class Chunks:
    """Cuts prompts by what prefill was seen to cost."""

    def __init__(self) -> None:
        self.prefill_s_per_token = 0.0

    def note(self, n_tokens: int, seconds: float) -> None:
        """A step of so many tokens in all took that long."""
        if n_tokens >= LEAST_CHUNK_TOKENS:
            per_token = seconds / n_tokens
            known = self.prefill_s_per_token
            self.prefill_s_per_token = known + _SMOOTHING * (per_token - known) if known else per_token

    def shares(self, prompts: Sequence[Generation], *, others_wait: bool) -> list[tuple[Generation, int]]:
        """Tokens that each prompt feeds in one step.

        The one that came first gets about half or more; the other half goes to the shortest, so that none waits for a
        long one.

        Args:
            others_wait: whether there are sequences whose next token waits for the step.
        """
        if not prompts:
            return []
        n_tokens = self.n_tokens(len(prompts)) if others_wait else CHUNK_TOKENS
        first, *others = prompts
        left = n_tokens - min(first.n_to_feed, n_tokens - n_tokens // 2)
        shares = []
        for generation in sorted(others, key=lambda g: g.n_to_feed):
            share = piece(generation.n_to_feed, left)
            if share > left:
                break
            left -= share
            shares.append((generation, share))
        return [(first, piece(first.n_to_feed, n_tokens - sum(share for _, share in shares))), *shares]

    def n_tokens(self, n_prompts: int) -> int:
        """Tokens of prompts in a step that others wait for; each prompt adds its share to the time it may take."""
        if not self.prefill_s_per_token:
            return CHUNK_TOKENS
        fits = int(STEP_S * n_prompts / self.prefill_s_per_token)
        return min(CHUNK_TOKENS, max(LEAST_CHUNK_TOKENS, fits // LEAST_CHUNK_TOKENS * LEAST_CHUNK_TOKENS))


def piece(n_to_feed: int, n_tokens: int) -> int:
    """About n_tokens of a prompt, so that no piece of it is smaller than the least one."""
    if n_to_feed <= n_tokens or n_to_feed < 2 * LEAST_CHUNK_TOKENS:
        return n_to_feed
    return min(max(n_tokens, LEAST_CHUNK_TOKENS), n_to_feed - LEAST_CHUNK_TOKENS)

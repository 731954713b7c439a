"""One line about what a generation took."""

from __future__ import annotations

from edgellm.runtime.request import Usage
from edgellm.units import format_seconds


def usage_line(usage: Usage, *, is_cut: bool = False) -> str:
    """Tokens in and out, time to the first token, speed of the rest, what guesses gave.

    Args:
        is_cut: the answer ended before its end, at --max-tokens or where the context is full.
    """
    cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
    first = format_seconds(usage.ttft_s)
    line = (
        f"{usage.prompt_tokens} tokens in{cached}, {usage.completion_tokens} out; first token after {first}"
    )
    if usage.completion_tokens > 1 and usage.decode_s > 0:
        line += f", then {(usage.completion_tokens - 1) / usage.decode_s:.1f} tok/s"
    if is_cut:
        line += "; cut: --max-tokens or the context is reached"
    if usage.drafted_tokens:
        line += f"; {usage.accepted_tokens} of {usage.drafted_tokens} guesses right"
    if usage.draft_failure:
        line += f"; the draft model was given up: {usage.draft_failure}"
    return line

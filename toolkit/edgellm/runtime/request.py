"""What is asked of a loaded model, and what comes out of it: plain data, which may cross to another process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from edgellm.formats.records import Record
from edgellm.protocols import SamplingParams
from edgellm.report import Missing
from edgellm.runtime.constraints import ConstraintSpec
from edgellm.runtime.tool_parser import ToolCall
from edgellm.runtime.tools import ToolChoice

FinishReason = Literal["stop", "length", "tool_calls"]
Overflow = Literal["error", "shift", "middle"]
MAX_TOP_LOGPROBS = 20
MAX_TOKENS = (1 << 31) - 1
MAX_DEADLINE_S = 7 * 24 * 3600.0


class Request(Record):
    """One generation.

    Attributes:
        prompt: text, continued as it is; messages, which go through the model's chat template; or token ids.
        max_tokens: most tokens to draw; None goes on to the end of the answer or of the context.
        stop: texts that end the generation.
        cache_prompt: reuse the KV cache of an earlier prompt that begins alike.
        owner: whose request this is: the cache of one owner is never used for another, and owners take turns.
        deadline_s: seconds from now after which it ends with an error; None for no limit.
        overflow: what happens where the context is too small: an error; `shift` drops the oldest tokens, while
            generating too; `middle` drops the middle of the prompt.
        keep_tokens: tokens at the beginning of the prompt that `shift` and `middle` keep.
        constraint: what the text must fit; None for anything.
        top_logprobs: log-probabilities of the tokens drawn, and of that many likely ones beside; None for none.
        adapters: name -> scale of LoRA adapters that were loaded.
        speculate: whether guesses may be tried; they change the time that it takes, never the text.
        tools: functions that may be called, as `tools.check_tools` gave them; the prompt must be messages then.
        tool_choice: whether calls are made.
        parallel_tool_calls: whether an answer may have several calls.
    """

    prompt: str | list[Any]
    max_tokens: int | None = None
    sampling: SamplingParams = SamplingParams()
    stop: list[str] = []
    cache_prompt: bool = True
    owner: str = ""
    deadline_s: float | None = None
    overflow: Overflow = "error"
    keep_tokens: int = 0
    constraint: ConstraintSpec | None = None
    top_logprobs: int | None = None
    adapters: dict[str, float] = {}
    speculate: bool = True
    tools: list[dict[str, Any]] = []
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True

    def __post_init__(self) -> None:
        if self.max_tokens is not None and not 1 <= self.max_tokens <= MAX_TOKENS:
            raise ValueError(f"max_tokens is {self.max_tokens}, outside 1 to {MAX_TOKENS}")
        if self.deadline_s is not None and not 0 < self.deadline_s <= MAX_DEADLINE_S:
            raise ValueError(
                f"deadline_s is {self.deadline_s}, expected more than 0, at most {MAX_DEADLINE_S:g}"
            )
        if self.overflow not in get_args(Overflow):
            raise ValueError(
                f"overflow is {self.overflow!r}, expected one of {', '.join(get_args(Overflow))}"
            )
        if not 0 <= self.keep_tokens <= MAX_TOKENS:
            raise ValueError(f"keep_tokens is {self.keep_tokens}, outside 0 to {MAX_TOKENS}")
        if self.top_logprobs is not None and not 0 <= self.top_logprobs <= MAX_TOP_LOGPROBS:
            raise ValueError(f"top_logprobs is {self.top_logprobs}, outside 0 to {MAX_TOP_LOGPROBS}")


class TokenLogprob(Record):
    """A token drawn, its natural log-probability before sampling, and the likeliest ones beside: (id, log-probability)."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]


class Usage(Record):
    """What a generation took.

    Attributes:
        prompt_tokens, cached_tokens: tokens of the prompt, and how many of them were in the KV cache already.
        completion_tokens: tokens drawn, the end token included.
        dropped_tokens: tokens of prompt and answer that `overflow` dropped so that the rest fits.
        drafted_tokens, accepted_tokens: guesses that were tried, and how many of them were right.
        draft_failure: why the draft model was given up; None where it was not, or there is none.
        queue_s: waiting for other generations.
        ttft_s: from the call to the first token: waiting and tokenizing included.
        decode_s: from the first token to the last.
        energy: why there is no figure in joules.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    ttft_s: float
    decode_s: float
    energy: Missing
    dropped_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    draft_failure: str | None = None
    queue_s: float = 0.0


class Piece(Record):
    """A part of a generation as it streams; the last one carries `finish_reason` and `usage`.

    Attributes:
        tool_calls: calls of functions that became complete with it, each whole; they are not in the text.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    logprobs: list[TokenLogprob] | None = None
    tool_calls: list[ToolCall] = []


class Completion(Record):
    """A whole generation.

    Attributes:
        finish_reason: `length` where `max_tokens` or the context cut it, also within a call, whose beginning is text then;
            else `tool_calls` where functions were called, and `stop` where not.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    usage: Usage
    logprobs: list[TokenLogprob] | None = None
    tool_calls: list[ToolCall] = []

    def as_message(self) -> dict[str, Any]:
        """The answer as a message in OpenAI's shape, to be appended to the conversation."""
        return answer_message(self.text, self.tool_calls)


def answer_message(text: str, tool_calls: Sequence[ToolCall]) -> dict[str, Any]:
    """An answer as a message in OpenAI's shape."""
    if not tool_calls:
        return {"role": "assistant", "content": text}
    calls = [call.as_message() for call in tool_calls]
    return {"role": "assistant", "content": text or None, "tool_calls": calls}


def completion(pieces: Sequence[Piece]) -> Completion:
    """The whole of a generation from all its pieces."""
    last = pieces[-1]
    assert last.finish_reason is not None
    assert last.usage is not None
    logprobs = [entry for piece in pieces for entry in piece.logprobs or ()]
    return Completion(
        text="".join(piece.text for piece in pieces),
        token_ids=[token for piece in pieces for token in piece.token_ids],
        finish_reason=last.finish_reason,
        usage=last.usage,
        logprobs=logprobs if last.logprobs is not None else None,
        tool_calls=[call for piece in pieces for call in piece.tool_calls],
    )

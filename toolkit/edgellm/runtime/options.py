"""Keyword arguments of a generation, and the request that they make."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, get_type_hints

import msgspec

from edgellm.errors import BadInputError, SpecError
from edgellm.protocols import SamplingParams
from edgellm.runtime import arguments
from edgellm.runtime.constraints import ConstraintSpec
from edgellm.runtime.prompts import Prompt, check_tools_are_shown
from edgellm.runtime.request import Overflow, Request
from edgellm.runtime.tools import Tool, ToolChoice, check_choice, check_tools


class Options(TypedDict, total=False):
    """Keyword arguments of a generation.

    Attributes:
        max_tokens: most tokens to draw; None goes on to the end of the answer or of the context.
        temperature: 0 takes the most likely token each time; 0.8 by default.
        top_k, top_p, min_p: keep the k best (40); the smallest set with probability p (0.95); what is at least min_p
            times as likely as the best (0.05).
        repeat_penalty: divides the logits of tokens seen lately; 1 by default, which is none.
        presence_penalty, frequency_penalty: taken off their logits, once and once for each time; 0 by default.
        logit_bias: token -> what is added to its logit.
        seed: the same seed gives the same text; None draws one.
        stop: texts that end the generation; they are not part of it.
        cache_prompt: reuse the KV cache of an earlier prompt that begins alike.
        owner: whose prompt this is: caches are never shared between owners, and owners take turns.
        deadline_s: seconds after which it ends with a DeadlineError.
        overflow: what happens where the context is too small: `error`, `shift` or `middle`.
        keep_tokens: tokens at the beginning that `shift` and `middle` keep.
        json_schema: the text is JSON that fits this schema (a dict, or its text).
        regex, grammar: the text fits this regular expression; this grammar in llguidance's notation or in GBNF.
        top_logprobs: log-probabilities of what is drawn, and of that many likely tokens beside.
        adapters: name -> scale of LoRA adapters that were loaded with the model.
        speculate: whether guesses may be tried; they never change the text.
        tools: functions that may be called, in OpenAI's shape; the prompt must be messages then.
        tool_choice: `auto` lets the model decide; `required` and a named function enforce calls, which are valid for
            their parameters unless `max_tokens` cuts them. `none` shows the functions to the model, so that the prompt
            stays the same, and finds no calls.
        parallel_tool_calls: False ends the answer after one call.
    """

    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: dict[int, float]
    seed: int | None
    stop: Sequence[str]
    cache_prompt: bool
    owner: str
    deadline_s: float | None
    overflow: Overflow
    keep_tokens: int
    json_schema: dict[str, Any] | str | None
    regex: str | None
    grammar: str | None
    top_logprobs: int | None
    adapters: dict[str, float]
    speculate: bool
    tools: Sequence[Tool] | None
    tool_choice: Literal["auto", "none", "required"] | Mapping[str, Any] | None
    parallel_tool_calls: bool


_SAMPLING: dict[str, Any] = {
    "temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repeat_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "logit_bias": {}, "seed": None,
}  # fmt: skip


# Options are checked with it before anything was said.
ANY_MESSAGES = [{"role": "user", "content": "x"}]


def make_request(prompt: Prompt, options: Options) -> Request:
    """A request with the defaults of the library.

    Raises:
        ValueError: an option out of bounds, or a lone surrogate.  TypeError: an unknown option, or one of a wrong kind.
        SpecError: tools that are none, or that do not go with the rest.
    """
    given = arguments.checked_prompt(prompt)
    if isinstance(stop := options.get("stop", ()), str):
        raise TypeError(f"stop is {stop[:80]!r}, expected a list of strings")
    plain = {name: value for name, value in options.items() if name not in ("tools", "tool_choice")}
    rest = arguments.checked_options(plain, _kinds())
    sampling = SamplingParams(**{name: rest.pop(name, default) for name, default in _SAMPLING.items()})
    rest["constraint"] = _constraint(rest)
    rest["tools"], rest["tool_choice"] = _tools(options, given, rest["constraint"])
    return Request(prompt=given, sampling=sampling, **rest)


@functools.cache
def _kinds() -> dict[str, Any]:
    return get_type_hints(Options)


def saved_options(path: Path, options: dict[str, Any]) -> Options:
    """Options from a file, checked.

    Raises:
        BadInputError: one is unknown, of a wrong kind or out of bounds.
    """
    try:
        if unknown := sorted(set(options) - set(Options.__annotations__) | set(options) & {"owner"}):
            raise ValueError(f"unknown option {unknown[0]!r}")
        found: Options = msgspec.convert(options, Options, str_keys=True)
        make_request(ANY_MESSAGES, found)
    except (ValueError, TypeError, RecursionError, SpecError) as err:
        raise BadInputError(f"{path}: {str(err)[:200]}") from err
    return found


def _constraint(options: dict[str, Any]) -> ConstraintSpec | None:
    given = {kind: options.pop(kind, None) for kind in ("json_schema", "regex", "grammar")}
    asked = [(kind, value) for kind, value in given.items() if value is not None]
    if len(asked) > 1:
        raise ValueError(f"{asked[0][0]} and {asked[1][0]} together: give one")
    if not asked:
        return None
    kind, value = asked[0]
    try:
        text = value if isinstance(value, str) else json.dumps(value)
    except (TypeError, ValueError, RecursionError) as err:
        raise TypeError(f"{kind} is no JSON: {err}") from err
    return ConstraintSpec(kind=kind, text=text)  # type: ignore[arg-type]


def _tools(
    options: Options, prompt: Prompt, constraint: ConstraintSpec | None
) -> tuple[list[dict[str, Any]], ToolChoice]:
    given, asked = options.get("tools"), options.get("tool_choice")
    tools = [] if given is None else check_tools(given)
    choice = check_choice("auto" if asked is None else asked, tools)
    check_tools_are_shown(prompt, tools)
    if tools and choice.mode != "none" and constraint is not None:
        raise SpecError(
            f"tools and a {constraint.kind} together: an answer cannot be a call and fit that",
            hint='give one of them, or tool_choice="none" for an answer without calls',
        )
    return tools, choice

"""Functions called by the embedded model, in this process and in a child."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from edgellm import api
from edgellm.errors import DeadlineError
from edgellm.runtime.model import Model
from edgellm.runtime.request import Completion

BOOK: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "book_table",
        "parameters": {
            "type": "object",
            "properties": {
                "restaurant": {"type": "string", "maxLength": 30},
                "people": {"type": "integer", "minimum": 1, "maximum": 20},
                "outside": {"type": "boolean"},
                "courses": {"type": "array", "items": {"enum": ["soup", "fish", "cake"]}, "maxItems": 3},
            },
            "required": ["restaurant", "people", "outside"],
        },
    },
}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 30},
                "unit": {"enum": ["C", "F"]},
                "days": {"type": "number", "minimum": 0, "maximum": 9},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
TOOLS = [BOOK, WEATHER]
PARAMETERS = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
ASK: list[dict[str, Any]] = [{"role": "user", "content": "What is the weather in Paris, in C?"}]
DINNER: list[dict[str, Any]] = [{"role": "user", "content": "A table for four at Chez Paul, inside, please."}]


def choose(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with api.load("builtin:smollm2", context=768, threads=1, parallel=3) as opened:
        yield opened


def check(done: Completion) -> None:
    """Nothing but calls, valid for their parameters."""
    assert (done.text, done.finish_reason) == ("", "tool_calls")
    assert done.tool_calls
    for call in done.tool_calls:
        jsonschema.validate(json.loads(call.arguments), PARAMETERS[call.name])


def arguments(done: Completion) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in done.tool_calls]


def ask(model: Model, messages: list[dict[str, Any]], choice: Any, **options: Any) -> Completion:
    options = {"max_tokens": 200, "temperature": 0, "parallel_tool_calls": False, **options}
    return model.generate(messages, tools=TOOLS, tool_choice=choice, **options)


NAMED = (ASK, choose("get_weather"))
REQUIRED = (DINNER, "required")


def test_enforced_calls_are_valid_whatever_is_asked(model: Model) -> None:
    for messages, choice, name in ((*NAMED, "get_weather"), (DINNER, choose("get_weather"), "get_weather")):
        done = ask(model, messages, choice)
        check(done)
        assert [call.name for call in done.tool_calls] == [name]
    check(ask(model, *REQUIRED))
    assert json.loads(ask(model, *NAMED).tool_calls[0].arguments)["city"] == "Paris"


def test_they_are_the_same_side_by_side_and_in_a_child(model: Model) -> None:
    alone = [ask(model, *asked) for asked in (NAMED, REQUIRED)]
    options: dict[str, Any] = {
        "tools": TOOLS,
        "max_tokens": 200,
        "temperature": 0,
        "parallel_tool_calls": False,
    }
    streams = [
        model.stream(messages, tool_choice=choice, **options) for messages, choice in (NAMED, REQUIRED)
    ]
    for stream, done in zip(streams, alone, strict=True):
        assert [(c.name, c.arguments) for piece in stream for c in piece.tool_calls] == arguments(done)
    with api.load("builtin:smollm2", context=768, threads=1, isolate=True) as far:
        for asked, done in zip((NAMED, REQUIRED), alone, strict=True):
            there = ask(far, *asked)
            check(there)
            assert arguments(there) == arguments(done)


def test_guesses_and_log_probabilities_change_no_call(model: Model) -> None:
    with_guesses = ask(model, *REQUIRED)
    shown = ask(model, *REQUIRED, speculate=False, top_logprobs=1)
    assert arguments(with_guesses) == arguments(shown)
    assert with_guesses.usage.accepted_tokens > 0 == shown.usage.drafted_tokens
    assert shown.logprobs is not None
    assert [entry.token_id for entry in shown.logprobs] == shown.token_ids


def test_a_call_that_max_tokens_cuts_is_text(model: Model) -> None:
    done = ask(model, *NAMED, max_tokens=8)
    assert (done.finish_reason, done.tool_calls) == ("length", [])
    assert done.text.startswith('{"name": "get_weather"')
    with pytest.raises(DeadlineError):
        ask(model, *NAMED, deadline_s=1e-3)


def test_where_the_model_decides_it_answers_or_calls(model: Model) -> None:
    options: dict[str, Any] = {"tools": TOOLS, "max_tokens": 48, "temperature": 0}
    decided, shown = (model.generate(DINNER, tool_choice=choice, **options) for choice in ("auto", "none"))
    assert decided.token_ids == shown.token_ids
    assert shown.text
    assert shown.tool_calls == []
    assert decided.text == shown.text or decided.tool_calls
    assert decided.usage.prompt_tokens == model.count_tokens(DINNER, tools=TOOLS)


def test_the_model_answers_with_the_result_of_a_call(model: Model) -> None:
    done = ask(model, *NAMED)
    result = {"role": "tool", "tool_call_id": done.tool_calls[0].id, "content": "sunny, 21 degrees"}
    # So small a model repeats its call unless it is asked.
    more = {"role": "user", "content": "What does that mean?"}
    answer = ask(model, [*ASK, done.as_message(), result, more], "auto", max_tokens=48)
    assert "21 degrees" in answer.text
    assert (answer.tool_calls, answer.finish_reason) == ([], "stop")

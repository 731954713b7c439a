"""Messages in OpenAI's shape: checked, and made what chat templates expect.

Templates expect text as content, and the arguments of a call as an object; OpenAI's shape has parts of text, null
beside calls, and arguments as text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgellm.errors import SpecError

MAX_MESSAGES = 10_000
MAX_PARTS = 1000
MAX_CALLS = 128
ROLES = ("system", "user", "assistant", "tool", "developer")

Message = Mapping[str, Any]


def check_messages(messages: Sequence[Message]) -> None:
    """Refuse what is not a list of {"role": ..., "content": text or parts of text}.

    An assistant's message may have `tool_calls`, with content null or missing; one of a tool, `tool_call_id`.

    Raises:
        SpecError: names the message and what is wrong with it.
    """
    if not messages:
        raise SpecError("no messages", hint='give at least one {"role": "user", "content": "..."}')
    if len(messages) > MAX_MESSAGES:
        raise SpecError(f"{len(messages)} messages, at most {MAX_MESSAGES} are allowed")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise SpecError(
                f"message {i} is {type(message).__name__}", hint='give {"role": "user", "content": "..."}'
            )
        role = message.get("role")
        if role not in ROLES:
            raise SpecError(f"message {i}: role is {str(role)[:40]!r}", hint=f"one of: {', '.join(ROLES)}")
        calls = message.get("tool_calls")
        if calls is not None:
            _check_calls(calls, role, f"message {i}")
        _check_content(message.get("content"), f"message {i}", optional=bool(calls))
        if not isinstance(message.get("tool_call_id", ""), str):
            raise SpecError(f"message {i}: tool_call_id is no text")


def _check_content(content: Any, where: str, *, optional: bool) -> None:
    if isinstance(content, str) or (content is None and optional):
        return
    if not isinstance(content, list) or not content:
        raise SpecError(f"{where}: content is {type(content).__name__}, expected text")
    if len(content) > MAX_PARTS:
        raise SpecError(f"{where}: {len(content)} parts, at most {MAX_PARTS} are allowed")
    for j, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            seen = type(part).__name__ if kind is None else repr(str(kind)[:40])
            raise SpecError(
                f"{where}: content is list, part {j} of it {seen}, expected text",
                hint='give {"type": "text", "text": "..."}; this model sees text only',
            )


def _check_calls(calls: Any, role: Any, where: str) -> None:
    if role != "assistant":
        raise SpecError(f"{where}: tool_calls of role {role!r}, expected 'assistant'")
    if not isinstance(calls, list) or len(calls) > MAX_CALLS:
        raise SpecError(f"{where}: tool_calls is no list of at most {MAX_CALLS} calls")
    for j, call in enumerate(calls):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise SpecError(
                f"{where}: call {j} names no function",
                hint='give {"id": ..., "type": "function", "function": {"name": ..., "arguments": "{...}"}}',
            )
        if not isinstance(call.get("id", ""), str):
            raise SpecError(f"{where}: id of call {j} is no text")
        _arguments(function.get("arguments", "{}"), f"{where}: call {j}")


def _arguments(arguments: Any, where: str) -> dict[str, Any]:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as err:
            raise SpecError(f"{where}: arguments are not JSON: {str(err)[:100]}") from err
    if not isinstance(arguments, dict):
        raise SpecError(f"{where}: arguments are {type(arguments).__name__}, expected an object")
    return arguments


def for_template(messages: Sequence[Message], *, arguments_as_text: bool) -> list[dict[str, Any]]:
    """Copies of checked messages: content is text, arguments are an object, or text for templates that print them."""
    found = []
    for message in messages:
        made = dict(message)
        content = message.get("content")
        made["content"] = (
            "".join(part["text"] for part in content) if isinstance(content, list) else content or ""
        )
        if message.get("tool_calls"):
            made["tool_calls"] = [_call(call, arguments_as_text) for call in message["tool_calls"]]
        else:
            made.pop("tool_calls", None)
        found.append(made)
    return found


def _call(call: Mapping[str, Any], arguments_as_text: bool) -> dict[str, Any]:
    function = dict(call["function"])
    arguments = _arguments(function.get("arguments", "{}"), "call")
    function["arguments"] = json.dumps(arguments, ensure_ascii=False) if arguments_as_text else arguments
    return {**call, "type": "function", "function": function}

"""Functions that a model may call: definitions checked, calls enforced, told to models whose template knows no tools."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from edgellm.errors import SpecError
from edgellm.formats.records import Record
from edgellm.runtime import constraint_checks as checks
from edgellm.runtime.constraints import ConstraintSpec
from edgellm.runtime.tool_formats import ToolFormat

MAX_TOOLS = 128
MAX_TOOLS_BYTES = 56 * 1024  # with what stands around them, a grammar of at most 64 KiB
MAX_PARALLEL_CALLS = 16
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_SHAPE = 'give {"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}'

Tool = Mapping[str, Any]


class ToolChoice(Record):
    """Whether calls are made.

    Attributes:
        mode: auto (the model decides), none, required (at least one), or named (exactly one, of `name`).
    """

    mode: Literal["auto", "none", "required", "named"] = "auto"
    name: str = ""


def check_tools(tools: Any) -> list[dict[str, Any]]:
    """Definitions in OpenAI's shape, copied.

    Raises:
        SpecError: names the definition and what is wrong with it.
    """
    if not isinstance(tools, Sequence) or isinstance(tools, str | bytes):
        raise SpecError(f"tools is {type(tools).__name__}, expected a list", hint=_SHAPE)
    if len(tools) > MAX_TOOLS:
        raise SpecError(f"{len(tools)} tools, at most {MAX_TOOLS} are allowed")
    checked: list[dict[str, Any]] = []
    n_bytes = 0
    for i, tool in enumerate(tools):
        function = _function(tool, f"tool {i}")
        if function["name"] in (other["function"]["name"] for other in checked):
            raise SpecError(f"tool {i}: a second function named {function['name']!r}")
        try:
            text = json.dumps(function, allow_nan=False)
            json.dumps(function, ensure_ascii=False).encode()  # half a surrogate pair is no text
        except (TypeError, ValueError, RecursionError) as err:
            raise SpecError(f"tool {i}: not JSON: {str(err)[:100]}") from err
        n_bytes += len(text)
        if n_bytes > MAX_TOOLS_BYTES:
            raise SpecError(f"tool {i}: the definitions exceed {MAX_TOOLS_BYTES} bytes together")
        checked.append({"type": "function", "function": json.loads(text)})
    return checked


def _function(tool: Any, where: str) -> dict[str, Any]:
    if not isinstance(tool, Mapping) or not isinstance(function := tool.get("function"), Mapping):
        raise SpecError(f"{where} has no function", hint=_SHAPE)
    if tool.get("type") != "function":
        raise SpecError(f"{where}: type is {str(tool.get('type'))[:40]!r}, expected 'function'", hint=_SHAPE)
    for keys, known, what in (
        (tool, {"type", "function"}, ""),
        (function, {"name", "description", "parameters", "strict"}, "function: "),
    ):
        for key in keys:
            if key not in known:
                raise SpecError(f"{where}: {what}unknown field {str(key)[:40]!r}", hint=_SHAPE)
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SpecError(f"{where}: name is {str(name)[:80]!r}, expected 1 to 64 of a-z A-Z 0-9 _ -")
    if not isinstance(function.get("description", ""), str):
        raise SpecError(f"{where}: description of {name} is no text")
    if not isinstance(function.get("strict", False), bool | None):
        raise SpecError(f"{where}: strict of {name} is neither true nor false")
    parameters = function.get("parameters", {})
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        raise SpecError(f"{where}: parameters of {name} are no schema of type object")
    checks.check_depth(parameters, f"{where}: parameters of {name}", checks.MAX_SCHEMA_DEPTH)
    return dict(function)


def check_choice(choice: Any, tools: Sequence[Tool]) -> ToolChoice:
    """OpenAI's tool_choice: "auto", "none", "required", or {"type": "function", "function": {"name": ...}}.

    Raises:
        SpecError: another value, a function that is not defined, or a call required where none is.
    """
    names = [tool["function"]["name"] for tool in tools]
    if isinstance(choice, Mapping):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        if choice.keys() != {"type", "function"} or choice["type"] != "function" or not isinstance(name, str):
            raise SpecError(
                "tool_choice names no function", hint='give {"type": "function", "function": {"name": ...}}'
            )
        if name not in names:
            raise SpecError(
                f"tool_choice: no tool is named {name[:64]!r}", hint=f"one of: {', '.join(names) or 'none'}"
            )
        return ToolChoice(mode="named", name=name)
    if choice not in ("auto", "none", "required"):
        raise SpecError(f"tool_choice is {str(choice)[:40]!r}", hint="auto, none, required, or a function")
    if choice == "required" and not names:
        raise SpecError("tool_choice is 'required', and no tools are given")
    return ToolChoice(mode=choice)


def forced_call(
    tool_format: ToolFormat,
    tools: Sequence[Tool],
    choice: ToolChoice,
    *,
    parallel: bool,
    control_tokens: Mapping[int, str] | None = None,
) -> ConstraintSpec | None:
    """A constraint under which the answer is nothing but calls; None where the model decides.

    Args:
        tools: as `check_tools` gave them.
        parallel: several calls are allowed, where the format has a way to write them.
        control_tokens: as from `tool_formats.control_tokens`.

    Raises:
        SpecError: parameters that cannot be enforced; names the function.
    """
    if choice.mode in {"auto", "none"}:
        return None
    chosen = [
        tool["function"]
        for tool in tools
        if choice.mode == "required" or tool["function"]["name"] == choice.name
    ]
    marks = {mark: f"<[{token}]>" for token, mark in (control_tokens or {}).items()}

    def literal(text: str) -> str:
        return marks.get(text) or json.dumps(text)

    more = parallel and choice.mode == "required" and bool(tool_format.separator)
    before = after = ""
    if tool_format.listed:
        start = f'{literal(tool_format.opening)} " [" call{_more(", ") if more else ""} "]"'
    else:
        start = f"call{_more(tool_format.separator) if more else ''}"
        if tool_format.closing:
            before, after = f'{literal(tool_format.opening)} "\\n"', f'"\\n" {literal(tool_format.closing)}'
    rules = [f"start: {start}"]
    rules.append("call: " + " | ".join(f"call_{i}" for i in range(len(chosen))))
    for i, function in enumerate(chosen):
        head = json.dumps(f'{{"name": "{function["name"]}", "{tool_format.arguments}": ')
        rules.append(f'call_{i}: {before} {head} arguments_{i} "}}" {after}')
        rules.append(f"arguments_{i}: %json {json.dumps(_enforced(function))}")
    return ConstraintSpec(kind="grammar", text="\n".join(rules))


def _more(separator: str) -> str:
    return f" ({json.dumps(separator)} call){{0,{MAX_PARALLEL_CALLS - 1}}}"


def _enforced(function: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of the arguments: an object, without keys that the definition does not know."""
    schema = {"type": "object", "properties": {}, **function.get("parameters", {})}
    if not schema.keys() & {"$ref", "allOf", "anyOf", "oneOf", "patternProperties"}:
        schema.setdefault("additionalProperties", False)
    check = checks.SchemaCheck()
    check.add(schema, f"parameters of {function['name']}")
    check.finish()
    return schema


def in_plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Calls and their results as messages that every template knows: the `json` format.

    A call becomes a line of the assistant's text; results that follow each other, one message of the user.
    """
    plain: list[dict[str, Any]] = []
    names: dict[str, str] = {}  # of the functions, by the ids of their calls
    last_role = ""
    for message in messages:
        role, content = message["role"], message.get("content") or ""
        if role == "assistant" and message.get("tool_calls"):
            names |= {call.get("id", ""): call["function"]["name"] for call in message["tool_calls"]}
            lines = [json.dumps(_called(call), ensure_ascii=False) for call in message["tool_calls"]]
            plain.append({"role": role, "content": "\n".join([content, *lines] if content else lines)})
        elif role == "tool":
            call_id = message.get("tool_call_id", "")
            name = message.get("name") or names.get(call_id) or call_id or "the call"
            said = f"Result of {name}:\n{content}"
            if last_role == "tool":
                plain[-1]["content"] += f"\n\n{said}"
            else:
                plain.append({"role": "user", "content": said})
        else:
            plain.append(dict(message))
        last_role = role
    return plain


def _called(call: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}

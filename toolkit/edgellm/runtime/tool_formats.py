"""How models write calls of functions: the format is found by what the model's own chat template writes.

`hermes`    <tool_call>{"name": ..., "arguments": {...}}</tool_call>, anywhere in the text (Hermes, Qwen, SmolLM3)
`mistral`   [TOOL_CALLS] [{"name": ..., "arguments": {...}}], anywhere in the text
`llama3`    {"name": ..., "parameters": {...}} as the whole answer, perhaps after <|python_tag|>
`json`      {"name": ..., "arguments": {...}} as the whole answer, one a line. For templates that know no tools, or in a
            way that is none of these: the definitions then go into a system message (`instructions`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from edgellm.formats.records import Record
from edgellm.protocols import Backend

FormatName = Literal["hermes", "mistral", "llama3", "json"]


class ToolFormat(Record):
    """One way to write calls.

    Attributes:
        opening, closing: what stands around a call; empty where nothing does. In some vocabularies a control token.
        anywhere: calls may follow other text; else the answer begins with one, or has none.
        opening_is_optional: a call may begin without it.
        arguments: the key of the arguments.
        listed: calls stand in a JSON list.
        separator: what stands between calls that are not listed; empty where only one call is possible.
        in_template: the chat template shows the definitions to the model; else a system message must.
    """

    name: FormatName
    opening: str = ""
    closing: str = ""
    anywhere: bool = False
    opening_is_optional: bool = False
    arguments: str = "arguments"
    listed: bool = False
    separator: str = "\n"
    in_template: bool = True


HERMES = ToolFormat(name="hermes", opening="<tool_call>", closing="</tool_call>", anywhere=True)
MISTRAL = ToolFormat(name="mistral", opening="[TOOL_CALLS]", anywhere=True, listed=True)
LLAMA3 = ToolFormat(
    name="llama3", opening="<|python_tag|>", opening_is_optional=True, arguments="parameters", separator=""
)
JSON = ToolFormat(name="json", opening_is_optional=True, in_template=False)
FORMATS: Mapping[str, ToolFormat] = {f.name: f for f in (HERMES, MISTRAL, LLAMA3, JSON)}

_TOOLS = re.compile(r"\btools\b")
_PARAMETERS = re.compile(r"""["']\s*parameters\s*["']\s*:|\\"parameters\\"\s*:""")


def of_template(template: str | None) -> ToolFormat:
    """The format that a chat template writes; `json` where there is no evidence for another."""
    if template is None or not _TOOLS.search(template):
        return JSON
    if "<tool_call>" in template and "<function=" not in template:  # that one would be XML
        return HERMES
    if "[TOOL_CALLS]" in template and "[ARGS]" not in template:
        return MISTRAL
    if "<|python_tag|>" in template or (
        "<|start_header_id|>" in template and "function call" in template and _PARAMETERS.search(template)
    ):
        return LLAMA3
    return JSON


def control_tokens(tool_format: ToolFormat, backend: Backend) -> dict[int, str]:
    """Of the marks around calls, those that are control tokens of this model: token -> mark.

    Such a token has no bytes: the text for a `ToolCallParser` must have the mark where the token was drawn.
    """
    found = {}
    for mark in filter(None, (tool_format.opening, tool_format.closing)):
        ids = backend.tokenize(mark, add_special=False, parse_special=True)
        if len(ids) == 1 and not backend.token_bytes(ids[0]):
            found[ids[0]] = mark
    return found


_WORDING = """You can call functions. To call one, answer with nothing but a JSON object on one line: \
{"name": "<its name>", "arguments": {<its arguments>}}
To call several, write one such line for each. The results come with the next message. \
If no function helps, answer in words.

The functions:"""


def instructions(tools: Sequence[Mapping[str, Any]]) -> str:
    """The system message of the `json` format: the wording above, then the definition of a function a line."""
    return "\n".join([_WORDING, *(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)])

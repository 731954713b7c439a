"""Chat templates: Jinja from the model, rendered in an immutable sandbox with bounded work and output.

A template is foreign code. It sees the messages and a few helpers, no attributes that start with an underscore, no
file and no network; what it raises becomes one line.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from edgellm.errors import BadInputError
from edgellm.runtime import tool_formats
from edgellm.runtime import tools as tool_messages
from edgellm.runtime.messages import MAX_MESSAGES, Message, check_messages, for_template

__all__ = ["MAX_MESSAGES", "Message", "check_messages", "check_template", "render"]

MAX_TEMPLATE_CHARS = 1 << 20
MAX_RENDERED_CHARS = 1 << 24


def render(
    template: str,
    messages: Sequence[Message],
    *,
    bos_token: str,
    eos_token: str,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The prompt that the model's template makes of the messages.

    Args:
        tools: definitions of functions, as `tools.check_tools` gave them. Where the template does not show them to the
            model, they go into the system message, with the wording of `tool_formats.instructions`.

    Raises:
        SpecError: messages that are no messages.  BadInputError: the template is broken, refuses, or explodes.
    """
    check_messages(messages)
    compiled = _compile(template)
    shown, definitions = _prepared(template, messages, tools)
    from jinja2 import TemplateError

    from edgellm.runtime import sandbox

    pieces, n_chars = [], 0
    try:
        with sandbox.budget():
            for piece in compiled.generate(
                messages=shown,
                bos_token=bos_token,
                eos_token=eos_token,
                add_generation_prompt=add_generation_prompt,
                tools=definitions,
            ):
                pieces.append(piece)
                n_chars += len(piece)
                if n_chars > MAX_RENDERED_CHARS:
                    raise TemplateError(f"it writes more than {MAX_RENDERED_CHARS} characters")
    except TemplateError as err:
        raise BadInputError(
            f"the model's chat template fails: {_first_line(err)}", hint="use --raw to send the text as it is"
        ) from err
    except Exception as err:  # foreign code can raise anything
        raise BadInputError(
            f"the model's chat template fails: {type(err).__name__}: {_first_line(err)}"
        ) from err
    return "".join(pieces)


def check_template(template: str) -> None:
    """Refuse a template that cannot be used, without rendering it.

    Raises:
        BadInputError: it does not parse, or is too long.
    """
    _compile(template)


def _prepared(
    template: str, messages: Sequence[Message], definitions: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], list[Mapping[str, Any]] | None]:
    """Messages and tools as the template is given them."""
    # A template that writes an object as JSON has tojson for it; without that it prints what it is given.
    shown = for_template(messages, arguments_as_text="tojson" not in template)
    if tool_formats.of_template(template).in_template:
        return shown, list(definitions) or None
    if definitions or any(m["role"] == "tool" or "tool_calls" in m for m in shown):
        shown = for_template(messages, arguments_as_text=False)
        shown = tool_messages.in_plain_messages(shown)
    if definitions:
        text = tool_formats.instructions(definitions)
        if shown[0]["role"] in ("system", "developer"):
            shown[0]["content"] = f"{shown[0]['content']}\n\n{text}".strip()
        else:
            shown.insert(0, {"role": "system", "content": text})
    return shown, None


@functools.lru_cache(maxsize=8)
def _compile(template: str) -> Any:
    if len(template) > MAX_TEMPLATE_CHARS:
        raise BadInputError(
            f"the chat template has {len(template)} characters, at most {MAX_TEMPLATE_CHARS} are read"
        )
    from jinja2 import TemplateError

    from edgellm.runtime.sandbox import TemplateEnvironment

    try:
        return TemplateEnvironment().from_string(template)
    except (
        TemplateError,
        RecursionError,
        SyntaxError,
        MemoryError,
    ) as err:  # the last three: nested too deep
        raise BadInputError(f"the model's chat template does not parse: {_first_line(err)}") from err


def _first_line(err: BaseException) -> str:
    return (str(err).splitlines() or [type(err).__name__])[0][:300]

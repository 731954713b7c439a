"""Chat templates: Jinja from the model, rendered in an immutable sandbox with bounded work and output.

A template is foreign code. It sees the messages and a few helpers, no attributes that start with an underscore, no
file and no network; what it raises becomes one line.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from edgellm.errors import BadInputError, SpecError

MAX_TEMPLATE_CHARS = 1 << 20
MAX_RENDERED_CHARS = 1 << 24
MAX_MESSAGES = 10_000
ROLES = ("system", "user", "assistant", "tool", "developer")

Message = Mapping[str, Any]


def render(
    template: str,
    messages: Sequence[Message],
    *,
    bos_token: str,
    eos_token: str,
    add_generation_prompt: bool = True,
) -> str:
    """The prompt that the model's template makes of the messages.

    Raises:
        SpecError: messages that are no messages.  BadInputError: the template is broken, refuses, or explodes.
    """
    check_messages(messages)
    compiled = _compile(template)
    from jinja2 import TemplateError

    from edgellm.runtime import sandbox

    pieces, n_chars = [], 0
    try:
        with sandbox.budget():
            for piece in compiled.generate(
                messages=[dict(m) for m in messages],
                bos_token=bos_token,
                eos_token=eos_token,
                add_generation_prompt=add_generation_prompt,
                tools=None,
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


def check_messages(messages: Sequence[Message]) -> None:
    """Refuse what is not a list of {"role": ..., "content": text}.

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
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise SpecError(f"message {i}: role is {str(role)[:40]!r}", hint=f"one of: {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise SpecError(f"message {i}: content is {type(content).__name__}, expected text")


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

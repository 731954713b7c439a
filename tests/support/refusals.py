"""What a parser answers to input that may be good or bad."""

from __future__ import annotations

from collections.abc import Callable

from edgellm.errors import BadInputError


def refusal(action: Callable[[], object]) -> str | None:
    """The one line with which the input was refused; None where it was read. Any other error is passed on."""
    try:
        action()
    except BadInputError as err:
        message = str(err)
    else:
        return None
    if "\n" in message or not message:
        raise AssertionError(f"not one line: {message!r}")
    return message

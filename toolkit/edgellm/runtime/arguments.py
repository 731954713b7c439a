"""What a Python program gives for a generation, checked by kind before any engine is asked.

What passes here can be written as a message to an engine in another process: a model that is isolated and one that is
not refuse the same, with the same words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import msgspec

MAX_PROMPT_BYTES = 64 * 1024**2
_SHOWN_CHARS = 80
_encode = msgspec.msgpack.Encoder().encode


def checked_options(options: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the kinds they should have; a whole number is taken as a float, and numbers of numpy as Python's.

    Args:
        kinds: name -> type, as annotated.

    Raises:
        TypeError: an unknown option, or one of another kind.  ValueError: a number beyond all bounds, or text that is no
            Unicode.
    """
    unknown = sorted(set(options) - set(kinds))
    if unknown:
        raise TypeError(f"unknown option {unknown[0]!r}")
    return {name: _checked(name, value, kinds[name]) for name, value in options.items()}


def checked_prompt(prompt: Any) -> str | list[Any]:
    """A prompt that is text, messages or token ids as far as can be seen without the model.

    Raises:
        TypeError: it is something else.  ValueError: it is too long, or holds what is no Unicode.
    """
    if isinstance(prompt, str):
        return checked_text("prompt", prompt)
    if isinstance(prompt, bytes | bytearray | Mapping) or not isinstance(prompt, Sequence):
        raise TypeError(
            f"prompt is {_shown(prompt)}: expected text, a list of messages, or a list of token ids"
        )
    found = [_plain(item) for item in prompt]
    kinds = {type(item) for item in found}
    if int in kinds and kinds != {int}:
        other = next(item for item in found if type(item) is not int)
        raise TypeError(f"prompt is a list of token ids with {_shown(other)} among them")
    _check_bytes("prompt", _written("prompt", found))
    return found


def checked_text(name: str, text: Any) -> str:
    """Text that can be encoded, of bounded length.

    Raises:
        TypeError: no text.  ValueError: it holds a lone surrogate, or is too long.
    """
    if not isinstance(text, str):
        raise TypeError(f"{name} is {_shown(text)}: expected text")
    _check_bytes(name, _written(name, text))
    return text


def _checked(name: str, value: Any, kind: Any) -> Any:
    if get_origin(kind) is Literal and value not in get_args(kind):
        raise ValueError(f"{name} is {_shown(value)}, expected one of {', '.join(map(str, get_args(kind)))}")
    try:
        found = msgspec.convert(_plain(value), kind)
    except msgspec.ValidationError as err:
        said = str(err).replace("null", "None")
        raise TypeError(f"{name} is {_shown(value)}: {said[:1].lower()}{said[1:]}") from err
    except (OverflowError, RecursionError) as err:
        raise ValueError(f"{name} is {_shown(value)}: {err}") from err
    _check_bytes(name, _written(name, found))
    return found


def _plain(value: Any) -> Any:
    """Numbers of numpy as Python's."""
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return value.item()
    return value


def _written(name: str, value: Any) -> bytes:
    try:
        return _encode(value)
    except UnicodeEncodeError as err:
        raise ValueError(
            f"{name} holds a lone surrogate at character {err.start} of {_shown(err.object)}"
        ) from None
    except OverflowError as err:
        raise ValueError(f"{name} holds a number that is too large: {_shown(value)}") from err
    except (TypeError, RecursionError) as err:
        raise TypeError(f"{name} is {_shown(value)}, which is no plain data: {err}") from err


def _check_bytes(name: str, data: bytes) -> None:
    if len(data) > MAX_PROMPT_BYTES:
        raise ValueError(f"{name} has {len(data)} bytes, at most {MAX_PROMPT_BYTES} are taken")


def _shown(value: Any) -> str:
    """A value in an error: short, and on one line."""
    if isinstance(value, str) and len(value) > _SHOWN_CHARS:
        return f"{value[:_SHOWN_CHARS]!a}..."
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    try:
        said = ascii(value)
    except RecursionError:
        return f"{type(value).__name__}, nested too deep"
    return said if len(said) <= _SHOWN_CHARS else f"{type(value).__name__} {said[:_SHOWN_CHARS]}..."

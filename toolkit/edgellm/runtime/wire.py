"""What the public class and an engine in another process say to each other, as msgpack."""

from __future__ import annotations

from typing import Any

import msgspec

from edgellm.errors import EdgeLLMError, error_named
from edgellm.formats.records import Record
from edgellm.report import RuntimeInfo
from edgellm.runtime.request import Piece, Request


class Submit(Record, tag=True):
    """Begin a generation."""

    number: int
    request: Request


class Cancel(Record, tag=True):
    """Stop a generation."""

    number: int


class Taken(Record, tag=True):
    """So many pieces of a generation were read."""

    number: int
    n_pieces: int


class Ask(Record, tag=True):
    """Call a method of the engine with these arguments."""

    number: int
    method: str
    arguments: list[Any]


class SaveCache(Record, tag=True):
    """Save the prefix cache, or the part of it that a request would use."""

    number: int
    path: str
    request: Request | None


class Ready(Record, tag=True):
    """The model is loaded."""

    context: int
    chat_template: str | None
    info: RuntimeInfo


class Gave(Record, tag=True):
    """A part of a generation."""

    number: int
    piece: Piece


class Answered(Record, tag=True):
    """What a method gave."""

    number: int
    value: Any


class Failed(Record, tag=True):
    """A generation or a method ended with an error."""

    number: int
    kind: str
    message: str
    hint: str | None


class Alive(Record, tag=True):
    """Work goes on."""


ToEngine = Submit | Cancel | Taken | Ask | SaveCache
FromEngine = Ready | Gave | Answered | Failed | Alive

encode = msgspec.msgpack.Encoder().encode
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)

_PYTHON_ERRORS: dict[str, type[Exception]] = {
    "ValueError": ValueError,
    "TypeError": TypeError,
    "RuntimeError": RuntimeError,
}


def decode_to_engine(data: bytes) -> ToEngine:
    """A message; ValueError where it is none."""
    try:
        return _to_engine.decode(data)
    except msgspec.MsgspecError as err:
        raise ValueError(str(err)) from err


def decode_from_engine(data: bytes) -> FromEngine:
    """A message; ValueError where it is none."""
    try:
        return _from_engine.decode(data)
    except msgspec.MsgspecError as err:
        raise ValueError(str(err)) from err


def failed(number: int, err: BaseException) -> Failed:
    """An error as a message."""
    if isinstance(err, EdgeLLMError):
        return Failed(number=number, kind=type(err).__name__, message=err.message, hint=err.hint)
    return Failed(number=number, kind=type(err).__name__, message=str(err)[:1000], hint=None)


def error_of(message: Failed) -> Exception:
    """The error that a message tells of, as the class it was."""
    if message.kind in _PYTHON_ERRORS:
        return _PYTHON_ERRORS[message.kind](message.message)
    found = error_named(message.kind)
    if found is None:
        return EdgeLLMError(f"{message.kind}: {message.message}")
    return found(message.message, hint=message.hint)

"""What the public class and an engine in another process say to each other, as msgpack.

The engine's side runs native code on a foreign file. What it says is bounded here before anything is made of it.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from edgellm.errors import EdgeLLMError, error_named, said_elsewhere
from edgellm.formats.records import Record
from edgellm.report import RuntimeInfo
from edgellm.runtime.embedding import Embedded
from edgellm.runtime.messages import MAX_CALLS
from edgellm.runtime.request import MAX_TOP_LOGPROBS, Piece, Request
from edgellm.runtime.tool_parser import MAX_NAME_CHARS


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


MAX_ANSWER_BYTES = 16 * 1024**2
MAX_PIECE_TOKENS = 1 << 12
MAX_PIECE_CHARS = 1 << 20
MAX_TOKEN = 1 << 31
MAX_CALL_ID_CHARS = 64
_MAX_CONTEXT = 1 << 31

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
    """A message; ValueError where it is none, or holds what no engine of ours says."""
    try:
        message = _from_engine.decode(data)
    except (msgspec.MsgspecError, RecursionError) as err:
        raise ValueError(str(err)) from err
    if isinstance(message, Gave):
        _check_piece(message.piece)
    elif isinstance(message, Ready) and not 1 <= message.context <= _MAX_CONTEXT:
        raise ValueError(f"a context of {message.context} tokens")
    return message


def encode_answer(message: FromEngine) -> bytes:
    """A message of the engine, or that it would be too long."""
    data = encode(message)
    if len(data) > MAX_ANSWER_BYTES and isinstance(message, Answered):
        return encode(
            failed(message.number, ValueError(f"an answer of {len(data)} bytes, at most {MAX_ANSWER_BYTES}"))
        )
    return data


def token_ids(value: object) -> list[int]:
    """What an engine gave as token ids; ValueError where they are none."""
    if not isinstance(value, list) or not all(
        type(token) is int and 0 <= token < MAX_TOKEN for token in value
    ):
        raise ValueError("no list of token ids")
    return value


def numbers(value: object, n: int) -> list[int]:
    """What an engine gave as n counts; ValueError where they are none."""
    if (
        not isinstance(value, list)
        or len(value) != n
        or not all(type(count) is int and count >= 0 for count in value)
    ):
        raise ValueError(f"no {n} counts")
    return value


def embedded(value: object) -> Embedded:
    """What an engine gave as an embedding; ValueError where it is none."""
    try:
        return msgspec.convert(value, Embedded)
    except (msgspec.ValidationError, RecursionError) as err:
        raise ValueError(f"no embedding: {err}") from err


def _check_piece(piece: Piece) -> None:
    if len(piece.text) > MAX_PIECE_CHARS or len(piece.token_ids) > MAX_PIECE_TOKENS:
        raise ValueError(f"a piece of {len(piece.text)} characters and {len(piece.token_ids)} tokens")
    token_ids(piece.token_ids)
    if (piece.finish_reason is None) != (piece.usage is None):
        raise ValueError("a piece with an end and no usage, or the other way round")
    if piece.usage is not None:
        for name, value in msgspec.structs.asdict(piece.usage).items():
            if isinstance(value, int | float) and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"a usage whose {name} is {value}")
    calls = piece.tool_calls
    if (
        len(calls) > MAX_CALLS
        or any(len(call.id) > MAX_CALL_ID_CHARS or len(call.name) > MAX_NAME_CHARS for call in calls)
        or sum(len(call.arguments) for call in calls) > MAX_PIECE_CHARS
    ):
        raise ValueError(f"a piece with {len(calls)} calls of functions, or with very long ones")
    logprobs = piece.logprobs or []
    if len(logprobs) > MAX_PIECE_TOKENS or any(len(entry.top) > MAX_TOP_LOGPROBS for entry in logprobs):
        raise ValueError("more log-probabilities than were asked for")


def failed(number: int, err: BaseException) -> Failed:
    """An error as a message."""
    if isinstance(err, EdgeLLMError):
        return Failed(number=number, kind=type(err).__name__, message=err.message, hint=err.hint)
    return Failed(number=number, kind=type(err).__name__, message=str(err)[:1000], hint=None)


def error_of(message: Failed) -> Exception:
    """The error that a message tells of, as the class it was; one line of bounded length."""
    said = said_elsewhere(message.message)
    hint = None if message.hint is None else said_elsewhere(message.hint)
    if message.kind in _PYTHON_ERRORS:
        return _PYTHON_ERRORS[message.kind](said)
    found = error_named(message.kind)
    if found is None:
        return EdgeLLMError(f"{said_elsewhere(message.kind[:100])}: {said}")
    return found(said, hint=hint)

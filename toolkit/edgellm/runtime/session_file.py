"""Conversations as JSON files: messages and options, readable for their user alone.

What is in such a file is checked like any input. It does not say whose conversation it is: that is for the caller to
say, since caches are kept apart by owner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgellm import staging
from edgellm.errors import BadInputError, MissingInputError, OutputExistsError, SpecError
from edgellm.formats.records import Record, from_json, read_bounded, to_builtins, to_json
from edgellm.runtime.cache_file import CacheSummary, open_private
from edgellm.runtime.messages import MAX_MESSAGES, check_messages

SCHEMA = "edgellm.session/1"
MAX_SESSION_BYTES = 32 * 1024**2
CACHE_SUFFIX = ".cache"


class SessionMessage(Record, omit_defaults=True):
    """A message in OpenAI's shape."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class SessionFile(Record):
    """A conversation on disk.

    Attributes:
        model: the name of the model that answered.
        options: of every turn, as given to `Model.session`; without the owner.
        cut_messages: numbers of answers that were stopped before their end.
    """

    schema: str
    model: str
    messages: list[SessionMessage]
    options: dict[str, Any] = {}
    cut_messages: list[int] = []

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(f"schema is {self.schema!r}, expected {SCHEMA!r}")
        if len(self.messages) > MAX_MESSAGES:
            raise ValueError(f"{len(self.messages)} messages, at most {MAX_MESSAGES} are read")
        for number in self.cut_messages:
            if not 0 <= number < len(self.messages) or self.messages[number].role != "assistant":
                raise ValueError(f"cut_messages has {number}, which is no answer")


class SessionSummary(Record):
    """What was saved or resumed.

    Attributes:
        n_messages: of the conversation.
        model: the name of the model that answered.
        cache: what of the KV cache was saved or restored with it; None where that is computed anew.
        recomputed_because: why it is; None where it is not.
    """

    n_messages: int
    model: str
    cache: CacheSummary | None = None
    recomputed_because: str | None = None


def cache_path(path: Path) -> Path:
    """Where the KV cache of a session lies: beside it."""
    return path.with_name(path.name + CACHE_SUFFIX)


def as_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a message that has nothing but what a session keeps.

    Raises:
        SpecError: it is no message, or has a field that is unknown.
    """
    check_messages([message])
    try:
        return dict(to_builtins(msgspec.convert(dict(message), SessionMessage)))
    except (msgspec.ValidationError, RecursionError) as err:
        raise SpecError(f"a message that no session keeps: {str(err)[:200]}") from err


def write(
    path: Path,
    model: str,
    messages: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
    cut: Sequence[int],
) -> None:
    """Write a session; the file appears whole or not at all.

    Raises:
        SpecError: it is longer than what is read, or an option cannot be written.
        OutputExistsError: the name is that of another kind of file.  OutputError: it cannot be written.
    """
    check_replaceable(path)
    record = SessionFile(
        schema=SCHEMA, model=model, messages=[msgspec.convert(m, SessionMessage) for m in messages],
        options=dict(options), cut_messages=list(cut),
    )  # fmt: skip
    try:
        data = to_json(record)
    except (TypeError, ValueError) as err:
        raise SpecError(f"{path}: the session cannot be saved: {str(err)[:200]}") from err
    if len(data) > MAX_SESSION_BYTES:
        raise SpecError(
            f"{path}: the session has {len(data)} bytes, at most {MAX_SESSION_BYTES} are read again",
            hint="begin a new one",
        )
    with staging.staged_file(path, place="path") as staged, open_private(staged) as file:
        file.write(data)


def check_replaceable(path: Path) -> None:
    """Refuse to replace what is no session.

    Raises:
        OutputExistsError: it is something else.
    """
    try:
        if read_bounded(path, MAX_SESSION_BYTES):
            read(path)
    except MissingInputError:
        return
    except BadInputError as err:
        raise OutputExistsError(
            f"{path}: exists and is no session of edgellm, so it is not replaced", hint="choose another path"
        ) from err


def read(path: Path) -> SessionFile:
    """Read a session.

    Raises:
        MissingInputError: there is no such file.  BadInputError: it is no session.
    """
    found = from_json(SessionFile, read_bounded(path, MAX_SESSION_BYTES), str(path))
    if found.messages:
        try:
            check_messages([to_builtins(message) for message in found.messages])
        except SpecError as err:
            raise BadInputError(f"{path}: {err.message}", hint=err.hint) from err
    return found

"""What a model writes, as it comes: text to show, and calls of functions.

A call is handed out whole, when its JSON has closed: before that nobody can know that it is one. Text that may be the
beginning of a call is held back. However the text is cut into pieces, the same text and the same calls come out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any, Literal, NoReturn

from edgellm.formats.records import Record
from edgellm.runtime.tool_formats import ToolFormat

MAX_NAME_CHARS = 64
_SPACE = " \t\r\n"
_BETWEEN_BARE = _SPACE + ";,"


class ToolCall(Record):
    """One call.

    Attributes:
        index: its place among the calls of the answer, from 0.
        id: new for each call.
        arguments: a JSON object as text.
    """

    index: int
    id: str
    name: str
    arguments: str

    def as_message(self) -> dict[str, Any]:
        """The call as it stands in an assistant's message, in OpenAI's shape."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


def new_id(tool_format: ToolFormat) -> str:
    """A random id; Mistral's templates insist on nine letters or digits."""
    import secrets  # here, because most programs call no functions
    import string

    if tool_format.name == "mistral":
        return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
    return f"call_{secrets.token_hex(12)}"


class ToolCallParser:
    """Takes an answer apart while it streams.

    Args:
        names: of the functions. Where nothing marks a call, only JSON that names one of these is a call.
        max_calls: what comes after so many is dropped; None for no limit.
        make_id: makes the id of the next call.
    """

    def __init__(
        self,
        tool_format: ToolFormat,
        names: Collection[str],
        *,
        max_calls: int | None = None,
        make_id: Callable[[], str] | None = None,
    ) -> None:
        self._format = tool_format
        self._names = frozenset(names)
        self._max_calls = max_calls
        self._make_id = make_id or (lambda: new_id(tool_format))
        self._held = ""  # not decided yet
        self._raw = ""  # what was taken from it for a call that is not complete
        self._scan = _JsonEnd()
        self._state: Literal["text", "start", "body", "after", "gap", "plain", "full"] = (
            "text" if tool_format.anywhere else "start"
        )
        self._text: list[str] = []
        self._calls: list[ToolCall] = []
        self.n_calls = 0

    @property
    def is_full(self) -> bool:
        """Whether there are as many calls as there may be."""
        return self._state == "full"

    def push(self, piece: str) -> tuple[str, list[ToolCall]]:
        """Text that can be shown now, and calls that are complete now."""
        self._held += piece
        while self._held and getattr(self, f"_in_{self._state}")():
            pass
        return self._take()

    def finish(self) -> tuple[str, list[ToolCall]]:
        """The rest, when the answer is over; a call that was cut off is text, a cut closing mark is dropped."""
        if self._state not in {"after", "gap", "full"}:
            self._text.append(self._raw + self._held)
        self._raw = self._held = ""
        return self._take()

    def _take(self) -> tuple[str, list[ToolCall]]:
        taken = "".join(self._text), self._calls
        self._text, self._calls = [], []
        return taken

    # Each of these takes something from the held text and returns True, or needs more of it and returns False.

    def _in_full(self) -> bool:
        self._held = ""
        return False

    def _in_plain(self) -> bool:
        self._text.append(self._held)
        self._held = ""
        return False

    def _in_text(self) -> bool:
        opening = self._format.opening
        at = self._held.find(opening)
        if at >= 0:
            before = self._held[:at].rstrip(_SPACE)
            self._text.append(before)
            self._raw = self._held[len(before) : at + len(opening)]
            self._held = self._held[at + len(opening) :]
            self._begin_body()
            return True
        safe = self._held[: len(self._held) - _overlap(self._held, opening)].rstrip(_SPACE)
        self._text.append(safe)
        self._held = self._held[len(safe) :]
        return False

    def _in_start(self) -> bool:
        self._raw += self._skip(_SPACE)
        opening = self._format.opening
        if opening and self._held.startswith(opening):
            self._raw += opening
            self._held = self._held[len(opening) :]
            self._begin_body()
        elif self._held.startswith("{"):
            self._begin_body()
        elif not self._held or opening.startswith(self._held):
            return False
        else:
            self._not_a_call()
        return True

    def _begin_body(self) -> None:
        self._state = "body"
        self._scan = _JsonEnd()

    def _in_body(self) -> bool:
        if not self._scan.n_seen:
            self._raw += self._skip(_SPACE)
            if not self._held:
                return False
            if self._held[0] not in ("{[" if self._format.listed else "{"):
                self._not_a_call()
                return True
        end = self._scan.find(self._held)
        if end is None:
            return False
        body, self._held = self._held[:end], self._held[end:]
        calls = self._calls_in(body)
        if not calls:
            self._raw += body
            self._not_a_call()
            return True
        left = None if self._max_calls is None else self._max_calls - self.n_calls
        for name, arguments in calls[:left]:
            self._calls.append(
                ToolCall(index=self.n_calls, id=self._make_id(), name=name, arguments=arguments)
            )
            self.n_calls += 1
        self._raw = ""
        self._state = "after" if self._format.closing else "gap"
        if self.n_calls == self._max_calls:
            self._state = "full"
        return True

    def _in_after(self) -> bool:
        self._skip(_SPACE)
        closing = self._format.closing
        if self._held.startswith(closing):
            self._held = self._held[len(closing) :]
        elif closing.startswith(self._held):
            return False
        self._state = "gap"
        return True

    def _in_gap(self) -> bool:
        self._skip(_SPACE if self._format.anywhere else _BETWEEN_BARE)
        if not self._held:
            return False
        self._state = "text" if self._format.anywhere else "start"
        return True

    def _not_a_call(self) -> None:
        self._text.append(self._raw)
        self._raw = ""
        self._state = "text" if self._format.anywhere else "plain"

    def _skip(self, characters: str) -> str:
        rest = self._held.lstrip(characters)
        skipped = self._held[: len(self._held) - len(rest)]
        self._held = rest
        return skipped

    def _calls_in(self, body: str) -> list[tuple[str, str]]:
        value = _parsed(body)
        found = []
        for item in value if isinstance(value, list) else [value]:
            call = self._call(item)
            if call is None:
                return []
            found.append(call)
        return found

    def _call(self, value: Any) -> tuple[str, str] | None:
        if not isinstance(value, dict) or not isinstance(name := value.get("name"), str) or not name:
            return None
        if len(name) > MAX_NAME_CHARS:  # no function has such a name
            return None
        if not name.isprintable():  # half a character is not either
            return None
        if self._format.opening_is_optional and name not in self._names:
            return None
        keys = (self._format.arguments, "arguments", "parameters")
        arguments: Any = next((value[key] for key in keys if key in value), {})
        if isinstance(arguments, str):  # some models write the object as a text
            arguments = _parsed(arguments)
        if not isinstance(arguments, dict):
            return None
        text = json.dumps(arguments, ensure_ascii=False)
        # Half a character, written as an escape, becomes U+FFFD: it is no text, and nothing could be done with it.
        return name, text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class _JsonEnd:
    """Finds where an object or list ends, looking at each character once."""

    def __init__(self) -> None:
        self.n_seen = 0
        self._depth = 0
        self._in_string = self._escaped = False

    def find(self, text: str) -> int | None:
        """The index after the end; None if the text, which grows from call to call, does not have it yet."""
        for i in range(self.n_seen, len(text)):
            character = text[i]
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if not self._depth:
                    return i + 1
        self.n_seen = len(text)
        return None


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of the text that begins the mark."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)


def _parsed(text: str) -> Any:
    """JSON, with line breaks in strings as models write them; None for what is none."""
    try:
        return json.loads(text, strict=False, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)

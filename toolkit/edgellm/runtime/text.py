"""From token bytes to text: UTF-8 is never split, stop strings are never shown, calls of functions are taken out."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from edgellm.runtime.tool_parser import ToolCall, ToolCallParser

MAX_STOPS = 64
MAX_STOP_CHARS = 1024


class TextAssembler:
    """Collects token bytes and gives out text that is safe to show.

    Held back are bytes of an unfinished character, and text that may be the beginning of a stop string or of a call.

    Args:
        stops: looked for in the text, not in calls.
        parser: takes the calls out; None where all is text.
    """

    def __init__(self, stops: Sequence[str], parser: ToolCallParser | None = None) -> None:
        if isinstance(stops, str):
            raise TypeError("stop is one string, expected a list of strings")
        if len(stops) > MAX_STOPS or any(not s or len(s) > MAX_STOP_CHARS for s in stops):
            lengths = f"{min(map(len, stops))} to {max(map(len, stops))}"
            raise ValueError(
                f"stop has {len(stops)} strings of {lengths} characters, expected at most {MAX_STOPS} of 1 to {MAX_STOP_CHARS}"
            )
        self._stops = tuple(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._parser = parser
        self._calls: list[ToolCall] = []
        self._held = ""
        self.stopped = False

    @property
    def n_calls(self) -> int:
        """Calls that are complete."""
        return self._parser.n_calls if self._parser else 0

    @property
    def is_over(self) -> bool:
        """Whether nothing more is taken: a stop string appeared, or there are as many calls as there may be."""
        return self.stopped or (self._parser is not None and self._parser.is_full)

    def take_calls(self) -> list[ToolCall]:
        """The calls that became complete since this was asked last."""
        taken, self._calls = self._calls, []
        return taken

    def push(self, piece: bytes) -> str:
        """Text that can be shown now; sets `stopped` when a stop string has appeared."""
        self._add(self._decoder.decode(piece))
        return self._release()

    def finish(self) -> str:
        """What is still held back, when the generation is over; an unfinished character becomes U+FFFD."""
        if self.stopped:
            return ""
        self._add(self._decoder.decode(b"", final=True))
        if self._parser:
            self._held += self._parser.finish()[0]
        text = self._release()
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _add(self, text: str) -> None:
        if self._parser:
            text, calls = self._parser.push(text)
            self._calls += calls
        self._held += text

    def _release(self) -> str:
        if self.stopped:
            return ""
        if self._stops:
            found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
            if found:  # the first to be complete, as if characters came one by one; the longest of those
                text = self._held[: min(found)[1]]
                self.stopped, self._held = True, ""
                return text
        keep = self._possible_stop()
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def _possible_stop(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        return longest

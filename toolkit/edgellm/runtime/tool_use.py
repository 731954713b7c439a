"""Calls of functions in the answers of one model: what enforces them, and what finds them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

from edgellm.protocols import Backend
from edgellm.runtime import tool_formats
from edgellm.runtime.constraints import ConstraintSpec
from edgellm.runtime.messages import MAX_CALLS
from edgellm.runtime.request import Request
from edgellm.runtime.tool_formats import ToolFormat
from edgellm.runtime.tool_parser import ToolCallParser
from edgellm.runtime.tools import forced_call


class CallReader(NamedTuple):
    """Finds the calls of one answer.

    Attributes:
        marks: control token -> the bytes that the parser must see for it.
    """

    parser: ToolCallParser
    marks: Mapping[int, bytes]


class ToolUse:
    """How one model calls functions; thread-safe."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @functools.cached_property
    def _format(self) -> ToolFormat:
        return tool_formats.of_template(self._backend.chat_template)

    @functools.cached_property
    def _marks(self) -> Mapping[int, str]:
        return tool_formats.control_tokens(self._format, self._backend)

    def enforced(self, request: Request) -> ConstraintSpec | None:
        """What the answer must fit so that it is nothing but calls; None where the model decides.

        Raises:
            SpecError: parameters that cannot be enforced; names the function.
        """
        if not request.tools or request.tool_choice.mode in {"auto", "none"}:
            return None
        return forced_call(
            self._format,
            request.tools,
            request.tool_choice,
            parallel=request.parallel_tool_calls,
            control_tokens=self._marks,
        )

    def reader(self, request: Request) -> CallReader | None:
        """What finds the calls; None where there are none to be found."""
        if not request.tools or request.tool_choice.mode == "none":
            return None
        names = [tool["function"]["name"] for tool in request.tools]
        parser = ToolCallParser(
            self._format, names, max_calls=MAX_CALLS if request.parallel_tool_calls else 1
        )
        return CallReader(parser, {token: mark.encode() for token, mark in self._marks.items()})

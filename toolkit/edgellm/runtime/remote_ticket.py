"""The consumer's end of a generation whose engine is in another process."""

from __future__ import annotations

import threading
from collections.abc import Callable

from edgellm.process.channel import Channel
from edgellm.runtime import wire
from edgellm.runtime.request import Piece
from edgellm.runtime.ticket import MAX_UNREAD, Ticket

_ACKNOWLEDGE_EVERY = 512
# An engine of ours stops at MAX_UNREAD and what is in flight.
_MAX_UNREAD = 4 * MAX_UNREAD
_MAX_UNREAD_BYTES = 256 * 1024**2
_PIECE_BYTES, _CALL_BYTES = 500, 300  # of the objects themselves


class RemoteTicket(Ticket):
    """A ticket whose engine is in the other process; it tells what was read, so that the engine can wait."""

    def __init__(self, channel: Channel, number: int, forget: Callable[[int], None]) -> None:
        super().__init__(on_cancel=self._tell, on_taken=lambda: None)
        self._channel, self._number, self._forget = channel, number, forget
        self._n_taken = 0
        self._unread_bytes = 0
        self._counting = threading.Lock()

    @property
    def is_flooded(self) -> bool:
        """Whether more lies here than an engine of ours would have sent."""
        return self.n_unread > _MAX_UNREAD or self._unread_bytes > _MAX_UNREAD_BYTES

    def put(self, piece: Piece | BaseException) -> None:
        if isinstance(piece, Piece):
            with self._counting:
                self._unread_bytes += _about_bytes(piece)
        super().put(piece)

    def _tell(self) -> None:
        self._forget(self._number)
        self._channel.send(wire.encode(wire.Cancel(number=self._number)))

    def take(self, timeout_s: float | None = None) -> Piece:
        piece = super().take(timeout_s)
        with self._counting:
            self._unread_bytes -= _about_bytes(piece)
        self._n_taken += 1
        if self._n_taken == _ACKNOWLEDGE_EVERY:
            self._channel.send(wire.encode(wire.Taken(number=self._number, n_pieces=self._n_taken)))
            self._n_taken = 0
        return piece


def _about_bytes(piece: Piece) -> int:
    """What a piece takes in memory, roughly."""
    n_likely = sum(1 + len(entry.top) for entry in piece.logprobs or ())
    calls = piece.tool_calls
    n_chars = len(piece.text) + sum(len(call.id) + len(call.name) + len(call.arguments) for call in calls)
    n_bytes = 4 * n_chars + 40 * len(piece.token_ids) + 150 * n_likely
    return _PIECE_BYTES + _CALL_BYTES * len(calls) + n_bytes

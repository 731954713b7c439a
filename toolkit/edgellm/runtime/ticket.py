"""The consumer's end of a generation: pieces as they come, and a way to stop."""

from __future__ import annotations

import copy
import queue
import time
from collections.abc import Callable

from edgellm.runtime.request import Piece


class CancelledError(Exception):
    """The consumer gave up, perhaps in another thread than the one that waits."""


# A consumer that leaves so many pieces unread is waited for.
MAX_UNREAD = 4096


class Ticket:
    """Pieces of one generation, put by the engine and taken by one consumer; from any threads.

    Args:
        on_cancel: called once when the consumer gives up.
        on_taken: called when the consumer has caught up with an engine that waits for it.

    Attributes:
        asked_s: when it was made, which is when the generation was asked for (perf_counter); deadlines count from then.
    """

    def __init__(self, on_cancel: Callable[[], None], on_taken: Callable[[], None]) -> None:
        self._pieces: queue.SimpleQueue[Piece | BaseException] = queue.SimpleQueue()
        self._on_cancel, self._on_taken = on_cancel, on_taken
        self._listener: Callable[[], None] | None = None
        self.asked_s = time.perf_counter()
        self.cancelled = False
        self.done = False
        self._stalled = False

    def put(self, piece: Piece | BaseException) -> None:
        """Hand out a piece, or the error that ends the generation."""
        self._pieces.put(piece)
        if self._listener is not None:
            self._listener()

    def take(self, timeout_s: float | None = None) -> Piece:
        """The next piece.

        Raises:
            queue.Empty: none came in time.  CancelledError: `cancel` was called.
            EdgeLLMError, RuntimeError: what ended the generation.
        """
        found = self._pieces.get(timeout=timeout_s)
        if self._stalled and self._pieces.empty():
            self._on_taken()
        if isinstance(found, BaseException):
            self.done = True
            raise found
        self.done = found.finish_reason is not None
        return found

    @property
    def n_unread(self) -> int:
        """Pieces that nobody has taken."""
        return self._pieces.qsize()

    @property
    def is_stalled(self) -> bool:
        """Whether the engine should wait: too much lies unread, and the consumer has not caught up since."""
        if not self._stalled:
            # Said before it is counted again: a consumer that reads meanwhile must know that it is waited for.
            self._stalled = self._pieces.qsize() > MAX_UNREAD
        if self._stalled:
            self._stalled = not self._pieces.empty()
        return self._stalled

    def listen(self, listener: Callable[[], None]) -> None:
        """Call this, from the engine's thread, whenever something was put."""
        self._listener = listener
        if not self._pieces.empty():
            listener()

    def cancel(self) -> None:
        """Stop the generation; safe to call at any time."""
        if not self.cancelled and not self.done:
            self.cancelled = True
            self._pieces.put(CancelledError())  # wakes whoever waits in `take`
            self._on_cancel()


def own_error(err: BaseException) -> BaseException:
    """The error again for one of several consumers: each raises it in a thread of its own."""
    try:
        again = copy.copy(err)
    except Exception:  # a class that cannot be copied is shared
        return err
    again.__cause__ = err.__cause__
    return again.with_traceback(err.__traceback__)

"""An engine on the other end of two pipes: what runs in the child of `isolate`."""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import IO

from edgellm.errors import EdgeLLMError
from edgellm.process.channel import read_message, write_message
from edgellm.runtime import wire
from edgellm.runtime.engine import EmbeddingEngine, LocalEngine
from edgellm.runtime.request import Piece
from edgellm.runtime.ticket import MAX_UNREAD, Ticket

ALIVE_EVERY_S = 1.0
METHODS = ("tokenize", "encode", "embed", "counts", "load_cache")
# A prompt or a constraint that takes long to prepare keeps no other request waiting, and no cancelling.
N_PREPARING = 4

Served = LocalEngine | EmbeddingEngine


class _Sending(Ticket):
    """A ticket whose consumer is in the other process."""

    def __init__(self, service: _Service, number: int) -> None:
        super().__init__(on_cancel=service.engine.wake, on_taken=service.engine.wake)
        self._service, self._number = service, number
        self._n_put = self._n_taken = 0  # each is changed by one thread only

    def put(self, piece: Piece | BaseException) -> None:
        self._n_put += 1
        if isinstance(piece, BaseException):
            self._service.forget(self._number)
            self._service.send(wire.failed(self._number, piece))
            return
        if piece.finish_reason is not None:
            self._service.forget(self._number)
        self._service.send(wire.Gave(number=self._number, piece=piece))

    def taken(self, n_pieces: int) -> None:
        """The consumer has read so many."""
        self._n_taken += n_pieces
        self._on_taken()

    @property
    def is_stalled(self) -> bool:
        n_unread = self._n_put - self._n_taken
        self._stalled = n_unread > (MAX_UNREAD // 2 if self._stalled else MAX_UNREAD)
        return self._stalled


class _Service:
    def __init__(self, engine: Served, descriptor: int) -> None:
        self.engine = engine
        self._descriptor = descriptor
        self._tickets: dict[int, _Sending] = {}
        self._lock = threading.Lock()
        self._one_at_a_time = threading.Lock()
        self._preparing = ThreadPoolExecutor(N_PREPARING, thread_name_prefix="edgellm-prepare")
        # One text is computed at a time; those that wait for it must not take the threads of others.
        self._embedding = ThreadPoolExecutor(1, thread_name_prefix="edgellm-embed")
        self._n_begun = self._n_prepared = 0
        self._seen = (-1, -1)

    def send(self, message: wire.FromEngine) -> None:
        data = wire.encode_answer(message)
        with self._lock:
            write_message(self._descriptor, data)

    def close(self) -> None:
        """Wait for nothing that is still prepared."""
        for pool in (self._preparing, self._embedding):
            pool.shutdown(wait=False, cancel_futures=True)

    def forget(self, number: int) -> None:
        self._tickets.pop(number, None)

    def receive(self, message: wire.ToEngine) -> None:
        if isinstance(message, wire.Cancel):
            ticket = self._tickets.get(message.number)
            if ticket:
                ticket.cancel()
                self.forget(message.number)
        elif isinstance(message, wire.Taken):
            ticket = self._tickets.get(message.number)
            if ticket:
                ticket.taken(message.n_pieces)
        elif isinstance(message, wire.SaveCache) or (
            isinstance(message, wire.Ask) and message.method == "load_cache"
        ):  # these wait for the disk; others must not wait for them
            threading.Thread(
                target=self._reply_slowly, args=(message,), name="edgellm-slow", daemon=True
            ).start()
        else:
            if isinstance(message, wire.Submit):  # known before it is prepared, so that it can be cancelled
                self._tickets[message.number] = _Sending(self, message.number)
            self._n_begun += 1
            embeds = isinstance(message, wire.Ask) and message.method == "embed"
            (self._embedding if embeds else self._preparing).submit(self._prepare, message)

    def _prepare(self, message: wire.Submit | wire.Ask) -> None:
        with contextlib.suppress(OSError):  # the parent is gone
            self._reply(message)
        with self._lock:
            self._n_prepared += 1

    def _reply(self, message: wire.Submit | wire.Ask | wire.SaveCache) -> None:
        answer: wire.Answered | wire.Failed
        try:
            answer = wire.Answered(number=message.number, value=self._answer(message))
        except Exception as err:  # it belongs to whoever asked
            self.forget(message.number)
            answer = wire.failed(message.number, err)
        self.send(answer)

    def _reply_slowly(self, message: wire.Ask | wire.SaveCache) -> None:
        with self._one_at_a_time, contextlib.suppress(OSError):  # the reader is gone
            self._reply(message)

    def _answer(self, message: wire.Submit | wire.Ask | wire.SaveCache) -> object:
        if isinstance(message, wire.SaveCache):
            return self.engine.save_cache(message.path, message.request)
        if isinstance(message, wire.Ask):
            if message.method not in METHODS:
                raise ValueError(f"no method {message.method!r}")
            return getattr(self.engine, message.method)(*message.arguments)
        ticket = self._tickets.get(message.number)
        if ticket is not None:
            self.engine.submit(message.request, ticket)
        return None

    def say_alive(self) -> None:
        """Where work goes on, or there is none; waiting for a consumer that does not read is no work."""
        seen = (self.engine.counts().n_steps, self._n_prepared)
        steps = self.engine.is_waiting or seen[0] != self._seen[0]
        prepares = self._n_begun == seen[1] or seen[1] != self._seen[1]
        self._seen = seen
        if steps and prepares:
            self.send(wire.Alive())


def serve(engine: Served, requests: IO[bytes], answers: int) -> None:
    """Serve one engine until its requests end, then close it.

    Args:
        requests: messages of `wire.ToEngine`.  answers: a file descriptor for those of `wire.FromEngine`.
    """
    service = _Service(engine, answers)
    over = threading.Event()

    def report() -> None:
        while not over.wait(ALIVE_EVERY_S):
            if engine.has_ended:  # by a bug of ours: the parent shall start another child
                os._exit(EdgeLLMError.exit_code)
            try:
                service.say_alive()
            except (OSError, RuntimeError):
                return

    try:
        service.send(wire.Ready(context=engine.context, chat_template=engine.chat_template, info=engine.info))
        threading.Thread(target=report, name="edgellm-alive", daemon=True).start()
        while (data := read_message(requests)) is not None:
            service.receive(wire.decode_to_engine(data))
    finally:
        over.set()
        engine.close()
        service.close()

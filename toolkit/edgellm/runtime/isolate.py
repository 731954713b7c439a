"""The same engine with the native code in a supervised child: what kills that code does not kill the program.

A crash, an abort, running out of memory or a hang becomes a NativeCrash in every generation that was open. The next
request starts the child anew, after a pause that doubles with each crash in a row.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from edgellm import process
from edgellm.errors import BackendError, EdgeLLMError, NativeCrash, NetworkAttemptError, ResourceError
from edgellm.formats.records import from_builtins
from edgellm.process.channel import Channel
from edgellm.process.offline import Watch
from edgellm.process.proof import OfflineProof
from edgellm.process.proof import check as check_proof
from edgellm.report import RuntimeInfo
from edgellm.runtime import wire
from edgellm.runtime.cache_file import CacheSummary
from edgellm.runtime.embedding import Embedded, Text
from edgellm.runtime.engine import HANG_S
from edgellm.runtime.prompts import Prompt
from edgellm.runtime.remote_ticket import RemoteTicket
from edgellm.runtime.request import Request
from edgellm.runtime.scheduler import Counts
from edgellm.runtime.ticket import Ticket, own_error
from edgellm.runtime.tools import Tool

T = TypeVar("T")
LOAD_TIMEOUT_S = 600.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0
_GRACE_S = 5.0


class IsolatedEngine:
    """An engine in a child process; thread-safe.

    Args:
        argv: the command that serves an engine on its standard streams.
        spec: the first message to it: what to load.
        on_crash: called with each crash, for example to count them by file. Who waited for an answer has its error by
            then; `close` and the next start wait until this is done.
        before_start: called before each start; what it raises is the caller's.
        hang_s: without a sign of life for so long while work is open, the child is killed.
        memory_limit_bytes: limit of the child's address space.
        watched_argv: makes the command from the arguments that a watched child has before its verb; where it is given,
            the child is to stay offline, and its first attempt not to ends it and this engine.

    Raises:
        NetworkAttemptError: it tried to leave the machine.
        NativeCrash: it dies while loading.  ResourceError: it takes too long.  EdgeLLMError: what loading raises.
    """

    def __init__(
        self,
        argv: Sequence[str],
        spec: bytes,
        *,
        on_crash: Callable[[NativeCrash], None] = lambda _: None,
        before_start: Callable[[], None] = lambda: None,
        hang_s: float = HANG_S,
        memory_limit_bytes: int | None = None,
        watched_argv: Callable[[list[str]], Sequence[str]] | None = None,
    ) -> None:
        self._argv, self._spec = list(argv), spec
        self._on_crash, self._before_start = on_crash, before_start
        self._hang_s, self._memory_limit_bytes = hang_s, memory_limit_bytes
        self._watched_argv = watched_argv
        self._offline = Watch(self._refuse) if watched_argv else None
        self._refused: NetworkAttemptError | None = None
        self._numbers = itertools.count(1)
        # The garbage collector may close this, or a stream of it, in any thread and at any moment.
        self._lock = threading.RLock()
        self._starting = threading.Lock()
        self._channel: Channel | None = None
        self._ready: queue.SimpleQueue[wire.Ready | Exception] = queue.SimpleQueue()
        self._is_ready = False
        self._tickets: dict[int, RemoteTicket] = {}
        self._answers: dict[int, Future[Any]] = {}
        self._heard_s = time.monotonic()
        self._n_crashes_in_row = 0
        self._not_before_s = 0.0
        self._closed = threading.Event()
        self._counting: threading.Thread | None = None
        _, first = self._start()
        self.context, self.chat_template, self._info = first.context, first.chat_template, first.info
        threading.Thread(target=self._watch, name="edgellm-watchdog", daemon=True).start()

    @property
    def info(self) -> RuntimeInfo:
        """The engine as it runs."""
        return self._info

    @property
    def pid(self) -> int | None:
        """The child's process id; None while there is none."""
        channel = self._channel
        return channel.pid if channel else None

    def submit(self, request: Request) -> Ticket:
        """Begin a generation; errors as in `LocalEngine.submit`, and NativeCrash where the child dies meanwhile."""
        channel = self._running()
        number = next(self._numbers)
        remote = RemoteTicket(channel, number, self._forget)
        self._call(channel, number, wire.Submit(number=number, request=request), remote)
        return remote

    def tokenize(self, text: str, parse_special: bool) -> list[int]:
        """Token ids of a text."""
        return self._understood(wire.token_ids, self._ask("tokenize", text, parse_special))

    def encode(self, prompt: Prompt, tools: Sequence[Tool] = ()) -> list[int]:
        """Token ids of a prompt, with the functions that it shows."""
        return self._understood(wire.token_ids, self._ask("encode", prompt, list(tools)))

    def embed(self, text: Text, normalize: bool) -> Embedded:
        """The embedding of one text; errors as in `LocalEngine.embed`, and NativeCrash where the child dies meanwhile."""
        found = self._understood(wire.embedded, self._ask("embed", text, normalize))
        self._n_crashes_in_row = 0
        return found

    def counts(self) -> Counts:
        """What is going on; all zero while there is no child."""
        if self._channel is None and not self._closed.is_set():
            return Counts(0, 0, 0, 0, 0, 0, 0, 0)
        return Counts(
            *self._understood(lambda value: wire.numbers(value, len(Counts._fields)), self._ask("counts"))
        )

    def save_cache(self, path: str, request: Request | None) -> CacheSummary:
        """As `LocalEngine.save_cache`; the child writes the file."""
        channel = self._running()
        number = next(self._numbers)
        found = self._call(channel, number, wire.SaveCache(number=number, path=path, request=request), None)
        return from_builtins(CacheSummary, found, "the engine's answer")

    def load_cache(self, path: str) -> CacheSummary:
        """As `LocalEngine.load_cache`; the child reads the file. It is gone with the child if that dies."""
        return from_builtins(CacheSummary, self._ask("load_cache", path), "the engine's answer")

    def offline_proof(self) -> OfflineProof | None:
        """What was seen of the network so far; None where nothing watches."""
        return self._offline.proof() if self._offline else None

    def close(self) -> None:
        """End the child; safe to call twice."""
        self._closed.set()
        with self._lock:
            channel, self._channel = self._channel, None
        if channel:
            channel.close(_GRACE_S)
        self._wait_for_count()

    def _forget(self, number: int) -> None:
        self._tickets.pop(number, None)

    def _wait_for_count(self) -> None:
        counting = self._counting
        if counting and counting is not threading.current_thread():
            counting.join()

    def _understood(self, check: Callable[[object], T], value: object) -> T:
        """An answer that is what it should be; a child that gives another one is ended."""
        try:
            return check(value)
        except ValueError as err:
            nonsense = NativeCrash(f"the engine answered nonsense: {err}")
            if channel := self._channel:
                channel.kill(nonsense)
            raise nonsense from err

    def _ask(self, method: str, *arguments: Any) -> Any:
        channel = self._running()
        number = next(self._numbers)
        return self._call(
            channel, number, wire.Ask(number=number, method=method, arguments=list(arguments)), None
        )

    def _call(
        self, channel: Channel, number: int, message: wire.ToEngine, ticket: RemoteTicket | None
    ) -> Any:
        done: Future[Any] = Future()
        with self._lock:
            if self._channel is not channel:
                self._check_open()
                raise NativeCrash("the engine died just now", hint="try again")
            if not self._answers and not self._tickets:
                self._heard_s = time.monotonic()
            self._answers[number] = done
            if ticket:
                self._tickets[number] = ticket
        try:
            channel.send(wire.encode(message))
        except ValueError:
            with self._lock:
                self._answers.pop(number, None)
                self._tickets.pop(number, None)
            raise
        try:
            return done.result()
        except BaseException:  # by Ctrl-C too: nobody will take what it gives
            if ticket:
                ticket.cancel()
            raise

    def _running(self) -> Channel:
        """The channel to the child, which is started where there is none.

        Raises:
            BackendError: it crashed several times in a row, and its pause is not over.  RuntimeError: closed.
        """
        with self._starting:
            self._check_open()
            if self._offline:
                check_proof(self._offline.proof())
            channel = self._channel
            if channel is not None:
                return channel
            left_s = self._not_before_s - time.monotonic()
            if left_s > 4 * FIRST_PAUSE_S:
                raise BackendError(
                    f"the engine crashed {self._n_crashes_in_row} times in a row and is not started for {left_s:.0f} s",
                    hint="try later; edgellm doctor says more",
                )
            if left_s > 0:
                self._closed.wait(left_s)
            return self._start()[0]

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise RuntimeError("this model is closed")

    def _start(self) -> tuple[Channel, wire.Ready]:
        self._wait_for_count()
        self._before_start()
        ready: queue.SimpleQueue[wire.Ready | Exception] = queue.SimpleQueue()
        self._ready, self._is_ready = ready, False
        channel = Channel(
            self._argv,
            on_message=self._receive,
            on_end=lambda err: self._ended(channel, ready, err),
            memory_limit_bytes=self._memory_limit_bytes,
            start=self._start_watched if self._offline else process.start,
            max_message_bytes=wire.MAX_ANSWER_BYTES,
        )
        with self._lock:
            closed = self._closed.is_set()
            self._channel = None if closed else channel
            self._heard_s = time.monotonic()
            refused = self._refused
        if closed:
            channel.close()
            self._check_open()
        if refused:
            channel.kill(refused)
        channel.listen()
        channel.send(self._spec)
        try:
            found = ready.get(timeout=LOAD_TIMEOUT_S)
        except queue.Empty:
            slow = ResourceError(
                f"the model is not loaded after {LOAD_TIMEOUT_S:g} s", hint="try a smaller one"
            )
            channel.kill(slow)
            raise slow from None
        except BaseException:
            channel.close()
            raise
        if isinstance(found, Exception):
            self._wait_for_count()
            raise found
        return channel, found

    def _start_watched(
        self, _: Sequence[str], env: Mapping[str, str] | None, memory_limit_bytes: int | None
    ) -> process.Child:
        assert self._offline is not None
        assert self._watched_argv is not None
        return self._offline.start(self._watched_argv, env, memory_limit_bytes)

    def _refuse(self, err: NetworkAttemptError) -> None:
        """It tried to leave the machine: everyone who waits is told."""
        with self._lock:
            self._refused = self._refused or err
            channel = self._channel
        if channel:
            channel.kill(err)

    def _receive(self, data: bytes) -> None:
        message = wire.decode_from_engine(data)
        self._heard_s = time.monotonic()
        if isinstance(message, wire.Gave):
            ticket = self._tickets.get(message.number)
            if ticket and ticket.is_flooded:
                raise ValueError(f"{ticket.n_unread} pieces, and it does not wait until they are read")
            if message.piece.finish_reason is not None:
                self._tickets.pop(message.number, None)
                if ticket:
                    self._n_crashes_in_row = 0
            if ticket:
                ticket.put(message.piece)
        elif isinstance(message, wire.Ready):
            if self._is_ready:
                raise ValueError("it is ready twice")
            self._is_ready = True
            self._ready.put(message)
        elif isinstance(message, wire.Answered):
            done = self._answers.pop(message.number, None)
            if done:
                done.set_result(message.value)
        elif isinstance(message, wire.Failed):
            waiting, ticket = self._answers.pop(message.number, None), self._tickets.pop(message.number, None)
            if waiting:
                waiting.set_exception(wire.error_of(message))
            elif ticket:
                ticket.put(wire.error_of(message))

    def _ended(
        self, channel: Channel, ready: queue.SimpleQueue[wire.Ready | Exception], err: EdgeLLMError
    ) -> None:
        """The child is gone: everyone who waits is told, then the crash is counted."""
        with self._lock:
            closed = self._closed.is_set()
            if not closed and isinstance(err, NativeCrash):
                self._n_crashes_in_row += 1
                pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (self._n_crashes_in_row - 1))
                self._not_before_s = time.monotonic() + pause_s
                self._counting = threading.Thread(
                    target=self._on_crash, args=(err,), name="edgellm-crash", daemon=True
                )
                self._counting.start()
            if self._channel is channel:
                self._channel = None
            tickets, answers = list(self._tickets.values()), list(self._answers.values())
            self._tickets.clear()
            self._answers.clear()
        said: Exception = RuntimeError("this model is closed") if closed else err
        ready.put(said)
        for done in answers:
            done.set_exception(own_error(said))
        for ticket in tickets:
            ticket.put(own_error(said))

    def _watch(self) -> None:
        every_s = min(5.0, self._hang_s / 4)
        looked_s = time.monotonic()
        while not self._closed.wait(every_s):
            now_s = time.monotonic()
            if now_s - looked_s > 3 * every_s:  # this process did not run, and the child perhaps neither
                self._heard_s = now_s
            looked_s = now_s
            channel = self._channel
            with self._lock:
                is_working = bool(self._tickets or self._answers)
            silent_s = time.monotonic() - self._heard_s
            if channel and is_working and silent_s > self._hang_s:
                channel.kill(
                    NativeCrash(
                        f"the engine gave no sign of life for {silent_s:.0f} s, killed",
                        hint="the model file may be damaged: edgellm verify",
                        signal_name="hang",
                    )
                )

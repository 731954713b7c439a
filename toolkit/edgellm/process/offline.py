"""A child that is to stay offline, and what was seen of it: an attempt is noticed, refused and named; bytes are counted.

Up to three methods at once, each named in the proof, or missing there with its reason:

seccomp      every call of the child, and of all that it starts, that could open a way off the machine. Loopback and Unix
             sockets too: behind them may be a program that is not offline. Only pairs of connected sockets are let through
namespace    a network namespace without any way out, whose bytes the kernel counts
audit hook   what Python code of the child asks for, by name of host and of module

The child's command has to begin with `argv_prefix`, so that the hook is there before anything else.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgellm import process
from edgellm.errors import NetworkAttemptError, OutputError
from edgellm.process import audit, seccomp
from edgellm.process.call_words import caller, describe, recipient
from edgellm.process.namespace import Counters, Entrance, Traffic
from edgellm.process.proof import MAX_ATTEMPTS, Attempt, Method, OfflineProof, failure, together, verdict_of
from edgellm.report import Missing

WATCHED = "_watched"
_MAX_LOG_BYTES = 64 * 1024
_PAUSE_S = 0.1
_LINGER_S = 5.0
_NO_HOOK = "the audit hook has not said that it watches"


def argv_prefix(log: Path) -> list[str]:
    """The arguments before the verb of a child of ours that is watched."""
    return [WATCHED, str(log)]


class Watch:
    """Starts children that are watched, and tells what was seen of all of them.

    Args:
        on_attempt: called with the error that each attempt is, in a thread of the watch.
    """

    def __init__(self, on_attempt: Callable[[NetworkAttemptError], None] = lambda _: None) -> None:
        self._on_attempt = on_attempt
        self._lock = threading.Lock()
        self._children: list[_Watched] = []

    def start(
        self,
        command: Callable[[list[str]], Sequence[str]],
        env: Mapping[str, str] | None = None,
        memory_limit_bytes: int | None = None,
        **options: Any,
    ) -> process.Child:
        """Start a child.

        Args:
            command: makes the command from the arguments that have to stand before its verb.
            options: as for `process.start`.

        Raises:
            MissingInputError: the program cannot be started.
        """
        watched = _Watched(self._on_attempt)
        child = watched.start(command, env, memory_limit_bytes, options)
        with self._lock:
            self._children.append(watched)
        return child

    def proof(self) -> OfflineProof:
        """What was seen so far; all of it once the children have ended.

        Raises:
            ValueError: none was started.
        """
        with self._lock:
            proofs = [child.proof() for child in self._children]
        return together(proofs)


class _Watched:
    """One child. A thread of its own has the filter, starts the child, which inherits it, and answers what is held.

    The thread lives as long as the child: the kernel's death signal goes by threads.
    """

    def __init__(self, on_attempt: Callable[[NetworkAttemptError], None]) -> None:
        self._on_attempt = on_attempt
        self._lock = threading.Lock()
        self._attempts: list[Attempt] = []
        self._n_attempts = 0
        self._missing: list[Missing] = []
        self._listener: seccomp.Listener | None = None
        self._counters: Counters | None = None
        self._traffic: Traffic | None = None
        self._child: process.Child | None = None
        self._error: BaseException | None = None
        self._started, self._over = threading.Event(), threading.Event()
        self._n_log_bytes = 0
        self._has_hook = False

    def start(
        self,
        command: Callable[[list[str]], Sequence[str]],
        env: Mapping[str, str] | None,
        memory_limit_bytes: int | None,
        options: dict[str, Any],
    ) -> process.Child:
        """Start it; errors as in `process.start`, and OutputError where the hook has no place to write."""
        try:
            handle, name = tempfile.mkstemp(prefix="edgellm-offline-")
        except OSError as err:
            raise OutputError(
                f"no temporary file for what is seen of the network: {err.strerror}",
                hint="free space in the directory for temporary files, or name another in TMPDIR",
            ) from err
        os.close(handle)
        self._log = Path(name)
        try:
            argv = command(argv_prefix(self._log))
        except BaseException:
            self._log.unlink(missing_ok=True)
            raise
        thread = threading.Thread(
            target=self._run,
            args=(argv, env, memory_limit_bytes, options),
            name="edgellm-offline",
            daemon=True,
        )
        thread.start()
        self._started.wait()
        if self._error is not None:
            raise self._error
        assert self._child is not None
        return self._child

    def _run(
        self,
        argv: Sequence[str],
        env: Mapping[str, str] | None,
        memory_limit_bytes: int | None,
        options: dict[str, Any],
    ) -> None:
        try:
            try:
                self._install(options)
                entrance = Entrance()
                child = self._child = process.start(
                    argv, env, memory_limit_bytes, before_exec=entrance.enter, **options
                )
                found = entrance.counters(child.pid)
                if isinstance(found, str):
                    self._miss("bytes", found)
                else:
                    self._counters = found
            except BaseException as err:
                self._error = err
                return
            finally:
                self._started.set()
            self._attend(child)
        finally:
            self._finish()

    def _install(self, options: dict[str, Any]) -> None:
        try:
            self._listener = seccomp.install()
        except seccomp.UnavailableError as err:
            self._miss("attempts of native code and of other programs", str(err))
        streams: process.Streams = options.get("streams", process.PIPES)
        for number, (name, stream) in enumerate(streams._asdict().items()):
            with contextlib.suppress(OSError):
                if stream is None and stat.S_ISSOCK(os.fstat(number).st_mode):
                    self._miss(f"what leaves by {name}", "it is a socket that the caller opened")

    def _attend(self, child: process.Child) -> None:
        """Answer what is held until the child has ended."""
        poll = select.poll() if self._listener and hasattr(select, "poll") else None
        ending = os.pidfd_open(child.pid) if hasattr(os, "pidfd_open") else None
        try:
            if poll and self._listener:
                poll.register(self._listener.descriptor, select.POLLIN)
                if ending is not None:
                    poll.register(ending, select.POLLIN)
            while not process.has_ended(child):
                if poll:
                    events = poll.poll(_PAUSE_S * 1000)
                    if self._listener and any(place == self._listener.descriptor for place, _ in events):
                        self._answer(self._listener)
                else:
                    time.sleep(_PAUSE_S)
                self._read_log()
        finally:
            if ending is not None:
                os.close(ending)

    def _answer(self, listener: seccomp.Listener) -> None:
        call = listener.next_call()
        if call is None:
            return
        if call.name in ("sendmsg", "sendmmsg") and recipient(call) is None:
            listener.let(call)
            return
        attempt = Attempt(what=describe(call), by=caller(call.pid), seen_by="seccomp")
        if call.name == "socket":
            listener.give_nothing(call)
        else:
            listener.refuse(call, errno.ENOSYS if call.name in ("io_uring_setup", "") else errno.ENETUNREACH)
        self._note(attempt)

    def _read_log(self) -> None:
        """What the child's audit hook has written since."""
        try:
            if self._log.stat().st_size == self._n_log_bytes:
                return
            with self._log.open("rb") as file:
                file.seek(self._n_log_bytes)
                data = file.read(_MAX_LOG_BYTES)
        except OSError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._n_log_bytes += len(whole)
        for line in whole.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                found = json.loads(line)
                if found == audit.BEGUN:
                    self._has_hook = True
                    continue
                what, by = str(found["what"])[:300], str(found["by"])[:300]
                self._note(Attempt(what=what, by=by, seen_by="audit hook"))

    def _note(self, attempt: Attempt) -> None:
        with self._lock:
            self._n_attempts += 1
            if len(self._attempts) < MAX_ATTEMPTS:
                self._attempts.append(attempt)
        self._on_attempt(failure(1, [attempt]))

    def _miss(self, quantity: str, reason: str) -> None:
        self._missing.append(Missing(quantity=quantity, reason=reason))

    def _count(self) -> None:
        if self._counters is not None:
            try:
                self._traffic = self._counters.read()
            except OSError as err:
                self._traffic = None
                self._miss("bytes", str(err))

    def _finish(self) -> None:
        self._read_log()
        with self._lock:
            self._count()
            if self._counters is not None:
                self._counters.close()
                self._counters = None
        if self._listener is not None:
            self._listener.close()
        with contextlib.suppress(OSError):
            self._log.unlink()
        self._over.set()

    def proof(self) -> OfflineProof:
        """What was seen of it so far."""
        assert self._child is not None
        if self._child.returncode is not None:
            self._over.wait(_LINGER_S)
        with self._lock:
            self._count()
            missing = list(self._missing)
            attempts, n_attempts, traffic = list(self._attempts), self._n_attempts, self._traffic
        counted = _counted_attempts(traffic) if traffic else []
        methods: list[Method] = []
        if self._listener is not None:
            methods.append("seccomp")
        if traffic is not None:
            methods.append("namespace")
        if self._has_hook:
            methods.append("audit hook")
        else:
            missing.append(Missing(quantity="requests of Python code, by name", reason=_NO_HOOK))
        return OfflineProof(
            verdict=verdict_of(n_attempts + len(counted), methods),
            methods=methods,
            n_attempts=n_attempts + len(counted),
            attempts=[*attempts, *counted][:MAX_ATTEMPTS],
            received_bytes=traffic.received_bytes if traffic else None,
            sent_bytes=traffic.sent_bytes if traffic else None,
            missing=missing,
        )


def _counted_attempts(traffic: Traffic) -> list[Attempt]:
    """What nobody held and the kernel counted all the same."""
    said = []
    if traffic.n_unroutable:
        said.append(f"send {traffic.n_unroutable} packets, which found no route")
    if traffic.received_bytes or traffic.sent_bytes:
        said.append(
            f"move {traffic.sent_bytes} bytes out and {traffic.received_bytes} in over its own interfaces"
        )
    by = "the process or one that it started"
    return [Attempt(what=what, by=by, seen_by="namespace") for what in said]

"""Every error edgellm raises on purpose, and the exit code each one becomes.

    EdgeLLMError                 70  something edgellm must answer for (a bug reaches the user as this)
    |- SpecError                 64  a target, quant, workload or option that does not exist or contradicts another
    |- MissingInputError         66  a path or model that is not there
    |- BadInputError             65  input that is malformed, truncated or not what it claims to be
    |  |- UnsafeInputError       65  input refused because reading it could run code or leave its directory
    |  |- ArtifactError          65  one of our own artifacts fails its hashes or its structure
    |  |- QualityError           65  a converted model is further from its source than allowed
    |  |- ContextOverflowError   65  a prompt that does not fit the context
    |  |- DoesNotFitError        65  a model that its target cannot hold; carries a table of what would fit
    |  '- IncomparableError      65  two reports that must not be compared
    |- OutputExistsError         73  the output is there already and --force was not given
    |- OutputError               74  the output cannot be written: disk full, read-only, I/O error
    |- BackendError              69  native code cannot do what was asked
    |  |- BackendUnavailable     69  the native library is absent or does not load
    |  |- UnsupportedError       69  this model, type or feature is not supported here
    |  '- NativeCrash            70  native code died in a child process; carries the signal's name
    |- ResourceError             75  memory or time ran out; trying again with less may work
    |  |- QueueFullError         75  more requests wait already than are allowed to
    |  '- DeadlineError          75  a request or a child was not done in the time it was given
    |- NetworkError              69  the network or the hub does not give what was asked for
    |  '- NetworkInterrupted     75  the same later may work: no answer, too many requests, connection lost
    |- NetworkAttemptError       77  something tried to leave the machine where it was to stay offline; it was refused
    '- MeterError                69  an energy meter is absent, needs permission or went away

Wrong use from Python (a negative count, a wrong type) is ValueError or TypeError, as everywhere.
Exit codes follow BSD's sysexits.h; Ctrl-C is 130.
"""

from __future__ import annotations

from collections.abc import Sequence

EXIT_OK = 0
EXIT_USAGE = 64
EXIT_INTERRUPTED = 130


class EdgeLLMError(Exception):
    """Root of the tree: one line that says what, where and the value seen, and a hint with the next step.

    Args:
        message: what went wrong, where, and the value that was seen; one line.
        hint: the next command or change to try; None where there is none.
    """

    exit_code = 70

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.hint, dict(self.__dict__)))


def _rebuild(
    kind: type[EdgeLLMError], message: str, hint: str | None, state: dict[str, object]
) -> EdgeLLMError:
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    return error


class SpecError(EdgeLLMError):
    """A name or option that does not exist, or that contradicts another one."""

    exit_code = EXIT_USAGE


class MissingInputError(EdgeLLMError):
    """A path or a model that is not there."""

    exit_code = 66


class BadInputError(EdgeLLMError):
    """Input that is malformed, truncated, or not what it claims to be.

    Args:
        table: lines that say what would do, a heading first; none where that needs no table.
    """

    exit_code = 65

    def __init__(self, message: str, *, hint: str | None = None, table: Sequence[str] = ()) -> None:
        super().__init__(message, hint=hint)
        self.table = list(table)


class UnsafeInputError(BadInputError):
    """Input refused because reading it could run code, or because a name in it leaves its directory."""


class ArtifactError(BadInputError):
    """An artifact of ours whose files do not match its manifest."""


class QualityError(BadInputError):
    """A converted model that is further from its source than the caller allows."""


class ContextOverflowError(BadInputError):
    """A prompt (plus the tokens asked for) that does not fit the context; both numbers are in the message."""


class DoesNotFitError(BadInputError):
    """A model that its target cannot hold; the table says what would fit."""


class IncomparableError(BadInputError):
    """Two reports taken under conditions that make a comparison meaningless."""


class OutputExistsError(EdgeLLMError):
    """The output exists already; nothing was touched."""

    exit_code = 73


class OutputError(EdgeLLMError):
    """The output cannot be written; what was there before is untouched."""

    exit_code = 74


class BackendError(EdgeLLMError):
    """Native code cannot do what was asked."""

    exit_code = 69


class BackendUnavailable(BackendError):
    """The native library is not installed or does not load."""


class UnsupportedError(BackendError):
    """A model, type or feature that is not supported here."""


class NativeCrash(BackendError):
    """Native code died in a child process.

    Args:
        signal_name: for example "SIGSEGV"; None where the child exited by itself.
    """

    exit_code = 70

    def __init__(self, message: str, *, hint: str | None = None, signal_name: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.signal_name = signal_name


class ResourceError(EdgeLLMError):
    """Memory or time ran out."""

    exit_code = 75


class QueueFullError(ResourceError):
    """More requests wait already than are allowed to; a later one may be taken."""


class DeadlineError(ResourceError):
    """A request, or a child process, was not done in the time it was given."""


class NetworkError(EdgeLLMError):
    """The network or the hub does not give what was asked for."""

    exit_code = 69


class NetworkInterrupted(NetworkError):
    """No answer, too many requests, or a connection lost; what had arrived is kept."""

    exit_code = 75


class NetworkAttemptError(EdgeLLMError):
    """Something tried to leave the machine where it was to stay offline; it was refused.

    Args:
        table: all attempts, one a line; none where the message has the only one.
    """

    exit_code = 77

    def __init__(self, message: str, *, hint: str | None = None, table: Sequence[str] = ()) -> None:
        super().__init__(message, hint=hint)
        self.table = list(table)


class MeterError(EdgeLLMError):
    """An energy meter that is absent, needs permission, or went away."""

    exit_code = 69


MAX_SAID_CHARS = 4000


def said_elsewhere(text: str) -> str:
    """What another process said, as one line of bounded length with its control characters written out."""
    line = " ".join(text[:MAX_SAID_CHARS].split())
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)[:MAX_SAID_CHARS]


def error_named(name: str) -> type[EdgeLLMError] | None:
    """The class of that name in the tree above; None where there is none."""
    waiting: list[type[EdgeLLMError]] = [EdgeLLMError]
    while waiting:
        kind = waiting.pop()
        if kind.__name__ == name:
            return kind
        waiting += kind.__subclasses__()
    return None

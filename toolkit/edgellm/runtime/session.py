"""A conversation with a model: it keeps the messages, and can be saved and resumed.

A turn is what is asked and its answer. It becomes part of the conversation when the answer ends. An answer that the
reader stops is kept as far as it came and marked as cut; without a word of it, and where an error ends it, the
conversation is as it was before the turn.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from edgellm.errors import EdgeLLMError, MissingInputError
from edgellm.runtime import cache_file, session_file
from edgellm.runtime.engine import Engine
from edgellm.runtime.request import Completion, Piece, Request, answer_message, completion
from edgellm.runtime.session_file import SessionSummary
from edgellm.runtime.tool_parser import ToolCall

if TYPE_CHECKING:
    from edgellm.runtime.model import Model, Stream
    from edgellm.runtime.options import Options

Said = str | Mapping[str, Any] | Sequence[Mapping[str, Any]]


class Turn(Iterator[Piece]):
    """Pieces of an answer; closing it, leaving its block or forgetting it stops the answer and keeps what was said."""

    def __init__(self, session: Session, asked: list[dict[str, Any]]) -> None:
        self._session, self._asked = session, asked
        self._stream: Stream | None = None
        self._said: list[str] = []
        self._calls: list[ToolCall] = []
        self._over = False

    def begin(self, stream: Stream) -> None:
        """Take the pieces from there."""
        self._stream = stream

    def note(self, piece: Piece) -> None:
        """A piece came; with the last one the turn is part of the conversation."""
        self._said.append(piece.text)
        self._calls += piece.tool_calls
        if piece.finish_reason is not None:
            self._end(is_cut=False)

    def drop(self) -> None:
        """An error ended it: nothing of it is kept."""
        self._said.clear()
        self._calls.clear()
        self._end(is_cut=True)

    def close(self) -> None:
        """Stop the answer; safe to call from any thread, and twice."""
        if self._stream is not None:
            self._stream.close()
        self._end(is_cut=True)

    def _end(self, *, is_cut: bool) -> None:
        with self._session._lock:
            if self._over:
                return
            self._over = True
            text = "".join(self._said)
            if text or self._calls or not is_cut:
                self._session._keep(self._asked, answer_message(text, self._calls), is_cut=is_cut)

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._over

    def __next__(self) -> Piece:
        if self._stream is None:
            raise StopIteration
        try:
            piece = next(self._stream)
        except StopIteration:
            self._end(is_cut=True)
            raise
        except Exception:
            self.drop()
            raise
        self.note(piece)
        return piece

    def __enter__(self) -> Turn:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class Session:
    """A conversation. Get one from `Model.session` or `Model.resume`; one turn at a time.

    Attributes:
        restored: of a session that was resumed, what came back with it; None of a new one.
    """

    def __init__(
        self,
        model: Model,
        engine: Engine,
        make_request: Callable[[Any, Options], Request],
        *,
        messages: Sequence[Mapping[str, Any]],
        options: Options,
        cut_messages: Sequence[int] = (),
        restored: SessionSummary | None = None,
    ) -> None:
        self._model, self._engine, self._make_request = model, engine, make_request
        self._messages = [session_file.as_message(message) for message in messages]
        self._options: Options = options
        self._last: Options = options  # of the last turn: what its part of the cache was computed with
        self._cut = list(cut_messages)
        self.restored = restored
        self._lock = threading.RLock()
        self._turn: weakref.ref[Turn] | None = None

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation so far, in OpenAI's shape: copies."""
        with self._lock:
            return copy.deepcopy(self._messages)

    @property
    def cut_messages(self) -> list[int]:
        """Numbers of the messages that are answers stopped before their end."""
        with self._lock:
            return list(self._cut)

    def chat(self, said: Said, **options: Unpack[Options]) -> Completion:
        """The whole answer; arguments and errors as in `stream`."""
        return completion(list(self.stream(said, **options)))

    def stream(self, said: Said, **options: Unpack[Options]) -> Turn:
        """The answer as it comes.

        Args:
            said: the user's text; or a message, or several, such as the results of functions that were called.
            options: of this turn alone, instead of the session's.

        Raises:
            RuntimeError: the last answer is not over.  Otherwise as in `Model.stream`.
        """
        turn, messages = self._begin(said)
        try:
            turn.begin(self._model.stream(messages, **self._with(options)))
        except BaseException:
            turn.drop()
            raise
        return turn

    async def achat(self, said: Said, **options: Unpack[Options]) -> Completion:
        """`chat` for asyncio; cancelling the task stops the answer."""
        return completion([piece async for piece in self.astream(said, **options)])

    async def astream(self, said: Said, **options: Unpack[Options]) -> AsyncIterator[Piece]:
        """`stream` for asyncio; cancelling the task, or leaving the loop, stops the answer."""
        turn, messages = self._begin(said)
        pieces = self._model.astream(messages, **self._with(options))
        try:
            async with contextlib.aclosing(pieces):  # type: ignore[type-var]
                async for piece in pieces:
                    turn.note(piece)
                    yield piece
        except Exception:
            turn.drop()
            raise
        finally:
            turn.close()

    def reset(self) -> None:
        """Forget the conversation, but not the system message that it began with."""
        with self._lock:
            self._check_idle()
            opening = self._messages[:1]
            self._messages = [m for m in opening if m["role"] in ("system", "developer")]
            self._cut = []

    def save(self, path: str | Path, *, cache: bool = True) -> SessionSummary:
        """Save the conversation as JSON, and beside it (with .cache behind its name) its part of the KV cache.

        Each file appears whole or not at all. What an answer that is not over has said is not part of it. The owner is
        not saved, nor is it part of what `Model.resume` takes from the file.

        Args:
            cache: without it, an older one stays, which the first answer after resuming uses as far as it goes.

        Returns:
            What was saved; a cache that cannot be saved is no error, the summary says why.

        Raises:
            SpecError: longer than what is read again, or an option that JSON cannot hold.
            OutputExistsError: another kind of file has that name.  OutputError: it cannot be written.
        """
        place = Path(path).expanduser().absolute()
        with self._lock:
            messages, cut = self.messages, list(self._cut)
        saved = {name: value for name, value in self._options.items() if name != "owner"}
        name = self._model.manifest.model
        session_file.write(place, name, messages, saved, cut)
        done = SessionSummary(n_messages=len(messages), model=name)
        beside = session_file.cache_path(place)
        if not any(message["role"] == "assistant" for message in messages):
            cache_file.remove(beside)  # of a conversation that was forgotten
            return _without(done, "nothing has been answered yet")
        if not cache:
            return _without(done, "it was saved without its cache")
        request = self._make_request(messages, self._last)
        return _with_cache(done, lambda: self._engine.save_cache(str(beside), request))

    async def asave(self, path: str | Path, *, cache: bool = True) -> SessionSummary:
        """`save` for asyncio."""
        import asyncio

        return await asyncio.to_thread(self.save, path, cache=cache)

    def _with(self, options: Options) -> Options:
        self._last = {**self._options, **options}
        return self._last

    def _check_idle(self) -> None:
        turn = self._turn() if self._turn is not None else None
        if turn is not None and not turn.is_over:
            raise RuntimeError("this session's last answer is not over: read it to its end, or close it")

    def _begin(self, said: Said) -> tuple[Turn, list[dict[str, Any]]]:
        """A new turn, and the messages that go to the model."""
        if isinstance(said, str):
            said = {"role": "user", "content": said}
        given = [said] if isinstance(said, Mapping) else said
        asked = [session_file.as_message(message) for message in given]
        with self._lock:
            self._check_idle()
            turn = Turn(self, asked)
            self._turn = weakref.ref(turn)
            return turn, [*self._messages, *asked]

    def _keep(self, asked: list[dict[str, Any]], answer: dict[str, Any], *, is_cut: bool) -> None:
        said = session_file.as_message(answer)
        self._messages += asked
        if is_cut:
            self._cut.append(len(self._messages))
        self._messages.append(said)


def restore(engine: Engine, path: Path, file: session_file.SessionFile, owner: str) -> SessionSummary:
    """Restore the KV cache that lies beside a session, where it can be used.

    Args:
        owner: whose session it is now.
    """
    place = session_file.cache_path(path)
    done = SessionSummary(n_messages=len(file.messages), model=file.model)
    found = _with_cache(done, lambda: engine.load_cache(str(place)))
    if found.cache is not None and owner not in found.cache.owners:
        return _without(done, f"{place}: the cache of another owner")
    return found


def _with_cache(done: SessionSummary, work: Callable[[], cache_file.CacheSummary]) -> SessionSummary:
    try:
        cache = work()
    except MissingInputError:
        return _without(done, "no cache was saved with it")
    except (EdgeLLMError, RuntimeError) as err:  # the second where the model is closed
        return _without(done, str(err))
    if not cache.n_states:
        too_large = "its cache is larger than cache_bytes"
        too_short = "its cache is too short to be worth saving, or not in memory any more"
        return _without(done, too_large if cache.n_left_out else too_short)
    return SessionSummary(n_messages=done.n_messages, model=done.model, cache=cache)


def _without(done: SessionSummary, why: str) -> SessionSummary:
    return SessionSummary(n_messages=done.n_messages, model=done.model, recomputed_because=why)

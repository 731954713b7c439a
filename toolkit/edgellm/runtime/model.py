"""The public class: one loaded model, prompts in, text out."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import queue
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack, get_type_hints

import msgspec

from edgellm.artifact import Manifest
from edgellm.errors import BadInputError, SpecError
from edgellm.protocols import SamplingParams
from edgellm.report import RuntimeInfo
from edgellm.runtime import arguments, session_file
from edgellm.runtime.cache_file import CacheSummary
from edgellm.runtime.constraints import ConstraintSpec
from edgellm.runtime.engine import Engine
from edgellm.runtime.prompts import Prompt
from edgellm.runtime.request import Completion, Overflow, Piece, Request, completion
from edgellm.runtime.scheduler import Counts
from edgellm.runtime.session import Session, restore
from edgellm.runtime.ticket import CancelledError, Ticket

if TYPE_CHECKING:
    from edgellm.process.offline import OfflineProof

R = TypeVar("R")


class Options(TypedDict, total=False):
    """Keyword arguments of a generation.

    Attributes:
        max_tokens: most tokens to draw; None goes on to the end of the answer or of the context.
        temperature: 0 takes the most likely token each time; 0.8 by default.
        top_k, top_p, min_p: keep the k best (40); the smallest set with probability p (0.95); what is at least min_p
            times as likely as the best (0.05).
        repeat_penalty: divides the logits of tokens seen lately; 1 by default, which is none.
        presence_penalty, frequency_penalty: taken off their logits, once and once for each time; 0 by default.
        logit_bias: token -> what is added to its logit.
        seed: the same seed gives the same text; None draws one.
        stop: texts that end the generation; they are not part of it.
        cache_prompt: reuse the KV cache of an earlier prompt that begins alike.
        owner: whose prompt this is: caches are never shared between owners, and owners take turns.
        deadline_s: seconds after which it ends with a DeadlineError.
        overflow: what happens where the context is too small: `error`, `shift` or `middle`.
        keep_tokens: tokens at the beginning that `shift` and `middle` keep.
        json_schema: the text is JSON that fits this schema (a dict, or its text).
        regex, grammar: the text fits this regular expression; this grammar in llguidance's notation or in GBNF.
        top_logprobs: log-probabilities of what is drawn, and of that many likely tokens beside.
        adapters: name -> scale of LoRA adapters that were loaded with the model.
        speculate: whether guesses may be tried; they never change the text.
    """

    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: dict[int, float]
    seed: int | None
    stop: Sequence[str]
    cache_prompt: bool
    owner: str
    deadline_s: float | None
    overflow: Overflow
    keep_tokens: int
    json_schema: dict[str, Any] | str | None
    regex: str | None
    grammar: str | None
    top_logprobs: int | None
    adapters: dict[str, float]
    speculate: bool


_SAMPLING: dict[str, Any] = {
    "temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repeat_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "logit_bias": {}, "seed": None,
}  # fmt: skip


# Options are checked with it before anything was said.
_ANY_MESSAGES = [{"role": "user", "content": "x"}]


class Stream(Iterator[Piece]):
    """Pieces of one generation; leaving the block, closing or forgetting it stops the generation."""

    def __init__(self, ticket: Ticket) -> None:
        self._ticket = ticket
        self._process = os.getpid()

    def __next__(self) -> Piece:
        _check_process(self._process)
        if self._ticket.done or self._ticket.cancelled:
            raise StopIteration
        try:
            return self._ticket.take()
        except CancelledError:
            raise StopIteration from None

    def close(self) -> None:
        """Stop the generation; safe to call from any thread, and twice. In a fork of the process it does nothing."""
        if os.getpid() == self._process:
            self._ticket.cancel()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class Model:
    """A loaded model. Thread-safe; generations run side by side, as many as it was loaded for, others wait.

    Get one from `edgellm.load`; use it as a context manager, or call `close`.
    """

    def __init__(self, engine: Engine, manifest: Manifest) -> None:
        self._engine = engine
        self.manifest = manifest
        self.context = engine.context
        self._process = os.getpid()
        # Also where nobody closes it: native memory must be released before the interpreter ends.
        self._release = weakref.finalize(self, _close_in, self._process, engine)

    @property
    def info(self) -> RuntimeInfo:
        """The engine as it runs."""
        return self._engine.info

    @property
    def offline_proof(self) -> OfflineProof | None:
        """What was seen of the network so far, all of it after `close`; None if not loaded with `offline_proof=True`."""
        return self._engine.offline_proof()

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be given; a plain string always can."""
        return self._engine.chat_template is not None

    @property
    def chat_template(self) -> str | None:
        """The model's own template of a conversation, Jinja; None where it has none."""
        return self._engine.chat_template

    def tokenize(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Token ids of a text, without a beginning-of-sequence token."""
        _check_process(self._process)
        return self._engine.tokenize(arguments.checked_text("text", text), bool(parse_special))

    def count_tokens(self, prompt: Prompt) -> int:
        """Tokens that a prompt (text or messages) becomes."""
        _check_process(self._process)
        return len(self._engine.encode(arguments.checked_prompt(prompt)))

    def counts(self) -> Counts:
        """What is going on: generations that run, wait, are done, were cancelled."""
        _check_process(self._process)
        return self._engine.counts()

    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Completion:
        """A whole generation; errors as in `stream`.

        Args:
            prompt: text, continued as it is; messages, which go through the model's chat template; or token ids.
            options: see `Options`.
        """
        return completion(list(self.stream(prompt, **options)))

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Stream:
        """Generate and yield text as it comes; closing the stream stops the generation. Arguments as in `generate`.

        It begins with the call, and runs on while nobody takes the pieces, up to some thousands of them.

        Raises:
            ContextOverflowError: the prompt does not fit.  SpecError: messages without a chat template.
            QueueFullError: too many wait already.  ValueError, TypeError: an argument out of bounds, or unknown.
            DeadlineError, BackendError: later, while pieces are taken.
        """
        return Stream(self._submit(prompt, options))

    async def agenerate(self, prompt: Prompt, **options: Unpack[Options]) -> Completion:
        """`generate` for asyncio; cancelling the task stops the generation."""
        return completion([piece async for piece in self.astream(prompt, **options)])

    async def astream(self, prompt: Prompt, **options: Unpack[Options]) -> AsyncIterator[Piece]:
        """`stream` for asyncio; cancelling the task, or leaving the loop, stops the generation."""
        import asyncio

        # As a stream, which stops where nobody holds it: a cancelled task does not wait for the thread.
        stream = await asyncio.to_thread(self.stream, prompt, **options)
        ticket = stream._ticket
        there = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(there.set)

        ticket.listen(wake)
        try:
            while not ticket.done:
                try:
                    piece = ticket.take(0)
                except queue.Empty:
                    await there.wait()
                    there.clear()
                    continue
                yield piece
        finally:
            stream.close()

    def chat(self, messages: Sequence[dict[str, object]], **options: Unpack[Options]) -> Completion:
        """The answer to messages; the same as `generate`, for readers of code."""
        return self.generate(messages, **options)

    def session(
        self,
        *,
        system: str | None = None,
        messages: Sequence[Mapping[str, Any]] = (),
        **options: Unpack[Options],
    ) -> Session:
        """A conversation that keeps its messages, and can be saved.

        Args:
            system: a message that says what the model is to do, before the others.
            messages: what was said before.
            options: of every turn.

        Raises:
            SpecError: the model has no chat template, or what was given are no messages.
            ValueError, TypeError: an option out of bounds, or unknown.
        """
        opening = [{"role": "system", "content": system}] if system is not None else []
        self._check_conversation(options)
        return Session(self, self._engine, make_request, messages=[*opening, *messages], options=options)

    def resume(self, path: str | Path, **options: Unpack[Options]) -> Session:
        """A conversation that `Session.save` saved, with its KV cache where that is there and fits this model.

        Args:
            options: of every turn from now on, instead of those in the file. The owner is always given here.

        Raises:
            MissingInputError: there is no such file.  BadInputError: it is no session.
            SpecError, ValueError, TypeError: as in `session`.
        """
        place = Path(path).expanduser().absolute()
        file = session_file.read(place)
        given: Options = {**_saved_options(place, file.options), **options}
        self._check_conversation(given)
        return Session(
            self, self._engine, make_request,
            messages=[msgspec.to_builtins(message) for message in file.messages], options=given,
            cut_messages=file.cut_messages, restored=restore(self._engine, place, file, given.get("owner", "")),
        )  # fmt: skip

    async def aresume(self, path: str | Path, **options: Unpack[Options]) -> Session:
        """`resume` for asyncio."""
        return await _in_thread(self.resume, path, **options)

    def save_cache(self, path: str | Path) -> CacheSummary:
        """Save the KV caches of earlier prompts, of all owners, to one file; generations go on meanwhile.

        It is signed with a key of this user on this machine, and belongs to this model file, these adapters and
        settings. At most `cache_bytes` are saved, the latest prompts first.

        Raises:
            OutputExistsError: another kind of file has that name.
            OutputError: it, or the key, cannot be written.  SpecError: `cache_bytes` is 0.
            UnsupportedError: this kind of model has no cache that can be used again.
            BadInputError: the model's file was changed since it was loaded; or the key cannot be used.
        """
        _check_process(self._process)
        return self._engine.save_cache(str(Path(path).expanduser().absolute()), None)

    def load_cache(self, path: str | Path) -> CacheSummary:
        """Restore what `save_cache` saved: prompts that begin alike, of the same owner, are not computed again.

        Raises:
            MissingInputError: there is no such file.
            BadInputError: it is damaged, another user's, or of another model or other settings; nothing of it is used.
            SpecError: it holds more than `cache_bytes`.  UnsupportedError: as in `save_cache`.
        """
        _check_process(self._process)
        return self._engine.load_cache(str(Path(path).expanduser().absolute()))

    async def asave_cache(self, path: str | Path) -> CacheSummary:
        """`save_cache` for asyncio."""
        return await _in_thread(self.save_cache, path)

    async def aload_cache(self, path: str | Path) -> CacheSummary:
        """`load_cache` for asyncio."""
        return await _in_thread(self.load_cache, path)

    def _check_conversation(self, options: Options) -> None:
        if not self.has_chat_template:
            raise SpecError(
                f"{self.manifest.model} has no chat template", hint="give the prompt as text to generate"
            )
        make_request(_ANY_MESSAGES, options)

    def _submit(self, prompt: Prompt, options: Options) -> Ticket:
        _check_process(self._process)
        return self._engine.submit(make_request(prompt, options))

    def close(self) -> None:
        """End what runs and release the memory; safe to call twice. Streams that are still read raise RuntimeError."""
        self._release()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def _in_thread(method: Callable[..., R], *arguments: Any, **options: Any) -> R:
    import asyncio  # here, because it is half of what this module would import

    return await asyncio.to_thread(method, *arguments, **options)


def _check_process(process_id: int) -> None:
    if os.getpid() != process_id:
        raise RuntimeError("this model was loaded in another process: load it after the fork")


def _close_in(process_id: int, engine: Engine) -> None:
    """Close an engine, unless this is a fork of the process it is in: it would end the other's child and wait for threads
    that are not there."""
    if os.getpid() == process_id:
        engine.close()


def make_request(prompt: Prompt, options: Options) -> Request:
    """A request with the defaults of the library.

    Raises:
        ValueError: an option out of bounds, or a lone surrogate.  TypeError: an unknown option, or one of a wrong kind.
    """
    given = arguments.checked_prompt(prompt)
    if isinstance(stop := options.get("stop", ()), str):
        raise TypeError(f"stop is {stop[:80]!r}, expected a list of strings")
    rest = arguments.checked_options(options, _kinds())
    sampling = SamplingParams(**{name: rest.pop(name, default) for name, default in _SAMPLING.items()})
    rest["constraint"] = _constraint(rest)
    return Request(prompt=given, sampling=sampling, **rest)


@functools.cache
def _kinds() -> dict[str, Any]:
    return get_type_hints(Options)


def _saved_options(path: Path, options: dict[str, Any]) -> Options:
    """Options from a file, checked.

    Raises:
        BadInputError: one is unknown, of a wrong kind or out of bounds.
    """
    try:
        if unknown := sorted(set(options) - set(Options.__annotations__) | set(options) & {"owner"}):
            raise ValueError(f"unknown option {unknown[0]!r}")
        found: Options = msgspec.convert(options, Options, str_keys=True)
        make_request(_ANY_MESSAGES, found)
    except (ValueError, TypeError, RecursionError, SpecError) as err:
        raise BadInputError(f"{path}: {str(err)[:200]}") from err
    return found


def _constraint(options: dict[str, Any]) -> ConstraintSpec | None:
    given = {kind: options.pop(kind, None) for kind in ("json_schema", "regex", "grammar")}
    asked = [(kind, value) for kind, value in given.items() if value is not None]
    if len(asked) > 1:
        raise ValueError(f"{asked[0][0]} and {asked[1][0]} together: give one")
    if not asked:
        return None
    kind, value = asked[0]
    try:
        text = value if isinstance(value, str) else json.dumps(value)
    except (TypeError, ValueError, RecursionError) as err:
        raise TypeError(f"{kind} is no JSON: {err}") from err
    return ConstraintSpec(kind=kind, text=text)  # type: ignore[arg-type]

"""The public class: one loaded model, prompts in, text out."""

from __future__ import annotations

import contextlib
import os
import queue
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

import msgspec

from edgellm.artifact import Manifest
from edgellm.errors import SpecError
from edgellm.formats.gguf_model import ENCODERS
from edgellm.report import RuntimeInfo
from edgellm.runtime import arguments, session_file
from edgellm.runtime.cache_file import CacheSummary
from edgellm.runtime.embedding import Batch, Embeddings, Texts, checked_texts
from edgellm.runtime.engine import Engine, generates_no_text
from edgellm.runtime.options import ANY_MESSAGES, Options, make_request, saved_options
from edgellm.runtime.prompts import Prompt
from edgellm.runtime.request import Completion, Piece, completion
from edgellm.runtime.scheduler import Counts
from edgellm.runtime.session import Session, restore
from edgellm.runtime.ticket import CancelledError, Ticket
from edgellm.runtime.tools import Tool, check_tools

if TYPE_CHECKING:
    from edgellm.process.proof import OfflineProof

R = TypeVar("R")


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

    @property
    def generates(self) -> bool:
        """Whether it generates text; an encoder gives embeddings only."""
        return self.manifest.architecture not in ENCODERS

    def tokenize(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Token ids of a text, without a beginning-of-sequence token."""
        _check_process(self._process)
        return self._engine.tokenize(arguments.checked_text("text", text), bool(parse_special))

    async def atokenize(self, text: str, *, parse_special: bool = False) -> list[int]:
        """`tokenize` for asyncio."""
        return await _in_thread(self.tokenize, text, parse_special=parse_special)

    def count_tokens(self, prompt: Prompt, *, tools: Sequence[Tool] | None = None) -> int:
        """Tokens that a prompt (text or messages, with the tools that it shows) becomes."""
        _check_process(self._process)
        return len(self._engine.encode(arguments.checked_prompt(prompt), check_tools(tools or [])))

    async def acount_tokens(self, prompt: Prompt, *, tools: Sequence[Tool] | None = None) -> int:
        """`count_tokens` for asyncio."""
        return await _in_thread(self.count_tokens, prompt, tools=tools)

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
            ContextOverflowError: the prompt does not fit.  SpecError: messages without a chat template, or tools that
                are none.  UnsupportedError: an embedding model.
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

    async def achat(self, messages: Sequence[dict[str, object]], **options: Unpack[Options]) -> Completion:
        """`chat` for asyncio; cancelling the task stops the generation."""
        return await self.agenerate(messages, **options)

    def embed(self, texts: Texts, *, normalize: bool = True) -> Embeddings:
        """One row for each text, pooled as the model's file says, or as it was loaded with.

        Args:
            texts: one text, texts, or token ids of texts. A prefix that the model wants before a text is part of it.
            normalize: rows of length 1, so that a product of two is their cosine. Files do not say whether a model's
                authors do that; nearly all do.

        Raises:
            ContextOverflowError: a text has more tokens than `context`; nothing is cut off.
            UnsupportedError: the file names no pooling, and the model was loaded without one.
            ValueError, TypeError: no texts, or something that is none.
        """
        batch = self._batch(normalize)
        for text in checked_texts(texts):
            batch.add(text)
        return batch.finish()

    async def aembed(self, texts: Texts, *, normalize: bool = True) -> Embeddings:
        """`embed` for asyncio; cancelling the task stops after the text that is computed now."""
        batch = self._batch(normalize)
        for text in checked_texts(texts):
            await _in_thread(batch.add, text)
        return batch.finish()

    def _batch(self, normalize: bool) -> Batch:
        _check_process(self._process)
        return Batch(self._engine.embed, normalize=normalize)

    def check_generates(self) -> None:
        """Refuse an encoder where text is to be generated.

        Raises:
            UnsupportedError: it is one.
        """
        if not self.generates:
            raise generates_no_text(self.manifest.model)

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
        given: Options = {**saved_options(place, file.options), **options}
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
        self.check_generates()
        if not self.has_chat_template:
            raise SpecError(
                f"{self.manifest.model} has no chat template", hint="give the prompt as text to generate"
            )
        make_request(ANY_MESSAGES, options)

    def _submit(self, prompt: Prompt, options: Options) -> Ticket:
        _check_process(self._process)
        self.check_generates()
        return self._engine.submit(make_request(prompt, options))

    def close(self) -> None:
        """End what runs and release the memory; safe to call twice. Streams that are still read raise RuntimeError."""
        self._release()

    async def aclose(self) -> None:
        """`close` for asyncio."""
        await _in_thread(self.close)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Model:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


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

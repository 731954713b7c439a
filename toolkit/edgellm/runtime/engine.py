"""A loaded model that takes requests: here in this process, or behind the same words in another."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgellm.errors import UnsupportedError
from edgellm.protocols import AskedPooling, Backend
from edgellm.report import RuntimeInfo
from edgellm.runtime.cache_file import CacheSummary
from edgellm.runtime.cache_identity import LoadedFiles
from edgellm.runtime.cache_store import CacheStore
from edgellm.runtime.constraints import Constraints
from edgellm.runtime.draft_model import check_draft
from edgellm.runtime.embedding import Embedded, Text, TextEmbedder
from edgellm.runtime.generation import Generation
from edgellm.runtime.overflow import fit_prompt
from edgellm.runtime.prefix_cache import Key
from edgellm.runtime.prompts import Prompt, PromptEncoder
from edgellm.runtime.request import Request
from edgellm.runtime.scheduler import MAX_QUEUE, Counts, Scheduler
from edgellm.runtime.ticket import Ticket
from edgellm.runtime.tokenizer import Tokenizer
from edgellm.runtime.tool_use import ToolUse
from edgellm.runtime.tools import Tool

if TYPE_CHECKING:
    from edgellm.process.proof import OfflineProof

HANG_S = 300.0  # without a sign of life for so long while it has work, an engine in a child hangs


class Engine(Protocol):
    """What the public class stands on; thread-safe."""

    context: int
    chat_template: str | None

    @property
    def info(self) -> RuntimeInfo:
        """The engine as it runs."""
        ...

    def submit(self, request: Request) -> Ticket:
        """Begin a generation. Errors of the request itself are raised here; later ones by the ticket."""
        ...

    def tokenize(self, text: str, parse_special: bool) -> list[int]:
        """Token ids of a text."""
        ...

    def encode(self, prompt: Prompt, tools: Sequence[Tool] = ()) -> list[int]:
        """Token ids of a prompt, with the functions that it shows."""
        ...

    def embed(self, text: Text, normalize: bool) -> Embedded:
        """The embedding of one text."""
        ...

    def counts(self) -> Counts:
        """What is going on."""
        ...

    def save_cache(self, path: str, request: Request | None) -> CacheSummary:
        """Save the prefix cache; of a request, only the state that has most of its prompt, or no file at all."""
        ...

    def load_cache(self, path: str) -> CacheSummary:
        """Restore what `save_cache` saved."""
        ...

    def offline_proof(self) -> OfflineProof | None:
        """What was seen of the network so far; None where nothing watches."""
        ...

    def close(self) -> None:
        """End what runs and release the memory; safe to call twice."""
        ...


class _Loaded:
    """What every model in this process can do."""

    def __init__(
        self, backend: Backend, name: str, context: int, tokenizer_path: Path | None, pooling: AskedPooling
    ) -> None:
        self._backend, self._name = backend, name
        self._draft: Backend | None = None
        self._tokenizer = Tokenizer(backend, tokenizer_path)
        self._prompts = PromptEncoder(backend, self._tokenizer, name)
        self._embedder = TextEmbedder(backend, self._tokenizer, context=context, pooling=pooling, name=name)
        self.context = context
        self.chat_template = backend.chat_template
        self._closed = False
        # The garbage collector may close this in any thread, in the middle of a call: the last to leave frees the model.
        self._lock = threading.RLock()
        self._n_inside = 1  # who runs it: the scheduler's thread, or the engine itself until it is closed

    @property
    def has_ended(self) -> bool:
        """Whether it takes no more requests: closed, or ended by a bug of ours."""
        return self._closed

    @property
    def info(self) -> RuntimeInfo:
        """The engine as it runs."""
        return self._backend.info

    def tokenize(self, text: str, parse_special: bool) -> list[int]:
        """Token ids of a text."""
        with self._inside():
            return self._tokenizer.encode(text, add_special=False, parse_special=parse_special)

    def encode(self, prompt: Prompt, tools: Sequence[Tool] = ()) -> list[int]:
        """Token ids of a prompt, with the functions that it shows."""
        with self._inside():
            return self._prompts.encode(prompt, tools)

    def embed(self, text: Text, normalize: bool) -> Embedded:
        """The embedding of one text; errors as in `TextEmbedder.embed`."""
        with self._inside():
            return self._embedder.embed(text, normalize)

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        """The model stays in memory until this block is left."""
        with self._lock:
            if self._closed:
                raise RuntimeError("this model is closed")
            self._n_inside += 1
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._n_inside -= 1
            is_last = self._n_inside == 0
        if is_last:
            self._embedder.close()
            self._backend.close()
            if self._draft:
                self._draft.close()


class LocalEngine(_Loaded):
    """The model in this process.

    Args:
        name: the model's, for errors.
        parallel: generations at once; each has `context` tokens of its own.
        cache_bytes: budget for prefixes of earlier prompts beyond those that are still in place.
        files: what was loaded, which saved caches belong to.
        pooling: how `embed` makes one row of a text; `model` is what the model's file says.
        draft: a smaller model with the same vocabulary that guesses; closed with the engine.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        name: str,
        context: int,
        tokenizer_path: Path | None = None,
        parallel: int = 1,
        max_queue: int = MAX_QUEUE,
        cache_bytes: int = 0,
        files: LoadedFiles | None = None,
        pooling: AskedPooling = "model",
        draft: Backend | None = None,
    ) -> None:
        if draft:
            check_draft(backend, draft)
        super().__init__(backend, name, context, tokenizer_path, pooling)
        self._draft = draft
        self._constraints = Constraints(backend)
        self._tool_use = ToolUse(backend)
        self.scheduler = Scheduler(
            backend, n_sequences=parallel, context=context, max_queue=max_queue, cache_bytes=cache_bytes,
            draft=draft, on_end=self._ended,
        )  # fmt: skip
        self._store = CacheStore(self.scheduler, backend, files)

    def submit(self, request: Request, ticket: Ticket | None = None) -> Ticket:
        """Begin a generation.

        Args:
            ticket: where its pieces go; by default a new one, which is returned.

        Raises:
            SpecError, BadInputError, ContextOverflowError: what the prompt or the constraint gives cause to.
            QueueFullError: too many wait already.  RuntimeError: closed.
        """
        ticket = ticket or Ticket(on_cancel=self.wake, on_taken=self.wake)
        with self._inside():
            self.scheduler.submit(self._prepared(request, ticket))
        return ticket

    def _prepared(self, request: Request, ticket: Ticket) -> Generation:
        self._backend.check_adapters(tuple(request.adapters.items()))
        beyond = next((t for t in request.sampling.logit_bias if t >= self._backend.vocab_size), None)
        if beyond is not None:
            raise ValueError(
                f"logit_bias of token {beyond}, outside the vocabulary of {self._backend.vocab_size}"
            )
        most_tokens = self.context if request.overflow == "error" else None
        ids, n_dropped = fit_prompt(
            self._prompts.encode(request.prompt, request.tools, most_tokens=most_tokens), context=self.context,
            policy=request.overflow,
            n_keep=request.keep_tokens, max_tokens=request.max_tokens,
        )  # fmt: skip
        spec = request.constraint or self._tool_use.enforced(request)
        constraint = self._constraints.prepare(spec, deferred=True) if spec else None
        return Generation(
            request, ids, backend=self._backend, ticket=ticket, started_s=ticket.asked_s, n_dropped=n_dropped,
            constraint=constraint, calls=self._tool_use.reader(request),
        )  # fmt: skip

    def counts(self) -> Counts:
        """What is going on."""
        return self.scheduler.counts()

    def save_cache(self, path: str, request: Request | None) -> CacheSummary:
        """Save the prefix cache; of a request, only the state that has most of its prompt, or no file at all."""
        with self._inside():
            if request is None:
                return self._store.save(Path(path))
            key = Key(request.owner, tuple(sorted(request.adapters.items())))
            return self._store.save_nearest(
                Path(path), key, self._prompts.encode(request.prompt, request.tools)
            )

    def load_cache(self, path: str) -> CacheSummary:
        """Restore what `save_cache` saved."""
        with self._inside():
            return self._store.load(Path(path))

    def offline_proof(self) -> OfflineProof | None:
        """None: a process cannot watch itself."""
        return None

    def wake(self) -> None:
        """Something changed that the scheduler should look at."""
        self.scheduler.wake()

    @property
    def is_waiting(self) -> bool:
        """Whether the scheduler waits for requests or consumers."""
        return self.scheduler.is_waiting

    def close(self) -> None:
        """End what runs and release the memory; safe to call twice."""
        self._closed = True
        self.scheduler.close()

    def _ended(self) -> None:
        self._closed = True
        self._leave()


class EmbeddingEngine(_Loaded):
    """An encoder in this process: it embeds texts, and generates none. Arguments as of `LocalEngine`.

    Raises:
        UnsupportedError: as in `TextEmbedder.prepare`.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        name: str,
        context: int,
        tokenizer_path: Path | None = None,
        pooling: AskedPooling = "model",
    ) -> None:
        super().__init__(backend, name, context, tokenizer_path, pooling)
        self._embedder.prepare()
        self._n_done = 0

    def submit(self, request: Request, ticket: Ticket | None = None) -> Ticket:
        """There is nothing to generate.

        Raises:
            UnsupportedError: always.
        """
        raise generates_no_text(self._name)

    def embed(self, text: Text, normalize: bool) -> Embedded:
        """The embedding of one text; errors as in `TextEmbedder.embed`."""
        found = super().embed(text, normalize)
        self._n_done += 1
        return found

    def counts(self) -> Counts:
        """Texts that are done; there is nothing else to count."""
        return Counts(0, 0, self._n_done, 0, 0, 0, 0, 0)

    def save_cache(self, path: str, request: Request | None) -> CacheSummary:
        """There is none.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(f"{self._name}: an embedding model: it keeps no cache")

    def load_cache(self, path: str) -> CacheSummary:
        """There is none; as `save_cache`."""
        return self.save_cache(path, None)

    def offline_proof(self) -> OfflineProof | None:
        """None: a process cannot watch itself."""
        return None

    def wake(self) -> None:
        """There is nobody to wake."""

    @property
    def is_waiting(self) -> bool:
        """True: it works in the threads of its callers only."""
        return True

    def close(self) -> None:
        """Release the memory, when the text that is computed is done; safe to call twice."""
        with self._lock:
            was_closed, self._closed = self._closed, True
        if not was_closed:
            self._leave()


def generates_no_text(name: str) -> UnsupportedError:
    """The error where text is asked of an encoder."""
    return UnsupportedError(
        f"{name}: an embedding model: it generates no text",
        hint="choose a model that does; in Python, edgellm.load(...).embed(texts) gives embeddings",
    )

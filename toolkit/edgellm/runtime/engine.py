"""A loaded model that takes requests: here in this process, or behind the same words in another."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgellm.protocols import Backend
from edgellm.report import RuntimeInfo
from edgellm.runtime.cache_file import CacheSummary
from edgellm.runtime.cache_identity import LoadedFiles
from edgellm.runtime.cache_store import CacheStore
from edgellm.runtime.constraints import Constraints
from edgellm.runtime.draft_model import check_draft
from edgellm.runtime.generation import Generation
from edgellm.runtime.overflow import fit_prompt
from edgellm.runtime.prefix_cache import Key
from edgellm.runtime.prompts import Prompt, PromptEncoder
from edgellm.runtime.request import Request
from edgellm.runtime.scheduler import MAX_QUEUE, Counts, Scheduler
from edgellm.runtime.ticket import Ticket
from edgellm.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from edgellm.process.offline import OfflineProof

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

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt."""
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


class LocalEngine:
    """The model in this process.

    Args:
        name: the model's, for errors.
        parallel: generations at once; each has `context` tokens of its own.
        cache_bytes: budget for prefixes of earlier prompts beyond those that are still in place.
        files: what was loaded, which saved caches belong to.
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
        draft: Backend | None = None,
    ) -> None:
        if draft:
            check_draft(backend, draft)
        self._backend, self._draft = backend, draft
        self._tokenizer = Tokenizer(backend, tokenizer_path)
        self._prompts = PromptEncoder(backend, self._tokenizer, name)
        self._constraints = Constraints(backend)
        self.context = context
        self.chat_template = backend.chat_template
        self._closed = False
        # The garbage collector may close this in any thread, in the middle of a call: the last to leave frees the model.
        self._lock = threading.RLock()
        self._n_inside = 1  # the scheduler's thread
        self.scheduler = Scheduler(
            backend, n_sequences=parallel, context=context, max_queue=max_queue, cache_bytes=cache_bytes,
            draft=draft, on_end=self._ended,
        )  # fmt: skip
        self._store = CacheStore(self.scheduler, backend, files)

    @property
    def info(self) -> RuntimeInfo:
        """The engine as it runs."""
        return self._backend.info

    def submit(self, request: Request, ticket: Ticket | None = None) -> Ticket:
        """Begin a generation.

        Args:
            ticket: where its pieces go; by default a new one, which is returned.

        Raises:
            SpecError, BadInputError, ContextOverflowError: what the prompt or the constraint gives cause to.
            QueueFullError: too many wait already.  RuntimeError: closed.
        """
        started_s = time.perf_counter()
        ticket = ticket or Ticket(on_cancel=self.scheduler.wake, on_taken=self.scheduler.wake)
        with self._inside():
            self.scheduler.submit(self._prepared(request, ticket, started_s))
        return ticket

    def _prepared(self, request: Request, ticket: Ticket, started_s: float) -> Generation:
        self._backend.check_adapters(tuple(request.adapters.items()))
        beyond = next((t for t in request.sampling.logit_bias if t >= self._backend.vocab_size), None)
        if beyond is not None:
            raise ValueError(
                f"logit_bias of token {beyond}, outside the vocabulary of {self._backend.vocab_size}"
            )
        most_tokens = self.context if request.overflow == "error" else None
        ids, n_dropped = fit_prompt(
            self._prompts.encode(request.prompt, most_tokens=most_tokens), context=self.context, policy=request.overflow,
            n_keep=request.keep_tokens, max_tokens=request.max_tokens,
        )  # fmt: skip
        constraint = (
            self._constraints.prepare(request.constraint, deferred=True) if request.constraint else None
        )
        return Generation(
            request, ids, backend=self._backend, ticket=ticket, started_s=started_s, n_dropped=n_dropped,
            constraint=constraint,
        )  # fmt: skip

    def tokenize(self, text: str, parse_special: bool) -> list[int]:
        """Token ids of a text."""
        with self._inside():
            return self._tokenizer.encode(text, add_special=False, parse_special=parse_special)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt."""
        with self._inside():
            return self._prompts.encode(prompt)

    def counts(self) -> Counts:
        """What is going on."""
        return self.scheduler.counts()

    def save_cache(self, path: str, request: Request | None) -> CacheSummary:
        """Save the prefix cache; of a request, only the state that has most of its prompt, or no file at all."""
        with self._inside():
            if request is None:
                return self._store.save(Path(path))
            key = Key(request.owner, tuple(sorted(request.adapters.items())))
            return self._store.save_nearest(Path(path), key, self._prompts.encode(request.prompt))

    def load_cache(self, path: str) -> CacheSummary:
        """Restore what `save_cache` saved."""
        with self._inside():
            return self._store.load(Path(path))

    def offline_proof(self) -> OfflineProof | None:
        """None: a process cannot watch itself."""
        return None

    def close(self) -> None:
        """End what runs and release the memory; safe to call twice."""
        self._closed = True
        self.scheduler.close()

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
            self._backend.close()
            if self._draft:
                self._draft.close()

    def _ended(self) -> None:
        self._closed = True
        self._leave()

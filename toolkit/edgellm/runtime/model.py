"""The public class: one loaded model, prompts in, text out."""

from __future__ import annotations

import contextlib
import inspect
import threading
import time
import weakref
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypedDict, Unpack

from edgellm.artifact import Manifest
from edgellm.errors import ContextOverflowError, SpecError
from edgellm.formats.records import Record
from edgellm.protocols import Backend, Feed, SamplingParams
from edgellm.report import Missing, RuntimeInfo
from edgellm.runtime import chat
from edgellm.runtime.text import TextAssembler
from edgellm.runtime.tokenizer import Tokenizer

FinishReason = Literal["stop", "length"]
Prompt = str | Sequence[chat.Message]


class Usage(Record):
    """What a generation took.

    Attributes:
        prompt_tokens, cached_tokens: tokens of the prompt, and how many of them were in the KV cache already.
        completion_tokens: tokens drawn, the end token included.
        ttft_s: from the call to the first token: waiting for other generations and tokenizing included.
        decode_s: from the first token to the last; the time that the caller keeps each piece is part of it.
        energy: why there is no figure in joules.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    ttft_s: float
    decode_s: float
    energy: Missing


class Piece(Record):
    """A part of a generation as it streams; the last one carries `finish_reason` and `usage`."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


class Completion(Record):
    """A whole generation."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    usage: Usage


class Options(TypedDict, total=False):
    """Keyword arguments of a generation; `Model.stream` says what they mean."""

    max_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    seed: int | None
    stop: Sequence[str]
    cache_prompt: bool


class Model:
    """A loaded model. Thread-safe: one generation runs at a time, others wait for it.

    A stream belongs to the thread that takes its first piece; take the others, or close it, in that thread too.

    Get one from `edgellm.load`; use it as a context manager, or call `close`.
    """

    def __init__(
        self, backend: Backend, manifest: Manifest, *, context: int, tokenizer_path: Path | None = None
    ) -> None:
        self._backend = backend
        self._tokenizer = Tokenizer(backend, tokenizer_path)
        self._batcher = backend.open(n_sequences=1, context=context)
        self._cached: list[int] = []
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._closed = False
        self._streams: weakref.WeakSet[Generator[Piece]] = weakref.WeakSet()
        self.manifest = manifest
        self.context = context

    @property
    def info(self) -> RuntimeInfo:
        """The engine as it runs."""
        return self._backend.info

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be given; a plain string always can."""
        return self._backend.chat_template is not None

    def tokenize(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Token ids of a text, without a beginning-of-sequence token."""
        with self._exclusive():
            return self._tokenizer.encode(text, add_special=False, parse_special=parse_special)

    def count_tokens(self, prompt: Prompt) -> int:
        """Tokens that a prompt (text or messages) becomes."""
        with self._exclusive():
            return len(self._encode(prompt))

    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Completion:
        """A whole generation; options, their defaults and errors as in `stream`."""
        text, ids = [], []
        for piece in self.stream(prompt, **options):
            text.append(piece.text)
            ids += piece.token_ids
            if piece.finish_reason and piece.usage:
                return Completion(
                    text="".join(text), token_ids=ids, finish_reason=piece.finish_reason, usage=piece.usage
                )
        raise AssertionError("a stream ends with a finish reason")

    def stream(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        repeat_penalty: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        cache_prompt: bool = True,
    ) -> Iterator[Piece]:
        """Generate and yield text as it comes; closing the iterator stops the generation.

        Args:
            prompt: text, continued as it is; or messages, which go through the model's chat template.
            max_tokens: most tokens to draw; None goes on to the end of the answer or of the context.
            temperature: 0 takes the most likely token each time.
            top_k, top_p, min_p: keep the k best; the smallest set with probability p; what is at least min_p times
                as likely as the best.
            seed: the same seed gives the same text; None draws one.
            stop: texts that end the generation; they are not part of it.
            cache_prompt: reuse the KV cache of an earlier prompt that begins alike.

        Raises:
            ContextOverflowError: the prompt does not fit.  SpecError: messages without a chat template.
            ValueError: an argument out of bounds.
        """
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens}, expected at least 1")
        sampling = SamplingParams(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repeat_penalty=repeat_penalty,
            seed=seed,
        )
        started = time.perf_counter()
        stream = self._stream(
            prompt, max_tokens, sampling, TextAssembler(stop), started, cache_prompt=cache_prompt
        )
        self._streams.add(stream)
        return stream

    def _stream(
        self,
        prompt: Prompt,
        max_tokens: int | None,
        sampling: SamplingParams,
        text: TextAssembler,
        started: float,
        *,
        cache_prompt: bool,
    ) -> Generator[Piece]:
        with self._exclusive():
            ids = self._encode(prompt)
            n_cached = self._prefill(ids, reuse=cache_prompt)
            room = self.context - len(ids)
            budget = min(max_tokens or room, room)
            feed: Sequence[int] = ids[n_cached:]
            first = last = started
            for n_drawn in range(1, budget + 1):
                token = self._step(feed, sampling)
                last = time.perf_counter()
                first = last if n_drawn == 1 else first
                ended = self._backend.is_end(token)
                shown = "" if ended else text.push(self._backend.token_bytes(token))
                done = ended or text.stopped or n_drawn == budget
                if not done:
                    feed = (token,)
                    yield Piece(text=shown, token_ids=[token])
                    continue
                reason: FinishReason = "stop" if ended or text.stopped else "length"
                usage = Usage(
                    prompt_tokens=len(ids), cached_tokens=n_cached, completion_tokens=n_drawn,
                    ttft_s=first - started, decode_s=last - first,
                    energy=Missing(quantity="energy_j", reason="energy per request is not measured by this version"),
                )  # fmt: skip
                yield Piece(text=shown + text.finish(), token_ids=[token], finish_reason=reason, usage=usage)
                return

    def _step(self, tokens: Sequence[int], sampling: SamplingParams) -> int:
        drawn = self._batcher.step([Feed(sequence=0, tokens=tokens, sampling=sampling)])[0].tokens[0]
        self._cached += tokens
        return drawn

    def _prefill(self, ids: list[int], *, reuse: bool) -> int:
        """Make the cache hold a prefix of `ids`, all but the last token at most; returns its length."""
        if len(ids) >= self.context:
            raise ContextOverflowError(
                f"the prompt has {len(ids)} tokens, the context holds {self.context}",
                hint="use a larger context (--context) or a shorter prompt",
            )
        common = 0
        if reuse and self._backend.capabilities.can_truncate:
            for a, b in zip(self._cached, ids[:-1], strict=False):
                if a != b:
                    break
                common += 1
        self._batcher.free(0) if common == 0 else self._batcher.truncate(0, common)
        self._batcher.reset_sampler(0)
        self._cached = self._cached[:common]
        return common

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            ids = self._tokenizer.encode(prompt, add_special=True, parse_special=False)
        else:
            template = self._backend.chat_template
            if template is None:
                raise SpecError(
                    f"{self.manifest.model} has no chat template",
                    hint="give the prompt as text (--raw on the command line)",
                )
            rendered = chat.render(
                template,
                prompt,
                bos_token=self._special(self._backend.bos_id),
                eos_token=self._special(self._backend.eos_id),
            )
            ids = self._tokenizer.encode(rendered, add_special=False, parse_special=True)
            bos = self._backend.bos_id
            if self._backend.add_bos and bos is not None and ids[:1] != [bos]:
                ids.insert(0, bos)
        if not ids:
            if self._backend.bos_id is None:
                raise SpecError("the prompt is empty", hint="give some text")
            ids = [self._backend.bos_id]
        return ids

    def _special(self, token: int | None) -> str:
        return "" if token is None else self._backend.token_text(token)

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        me = threading.get_ident()
        if self._owner == me:
            raise RuntimeError(
                "a stream of this model is still open in this thread: exhaust or close it first"
            )
        with self._lock:
            if self._closed:
                raise RuntimeError("this model is closed")
            self._owner = me
            try:
                yield
            finally:
                self._owner = None

    def close(self) -> None:
        """Release the model's memory; safe to call twice.

        Ends a stream that this thread left open; waits for a generation of another thread.
        """
        if self._owner == threading.get_ident():
            for stream in list(self._streams):
                if inspect.getgeneratorstate(stream) == inspect.GEN_SUSPENDED:
                    stream.close()
        with self._lock:
            if not self._closed:
                self._closed = True
                self._batcher.close()
                self._backend.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

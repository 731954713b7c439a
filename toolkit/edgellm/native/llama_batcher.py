"""KV caches of llama.cpp for several sequences, and one native call per step.

Sequences have streams of their own, so none sees another. The tokens in each cache are remembered here: a sampler
that is made in mid-sequence sees what came before it.
"""

from __future__ import annotations

import ctypes
import types
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgellm.errors import BackendError, ContextOverflowError, UnsupportedError
from edgellm.formats import ggml_types
from edgellm.native.llama_library import bindings, failure, forget_errors, last_error
from edgellm.native.llama_observer import GraphObserver
from edgellm.native.llama_options import FLASH_ATTENTION, LlamaOptions
from edgellm.native.llama_sampler import Sampler
from edgellm.protocols import Backend, Feed, FloatArray, Observer, Sampled

MAX_CONTEXT = 1 << 22


class LlamaBatcher:
    """KV caches for several sequences, and one native call per step; a Batcher.

    Raises:
        UnsupportedError: llama.cpp keeps no KV cache for this model, which is an encoder.
    """

    def __init__(
        self,
        model: Backend,
        handle: Any,
        options: LlamaOptions,
        *,
        n_sequences: int,
        context: int,
        observer: Observer | None = None,
    ) -> None:
        lib = bindings()
        if not 1 <= n_sequences <= lib.llama_max_parallel_sequences():
            raise ValueError(
                f"n_sequences is {n_sequences}, outside 1 to {lib.llama_max_parallel_sequences()}"
            )
        if not 1 <= context <= MAX_CONTEXT:
            raise ValueError(f"context is {context}, outside 1 to {MAX_CONTEXT}")
        self._ctx: Any = None
        self._model, self._lib = model, lib
        params = lib.llama_context_default_params()
        params.n_ctx = context * n_sequences
        params.n_seq_max = n_sequences
        params.n_batch, params.n_ubatch = options.n_batch, options.n_ubatch
        params.n_threads = options.n_threads
        params.n_threads_batch = options.n_threads_batch or options.n_threads
        params.flash_attn_type = FLASH_ATTENTION[options.flash_attention]
        params.type_k = params.type_v = ggml_types.BY_NAME[options.kv_type].number
        params.kv_unified = n_sequences == 1
        params.no_perf = True
        self._observer = GraphObserver(observer) if observer else None
        if self._observer:
            params.cb_eval = self._observer.callback
        forget_errors()
        self._ctx = lib.llama_init_from_model(handle, params)
        if not self._ctx:
            raise failure(
                f"llama.cpp cannot make a context of {n_sequences} x {context} tokens",
                hint="try a smaller --context or another KV type",
            )
        self._samplers: dict[int, Sampler] = {}
        self._memory = lib.llama_get_memory(self._ctx)
        if not self._memory:
            self.close()
            raise UnsupportedError(
                "this model gives embeddings: llama.cpp keeps no KV cache for it and generates no text"
            )
        self.n_sequences = n_sequences
        self.context = context
        self.n_batch = options.n_batch
        self._tokens: list[list[int]] = [[] for _ in range(n_sequences)]
        self._batch = _BatchArrays(lib, options.n_batch)

    def step(self, feeds: Sequence[Feed]) -> list[Sampled]:
        """Append each feed's tokens; draw a token and return logits where asked.

        A feed (or all feeds together) longer than n_batch becomes several native calls.

        Raises:
            ContextOverflowError: a sequence would grow past its context; nothing was appended.
            ValueError: a sequence or token that does not exist, or two feeds for one sequence; nothing was appended.
            BackendError: the native call failed.

        What an observer raised is raised too; `truncate` or `free` the sequences of that step before going on.
        """
        self._check_open()
        for feed in feeds:
            self._check_feed(feed)
        if len({feed.sequence for feed in feeds}) < len(feeds):
            raise ValueError("two feeds for one sequence in one step")
        results: list[Sampled] = []
        group: list[Feed] = []
        n_in_group = 0
        for feed in feeds:
            if group and n_in_group + len(feed.tokens) > self.n_batch:
                results += self._run(group)
                group, n_in_group = [], 0
            group.append(feed)
            n_in_group += len(feed.tokens)
        return results + self._run(group) if group else results

    def _check_open(self) -> None:
        if not self._ctx:
            raise RuntimeError("this batcher is closed")

    def _check_sequence(self, sequence: int) -> None:
        if not 0 <= sequence < self.n_sequences:
            raise ValueError(f"sequence {sequence} is outside 0 to {self.n_sequences - 1}")

    def _check_feed(self, feed: Feed) -> None:
        self._check_sequence(feed.sequence)
        if not feed.tokens:
            raise ValueError(f"sequence {feed.sequence} was fed no tokens")
        low, high, n_vocab = min(feed.tokens), max(feed.tokens), self._model.vocab_size
        if low < 0 or high >= n_vocab:
            bad = low if low < 0 else high
            raise ValueError(
                f"sequence {feed.sequence} was fed token {bad}, outside the vocabulary of {n_vocab}"
            )
        wanted = len(self._tokens[feed.sequence]) + len(feed.tokens)
        if wanted > self.context:
            raise ContextOverflowError(
                f"{wanted} tokens do not fit the context of {self.context}",
                hint="use a larger --context or a shorter prompt",
            )

    def _run(self, feeds: list[Feed]) -> list[Sampled]:
        if len(feeds) == 1 and len(feeds[0].tokens) > self.n_batch:
            return [self._run_long(feeds[0])]
        self._batch.clear()
        last_rows = []
        for feed in feeds:
            last = feed.sampling is not None or feed.want != "none"
            start = len(self._tokens[feed.sequence])
            last_rows.append(
                self._batch.append(feed.tokens, feed.sequence, start, last=last, every=feed.want == "all")
            )
        self._decode()
        results = []
        for feed, row in zip(feeds, last_rows, strict=True):
            self._tokens[feed.sequence] += feed.tokens
            results.append(self._collect(feed, row))
        return results

    def _run_long(self, feed: Feed) -> Sampled:
        rows: list[FloatArray] = []
        tokens = feed.tokens
        for start in range(0, len(tokens), self.n_batch):
            is_last = start + self.n_batch >= len(tokens)
            want = feed.want if is_last or feed.want == "all" else "none"
            part = Feed(
                sequence=feed.sequence,
                tokens=tokens[start : start + self.n_batch],
                sampling=feed.sampling if is_last else None,
                want=want,
            )
            done = self._run([part])[0]
            if done.logits is not None:
                rows.append(done.logits)
        return Sampled(tokens=done.tokens, logits=np.concatenate(rows) if rows else None)

    def _decode(self) -> None:
        def decode() -> int:
            return int(self._lib.llama_decode(self._ctx, self._batch.struct))

        code = self._observer.run(decode) if self._observer else decode()
        if code == 1:
            raise ContextOverflowError(
                f"no room in the KV cache of {self.n_sequences} x {self.context} tokens"
            )
        if code:
            raise BackendError(f"llama_decode failed with code {code}: {last_error()}")

    def _collect(self, feed: Feed, last_row: int) -> Sampled:
        logits = None
        if feed.want == "all":
            first = last_row - len(feed.tokens) + 1
            logits = np.stack([self._row(first + i) for i in range(len(feed.tokens))])
        elif feed.want == "last":
            logits = self._row(last_row)[np.newaxis].copy()
        sampler = self._samplers.get(feed.sequence)
        if sampler is not None:
            sampler.accept_fed(feed.tokens)
        if feed.sampling is None:
            return Sampled(tokens=[], logits=logits)
        if sampler is None or sampler.params != feed.sampling:
            sampler = Sampler(self._lib, feed.sampling, self._model.vocab_size)
            sampler.accept(self._tokens[feed.sequence])
            self._samplers[feed.sequence] = sampler
        return Sampled(tokens=[sampler.draw(self._ctx, last_row, self._row)], logits=logits)

    def _row(self, index: int) -> FloatArray:
        pointer = self._lib.llama_get_logits_ith(self._ctx, index)
        if not pointer:
            raise BackendError(f"no logits for row {index}: {last_error()}")
        return np.ctypeslib.as_array(pointer, shape=(self._model.vocab_size,))

    def length(self, sequence: int) -> int:
        """Tokens in that sequence's cache."""
        self._check_sequence(sequence)
        return len(self._tokens[sequence])

    def truncate(self, sequence: int, n_tokens: int) -> None:
        """Keep the first n_tokens of a sequence.

        Raises:
            UnsupportedError: this cache (sliding window, recurrent) cannot.
        """
        self._check_open()
        self._check_sequence(sequence)
        if n_tokens < 0:
            raise ValueError(f"n_tokens is {n_tokens}, expected 0 or more")
        if n_tokens and not self._model.capabilities.can_truncate:
            if n_tokens >= len(self._tokens[sequence]):
                return
            raise UnsupportedError("this model's cache cannot be truncated")
        # Also where nothing is known to lie behind: Ctrl-C may have come between a decode and our books.
        if not self._lib.llama_memory_seq_rm(self._memory, sequence, n_tokens, -1):
            raise UnsupportedError("this model's cache cannot be truncated")
        del self._tokens[sequence][n_tokens:]

    def copy_prefix(self, source: int, destination: int, n_tokens: int) -> None:
        """Make `destination` the first n_tokens of `source`: a full copy, then the rest removed.

        Raises:
            UnsupportedError: this cache (sliding window, recurrent) cannot.
        """
        self._check_open()
        self._check_sequence(source)
        self._check_sequence(destination)
        if not 0 <= n_tokens <= len(self._tokens[source]):
            raise ValueError(f"n_tokens is {n_tokens}, sequence {source} has {len(self._tokens[source])}")
        if not self._model.capabilities.can_copy:
            raise UnsupportedError("this model's cache cannot be copied")
        if source != destination:
            self.free(destination)
            self._lib.llama_memory_seq_cp(self._memory, source, destination, -1, -1)
            self._tokens[destination] = list(self._tokens[source])
        self.truncate(destination, n_tokens)

    def reset_sampler(self, sequence: int) -> None:
        """Forget a sequence's sampler, so that its seed starts anew; the cache stays."""
        self._samplers.pop(sequence, None)

    def free(self, sequence: int) -> None:
        """Forget a sequence and its sampler."""
        self._check_open()
        self._check_sequence(sequence)
        self._lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        self._tokens[sequence] = []
        self._samplers.pop(sequence, None)

    def close(self) -> None:
        """Release the caches; safe to call twice."""
        self._samplers.clear()
        if self._ctx:
            self._lib.llama_free(self._ctx)
            self._ctx = None

    def __del__(self) -> None:
        if getattr(self, "_ctx", None):
            self.close()


class _BatchArrays:
    """A llama_batch over numpy arrays of our own, so that filling it costs no call per token."""

    def __init__(self, lib: types.ModuleType, capacity: int) -> None:
        self._tokens = np.zeros(capacity, dtype=np.int32)
        self._positions = np.zeros(capacity, dtype=np.int32)
        self._counts = np.ones(capacity, dtype=np.int32)
        self._sequences = np.zeros(capacity, dtype=np.int32)
        first = self._sequences.ctypes.data
        self._pointers = np.arange(first, first + 4 * capacity, 4, dtype=np.uintp)
        self._outputs = np.zeros(capacity, dtype=np.int8)
        self.struct = lib.llama_batch(
            n_tokens=0,
            token=_pointer(self._tokens, ctypes.c_int32),
            embd=None,
            pos=_pointer(self._positions, ctypes.c_int32),
            n_seq_id=_pointer(self._counts, ctypes.c_int32),
            seq_id=ctypes.cast(self._pointers.ctypes.data, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            logits=_pointer(self._outputs, ctypes.c_int8),
        )

    def clear(self) -> None:
        self.struct.n_tokens = 0

    def append(self, tokens: Sequence[int], sequence: int, start: int, *, last: bool, every: bool) -> int:
        """Add tokens at positions start.. and return the row of the last one."""
        a: int = self.struct.n_tokens
        b = a + len(tokens)
        if b == a + 1:
            self._tokens[a], self._positions[a], self._sequences[a] = tokens[0], start, sequence
            self._outputs[a] = last or every
        else:
            self._tokens[a:b] = tokens
            self._positions[a:b] = np.arange(start, start + len(tokens))
            self._sequences[a:b] = sequence
            self._outputs[a:b] = every
            self._outputs[b - 1] = last or every
        self.struct.n_tokens = b
        last_row: int = b - 1
        return last_row


def _pointer(array: npt.NDArray[Any], kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))

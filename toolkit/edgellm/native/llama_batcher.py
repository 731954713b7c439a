"""KV caches of llama.cpp for several sequences, and one native call per step.

Sequences have streams of their own, so none sees another. The tokens in each cache are remembered here: a sampler
that is made in mid-sequence sees what came before it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from edgellm.errors import BackendError, ContextOverflowError, UnsupportedError
from edgellm.formats import ggml_types
from edgellm.native.llama_adapters import LoadedAdapters
from edgellm.native.llama_batch import BatchArrays
from edgellm.native.llama_library import bindings, failure, forget_errors, last_error
from edgellm.native.llama_observer import GraphObserver
from edgellm.native.llama_options import FLASH_ATTENTION, LlamaOptions
from edgellm.native.llama_sampler import Sampler
from edgellm.protocols import Backend, Feed, FloatArray, Observer, Sampled

MAX_CONTEXT = 1 << 22
# So many tokens of a sequence get a call of their own: flash attention has another way to compute them, and llama.cpp cuts
# a call for several sequences into parts of equal length.
ALONE_TOKENS = 64


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
        adapters: LoadedAdapters,
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
        self._batch = BatchArrays(lib, options.n_batch)
        self._adapters = adapters.of_context(self._ctx)
        self._logits = np.empty((0, 0), dtype=np.float32)
        self._logits_at = (0, 0)

    def step(self, feeds: Sequence[Feed]) -> list[Sampled]:
        """Append each feed's tokens; draw a token and return logits where asked.

        One native call for all sequences that draw; others for pieces of prompts, and for each set of adapters.

        Raises:
            ContextOverflowError: a sequence would grow past its context; nothing was appended.
            ValueError: a sequence, token or adapter that does not exist, a draft that cannot be checked, or two feeds
                for one sequence; nothing was appended.
            BackendError: the native call failed.

        What an observer raised is raised too; `truncate` or `free` the sequences of that step before going on.
        """
        self._check_open()
        for feed in feeds:
            self._check_feed(feed)
        if len({feed.sequence for feed in feeds}) < len(feeds):
            raise ValueError("two feeds for one sequence in one step")
        if len(feeds) == 1:
            return self._run(list(feeds))
        results: dict[int, Sampled] = {}
        for group in self._groups(feeds):
            results |= zip([feed.sequence for feed in group], self._run(group), strict=True)
        return [results[feed.sequence] for feed in feeds]

    def _groups(self, feeds: Sequence[Feed]) -> Iterator[list[Feed]]:
        """Feeds that one native call can take: the same adapters, and no more than n_batch tokens."""
        for adapters in dict.fromkeys(feed.adapters for feed in feeds):
            group: list[Feed] = []
            n_in_group = 0
            for feed in feeds:
                if feed.adapters != adapters:
                    continue
                n_tokens = len(feed.tokens) + len(feed.draft)
                if n_tokens >= ALONE_TOKENS:
                    yield [feed]
                    continue
                if group and n_in_group + n_tokens > self.n_batch:
                    yield group
                    group, n_in_group = [], 0
                group.append(feed)
                n_in_group += n_tokens
            if group:
                yield group

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
        n_vocab = self._model.vocab_size
        for tokens in (feed.tokens, feed.draft):
            if tokens and (min(tokens) < 0 or max(tokens) >= n_vocab):
                bad = next(token for token in tokens if not 0 <= token < n_vocab)
                raise ValueError(
                    f"sequence {feed.sequence} was fed token {bad}, outside the vocabulary of {n_vocab}"
                )
        if feed.adapters:
            self._adapters.check(feed.adapters)
        if feed.draft:
            self._check_draft(feed)
        wanted = len(self._tokens[feed.sequence]) + len(feed.tokens) + len(feed.draft)
        if wanted > self.context:
            raise ContextOverflowError(
                f"{wanted} tokens do not fit the context of {self.context}",
                hint="use a larger --context or a shorter prompt",
            )

    def _check_draft(self, feed: Feed) -> None:
        if feed.sampling is None or feed.want == "all":
            raise ValueError("a draft is checked by drawing: it needs sampling, and not all rows")
        if len(feed.tokens) + len(feed.draft) > self.n_batch:
            raise ValueError(
                f"{len(feed.tokens)} tokens and a draft of {len(feed.draft)} exceed a batch of {self.n_batch}"
            )
        if not self._model.capabilities.can_truncate:
            raise ValueError("this model's cache cannot be truncated, so no draft can be tried")

    def _run(self, feeds: list[Feed]) -> list[Sampled]:
        if len(feeds) == 1 and len(feeds[0].tokens) > self.n_batch:
            return [self._run_long(feeds[0])]
        self._adapters.use(feeds[0].adapters)
        self._batch.clear()
        firsts = []
        for feed in feeds:
            start = len(self._tokens[feed.sequence])
            firsts.append(self._batch.append(feed, start))
        self._decode()
        rows = self._rows()
        results = []
        for feed, (row, output) in zip(feeds, firsts, strict=True):
            self._tokens[feed.sequence] += feed.tokens
            results.append(self._collect(feed, row, output, rows))
        return results

    def _run_long(self, feed: Feed) -> Sampled:
        rows: list[FloatArray] = []
        tokens = feed.tokens
        for start in range(0, len(tokens), self.n_batch):
            is_last = start + self.n_batch >= len(tokens)
            want = feed.want if is_last or feed.want == "all" else "none"
            part = Feed(
                sequence=feed.sequence, tokens=tokens[start : start + self.n_batch], want=want,
                sampling=feed.sampling if is_last else None, constraint=feed.constraint, adapters=feed.adapters,
            )  # fmt: skip
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

    def _rows(self) -> FloatArray:
        """(n_outputs, n_vocab) logits of the last call, in the library's own memory."""
        n_outputs, n_vocab = self._batch.n_outputs, self._model.vocab_size
        if not n_outputs:
            return np.empty((0, n_vocab), dtype=np.float32)
        address = ctypes.cast(self._lib.llama_get_logits(self._ctx), ctypes.c_void_p).value
        if not address:
            raise BackendError(f"no logits: {last_error()}")
        if (address, n_outputs) != self._logits_at:
            buffer = (ctypes.c_float * (n_outputs * n_vocab)).from_address(address)
            self._logits_at = (address, n_outputs)
            self._logits = np.ctypeslib.as_array(buffer).reshape(n_outputs, n_vocab)
        return self._logits

    def _collect(self, feed: Feed, row: int, output: int, rows: FloatArray) -> Sampled:
        """What a feed asked for; its first output is in batch row `row`, and row `output` of `rows`."""
        logits = None
        if feed.want == "all":
            logits = rows[output : output + len(feed.tokens)].copy()
            row, output = row + len(feed.tokens) - 1, output + len(feed.tokens) - 1
        sampler = self._samplers.get(feed.sequence)
        if sampler is not None:
            sampler.accept_fed(feed.tokens)
        if feed.sampling is None:
            return Sampled(
                tokens=[], logits=rows[output : output + 1].copy() if feed.want == "last" else logits
            )
        if sampler is None or sampler.params != feed.sampling:
            sampler = Sampler(self._lib, feed.sampling, self._model.vocab_size)
            sampler.accept(self._tokens[feed.sequence])
            self._samplers[feed.sequence] = sampler
        drawn: list[int] = []
        wanted: list[FloatArray] = []
        for i in range(len(feed.draft) + 1):
            if feed.want == "last":
                wanted.append(rows[output + i].copy())
            if feed.constraint is not None:
                feed.constraint.mask(rows[output + i])
            token = sampler.draw(self._ctx, row + i, rows[output + i])
            drawn.append(token)
            if feed.constraint is not None:
                feed.constraint.accept(token)
            if i == len(feed.draft) or token != feed.draft[i] or self._model.is_end(token):
                break
        if feed.draft:
            self._keep_right(feed, len(drawn) - 1)
        return Sampled(tokens=drawn, logits=np.stack(wanted) if wanted else logits)

    def _keep_right(self, feed: Feed, n_right: int) -> None:
        """Take the guesses that were wrong out of the cache."""
        tokens = self._tokens[feed.sequence]
        tokens += feed.draft[:n_right]
        if n_right < len(feed.draft):
            self._lib.llama_memory_seq_rm(self._memory, feed.sequence, len(tokens), -1)

    def length(self, sequence: int) -> int:
        """Tokens in that sequence's cache."""
        self._check_sequence(sequence)
        return len(self._tokens[sequence])

    def tokens(self, sequence: int) -> Sequence[int]:
        """The tokens in that sequence's cache; valid until the next step, not to be changed."""
        self._check_sequence(sequence)
        return self._tokens[sequence]

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

    def shift(self, sequence: int, n_keep: int, n_drop: int) -> None:
        """Forget n_drop tokens after the first n_keep; what follows moves up, its keys are rotated anew.

        Raises:
            UnsupportedError: positions of this model are no rotations, or its cache cannot be truncated.
        """
        self._check_open()
        self._check_sequence(sequence)
        tokens = self._tokens[sequence]
        if n_keep < 0 or n_drop < 1 or n_keep + n_drop > len(tokens):
            raise ValueError(f"cannot drop {n_drop} tokens after {n_keep} of {len(tokens)}")
        if not self._model.capabilities.can_shift:
            raise UnsupportedError("this model's cache cannot be shifted")
        rest = n_keep + n_drop
        if not self._lib.llama_memory_seq_rm(self._memory, sequence, n_keep, rest):
            raise UnsupportedError("this model's cache cannot be truncated")
        self._lib.llama_memory_seq_add(self._memory, sequence, rest, -1, -n_drop)
        del tokens[n_keep:rest]

    def state_bytes(self, sequence: int) -> int:
        """Bytes that `save` would give."""
        self._check_open()
        self._check_sequence(sequence)
        return int(self._lib.llama_state_seq_get_size(self._ctx, sequence))

    def save(self, sequence: int) -> bytearray:
        """A sequence's cache as bytes, for `load` of a batcher of the same model and options."""
        state = bytearray(self.state_bytes(sequence))
        buffer = (ctypes.c_uint8 * len(state)).from_buffer(state)
        done = self._lib.llama_state_seq_get_data(self._ctx, buffer, len(state), sequence)
        if done != len(state):
            raise BackendError(f"llama.cpp wrote {done} of {len(state)} bytes of sequence {sequence}")
        return state

    def load(self, sequence: int, state: bytes | bytearray, tokens: Sequence[int]) -> None:
        """Replace a sequence's cache by what `save` gave for these tokens.

        Raises:
            BackendError: it is not such a state; the sequence is empty then.
        """
        self.free(sequence)
        if len(tokens) > self.context:
            raise ContextOverflowError(f"{len(tokens)} tokens do not fit the context of {self.context}")
        forget_errors()
        buffer = np.frombuffer(state, dtype=np.uint8).ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        done = self._lib.llama_state_seq_set_data(self._ctx, buffer, len(state), sequence)
        last = self._lib.llama_memory_seq_pos_max(self._memory, sequence)
        if done != len(state) or last != len(tokens) - 1:
            self.free(sequence)
            raise BackendError(f"not a state of {len(tokens)} tokens of this model: {last_error()}")
        self._tokens[sequence] = list(tokens)

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

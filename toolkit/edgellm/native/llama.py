"""llama.cpp behind the Backend and Batcher protocols, through llama-cpp-python's low-level declarations.

Every option is named here and checked here; what llama.cpp logs as an error becomes the text of ours.
Not thread-safe: one caller at a time per model. Files must have been validated before they come here.
"""

from __future__ import annotations

import ctypes
import functools
import types
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgellm.errors import (
    BackendError,
    BackendUnavailable,
    ContextOverflowError,
    SpecError,
    UnsupportedError,
)
from edgellm.formats import ggml_types
from edgellm.formats.records import Record
from edgellm.native import library
from edgellm.native.llama_sampler import Sampler
from edgellm.protocols import Capabilities, Feed, FloatArray, Sampled
from edgellm.report import RuntimeInfo

KV_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
MAX_CONTEXT = 1 << 22
_errors: deque[str] = deque(maxlen=20)


class LlamaOptions(Record):
    """How a model is run.

    Attributes:
        n_threads: threads of a decode step;  n_threads_batch: of a prefill (0: the same).
        kv_type: ggml type of the KV cache.
        flash_attention: `auto`, `on` or `off`; a quantized V cache needs it on.
        gpu_layers: `auto` uses a GPU where the library has one; a number asks for that many layers.
        n_batch: most tokens in one native call;  n_ubatch: most tokens computed at once.
        mmap: map the file instead of reading it.
    """

    n_threads: int
    n_threads_batch: int = 0
    kv_type: str = "F16"
    flash_attention: Literal["auto", "on", "off"] = "auto"
    gpu_layers: int | Literal["auto"] = "auto"
    n_batch: int = 2048
    n_ubatch: int = 512
    mmap: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.n_threads <= 1024 or not 0 <= self.n_threads_batch <= 1024:
            raise ValueError(f"n_threads is {self.n_threads}/{self.n_threads_batch}, outside 1 to 1024")
        if not 1 <= self.n_ubatch <= self.n_batch <= 1 << 16:
            raise ValueError(
                f"n_ubatch {self.n_ubatch} and n_batch {self.n_batch} must be 1 <= ubatch <= batch <= 65536"
            )


class LlamaModel:
    """One GGUF file loaded by llama.cpp; a Backend.

    Raises:
        SpecError: an unknown KV type.  BackendError: llama.cpp refuses the file; its own words are in the message.
    """

    def __init__(self, path: Path, options: LlamaOptions, *, vocab_only: bool = False) -> None:
        if options.kv_type not in KV_TYPES:
            raise SpecError(
                f"unknown KV cache type {options.kv_type!r}", hint=f"one of: {', '.join(KV_TYPES)}"
            )
        self._lib = _library()
        self._model: Any = None
        self.options = options
        params = self._lib.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = self._gpu_layers()
        params.load_mode = self._lib.LLAMA_LOAD_MODE_MMAP if options.mmap else self._lib.LLAMA_LOAD_MODE_NONE
        _errors.clear()
        self._model = self._lib.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise BackendError(
                f"{path}: llama.cpp cannot load it: {_last_error()}", hint="check it with: edgellm verify"
            )
        self._vocab = self._lib.llama_model_get_vocab(self._model)
        self.vocab_size: int = self._lib.llama_vocab_n_tokens(self._vocab)
        self.context_train: int = self._lib.llama_model_n_ctx_train(self._model)
        bos = self._lib.llama_vocab_bos(self._vocab)
        self.bos_id: int | None = bos if bos >= 0 else None
        eos = self._lib.llama_vocab_eos(self._vocab)
        self.eos_id: int | None = eos if eos >= 0 else None
        self.add_bos: bool = bool(self._lib.llama_vocab_get_add_bos(self._vocab))
        template = self._lib.llama_model_chat_template(self._model, None)
        self.chat_template: str | None = template.decode("utf-8", errors="replace") if template else None
        self._pieces: dict[int, bytes] = {}
        simple_cache = not vocab_only and not (
            self._lib.llama_model_is_recurrent(self._model)
            or self._lib.llama_model_is_hybrid(self._model)
            or self._lib.llama_model_n_swa(self._model)
        )
        self.capabilities = Capabilities(
            can_truncate=simple_cache, can_copy=simple_cache, can_shift=False, lora=False, observer=False
        )

    def _gpu_layers(self) -> int:
        has_gpu = bool(self._lib.llama_supports_gpu_offload())
        if self.options.gpu_layers == "auto":
            return 999 if has_gpu else 0
        if self.options.gpu_layers and not has_gpu:
            raise UnsupportedError(
                f"gpu_layers is {self.options.gpu_layers}, but this build of llama.cpp has no GPU backend",
                hint="use --gpu-layers auto or 0, or install a build with Metal, CUDA or Vulkan",
            )
        return self.options.gpu_layers

    @property
    def info(self) -> RuntimeInfo:
        """The engine as it runs."""
        has_gpu = bool(self._lib.llama_supports_gpu_offload())
        return RuntimeInfo(
            engine="llama.cpp",
            engine_version=self._lib.llama_version().decode(errors="replace"),
            binding=f"llama-cpp-python {_binding_version()}",
            backend_asked=f"gpu_layers={self.options.gpu_layers}",
            backend_actual="gpu" if has_gpu and self._gpu_layers() else "cpu",
            build_features=self._lib.llama_print_system_info().decode(errors="replace").strip(),
            n_threads=self.options.n_threads,
            kv_type=self.options.kv_type,
            flash_attention=self.options.flash_attention,
            mmap=self.options.mmap,
            n_batch=self.options.n_batch,
        )

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Text to token ids by llama.cpp's own tokenizer."""
        data = text.encode("utf-8", errors="replace")
        capacity = len(data) + 16
        buffer = (ctypes.c_int32 * capacity)()
        n = self._lib.llama_tokenize(
            self._vocab, data, len(data), buffer, capacity, add_special, parse_special
        )
        if n < 0:
            buffer = (ctypes.c_int32 * -n)()
            n = self._lib.llama_tokenize(self._vocab, data, len(data), buffer, -n, add_special, parse_special)
        if n < 0:
            raise BackendError(f"llama.cpp cannot tokenize a text of {len(data)} bytes")
        return list(buffer[:n])

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token stands for; empty for control tokens."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._piece(token, special=False)
        return piece

    def token_text(self, token: int) -> str:
        """The token as the vocabulary writes it, control tokens included."""
        return self._piece(token, special=True).decode("utf-8", errors="replace")

    def _piece(self, token: int, *, special: bool) -> bytes:
        if not 0 <= token < self.vocab_size:
            raise ValueError(f"token {token} is outside the vocabulary of {self.vocab_size}")
        buffer = ctypes.create_string_buffer(64)
        n = self._lib.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        if n < 0:
            buffer = ctypes.create_string_buffer(-n)
            n = self._lib.llama_token_to_piece(self._vocab, token, buffer, -n, 0, special)
        return buffer.raw[:n]

    def is_end(self, token: int) -> bool:
        """Whether this token ends a generation (end of sequence, end of turn)."""
        return bool(self._lib.llama_vocab_is_eog(self._vocab, token))

    def open(self, *, n_sequences: int = 1, context: int) -> LlamaBatcher:
        """Make KV caches for that many sequences of `context` tokens each."""
        return LlamaBatcher(self, self._lib, self._model, n_sequences=n_sequences, context=context)

    def close(self) -> None:
        """Release the weights; safe to call twice. Batchers must be closed before."""
        if self._model:
            self._lib.llama_model_free(self._model)
            self._model = None

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self.close()


class LlamaBatcher:
    """KV caches for several sequences, and one native call per step; a Batcher."""

    def __init__(
        self, model: LlamaModel, lib: types.ModuleType, handle: Any, *, n_sequences: int, context: int
    ) -> None:
        if not 1 <= n_sequences <= lib.llama_max_parallel_sequences():
            raise ValueError(
                f"n_sequences is {n_sequences}, outside 1 to {lib.llama_max_parallel_sequences()}"
            )
        if not 1 <= context <= MAX_CONTEXT:
            raise ValueError(f"context is {context}, outside 1 to {MAX_CONTEXT}")
        self._ctx: Any = None
        self._model, self._lib = model, lib
        options = model.options
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
        _errors.clear()
        self._ctx = lib.llama_init_from_model(handle, params)
        if not self._ctx:
            raise BackendError(
                f"llama.cpp cannot make a context of {n_sequences} x {context} tokens: {_last_error()}",
                hint="try a smaller --context or another KV type",
            )
        self._memory = lib.llama_get_memory(self._ctx)
        self.n_sequences = n_sequences
        self.context = context
        self.n_batch = options.n_batch
        self._lengths = [0] * n_sequences
        self._samplers: dict[int, Sampler] = {}
        self._batch = _BatchArrays(lib, options.n_batch)

    def step(self, feeds: Sequence[Feed]) -> list[Sampled]:
        """Append each feed's tokens; draw a token and return logits where asked.

        A feed (or all feeds together) longer than n_batch becomes several native calls.

        Raises:
            ContextOverflowError: a sequence would grow past its context; nothing was appended.
            BackendError: the native call failed.
        """
        for feed in feeds:
            self._check(feed)
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

    def _check(self, feed: Feed) -> None:
        if not 0 <= feed.sequence < self.n_sequences:
            raise ValueError(f"sequence {feed.sequence} is outside 0 to {self.n_sequences - 1}")
        if not feed.tokens:
            raise ValueError(f"sequence {feed.sequence} was fed no tokens")
        wanted = self._lengths[feed.sequence] + len(feed.tokens)
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
            start = self._lengths[feed.sequence]
            last_rows.append(
                self._batch.append(feed.tokens, feed.sequence, start, last=last, every=feed.want == "all")
            )
        self._decode()
        results = []
        for feed, row in zip(feeds, last_rows, strict=True):
            self._lengths[feed.sequence] += len(feed.tokens)
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
        code = self._lib.llama_decode(self._ctx, self._batch.struct)
        if code == 1:
            raise ContextOverflowError(
                f"no room in the KV cache of {self.n_sequences} x {self.context} tokens"
            )
        if code:
            raise BackendError(f"llama_decode failed with code {code}: {_last_error()}")

    def _collect(self, feed: Feed, last_row: int) -> Sampled:
        logits = None
        if feed.want == "all":
            first = last_row - len(feed.tokens) + 1
            logits = np.stack([self._row(first + i) for i in range(len(feed.tokens))])
        elif feed.want == "last":
            logits = self._row(last_row)[np.newaxis].copy()
        if feed.sampling is None:
            return Sampled(tokens=[], logits=logits)
        sampler = self._samplers.get(feed.sequence)
        if sampler is None or sampler.params != feed.sampling:
            sampler = self._samplers[feed.sequence] = Sampler(
                self._lib, feed.sampling, self._model.vocab_size
            )
        sampler.accept_prompt(feed.tokens)
        return Sampled(tokens=[sampler.draw(self._ctx, last_row, self._row)], logits=logits)

    def _row(self, index: int) -> FloatArray:
        pointer = self._lib.llama_get_logits_ith(self._ctx, index)
        if not pointer:
            raise BackendError(f"no logits for row {index}: {_last_error()}")
        return np.ctypeslib.as_array(pointer, shape=(self._model.vocab_size,))

    def length(self, sequence: int) -> int:
        """Tokens in that sequence's cache."""
        return self._lengths[sequence]

    def truncate(self, sequence: int, n_tokens: int) -> None:
        """Keep the first n_tokens of a sequence.

        Raises:
            UnsupportedError: this cache (sliding window, recurrent) cannot.
        """
        if n_tokens >= self._lengths[sequence]:
            return
        if n_tokens and not self._model.capabilities.can_truncate:
            raise UnsupportedError("this model's cache cannot be truncated")
        if not self._lib.llama_memory_seq_rm(self._memory, sequence, n_tokens, -1):
            raise UnsupportedError("this model's cache cannot be truncated")
        self._lengths[sequence] = n_tokens

    def copy_prefix(self, source: int, destination: int, n_tokens: int) -> None:
        """Make `destination` the first n_tokens of `source`: a full copy, then the rest removed."""
        if not self._model.capabilities.can_copy:
            raise UnsupportedError("this model's cache cannot be copied")
        self.free(destination)
        self._lib.llama_memory_seq_cp(self._memory, source, destination, -1, -1)
        self._lengths[destination] = self._lengths[source]
        self.truncate(destination, n_tokens)

    def reset_sampler(self, sequence: int) -> None:
        """Forget a sequence's sampler, so that its seed starts anew; the cache stays."""
        self._samplers.pop(sequence, None)

    def free(self, sequence: int) -> None:
        """Forget a sequence and its sampler."""
        self._lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        self._lengths[sequence] = 0
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
        a = self.struct.n_tokens
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
        return b - 1


def _pointer(array: npt.NDArray[Any], kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))


@functools.cache
def _library() -> types.ModuleType:
    library.library_directory()
    try:
        from llama_cpp import llama_cpp as lib
    except (ImportError, OSError, RuntimeError, AttributeError) as err:
        raise BackendUnavailable(f"llama_cpp does not load: {err}", hint=library.INSTALL_HINT) from err
    lib.llama_log_set(_log, None)
    lib.llama_backend_init()
    return lib  # type: ignore[no-any-return]


@functools.cache
def _binding_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("llama-cpp-python")
    except PackageNotFoundError:
        return "unknown"


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _log(level: int, text: bytes, _: object) -> None:
    warning = 3
    if level >= warning and text:
        _errors.append(text.decode("utf-8", errors="replace").strip())


def _last_error() -> str:
    lines = [line for line in _errors if line.strip(". ")]
    return " / ".join(lines[-2:]) if lines else "it gave no reason"

"""Embeddings by llama.cpp: the states of a text's tokens, or one row for the whole text.

Each text is one native call. Encoders (BERT and its kin) keep no KV cache, and every token sees all others; a model that
generates text embeds too, where it is said how its states become one row, and its cache is emptied before each text.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgellm.errors import BackendError, ContextOverflowError, UnsupportedError
from edgellm.formats.gguf_model import ENCODERS
from edgellm.native.llama_library import bindings, failure, forget_errors, last_error
from edgellm.native.llama_observer import GraphObserver
from edgellm.native.llama_options import FLASH_ATTENTION, LlamaOptions
from edgellm.protocols import AskedPooling, FloatArray, Observer, Pooling

# enum llama_pooling_type of llama.h; -1 leaves it to the file's header.
_NUMBERS: dict[AskedPooling, int] = {"model": -1, "none": 0, "mean": 1, "cls": 2, "last": 3}
POOLING_NAMES: dict[int, Pooling] = {0: "none", 1: "mean", 2: "cls", 3: "last"}


class LlamaEmbedder:
    """Turns texts of at most `context` tokens into embeddings; an Embedder.

    Raises:
        ValueError: a context outside 1 to what the model was trained for, where its table of positions ends.
        UnsupportedError: the model generates text, and neither the file nor the caller names a pooling; or it ranks instead
            of embedding; or an observer was given, and this llama.cpp lays out its tensors differently.
    """

    def __init__(
        self,
        handle: Any,
        options: LlamaOptions,
        *,
        context: int,
        pooling: AskedPooling = "model",
        observer: Observer | None = None,
    ) -> None:
        lib = bindings()
        trained = lib.llama_model_n_ctx_train(handle)
        if not 1 <= context <= trained:
            raise ValueError(f"context is {context}, outside 1 to {trained}")
        self._ctx: Any = None
        self._lib = lib
        self.context = context
        self.embedding_size: int = lib.llama_model_n_embd_out(handle)
        self.vocab_size: int = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(handle))
        params = _parameters(lib, options, context, pooling)
        self._n_batch = context
        asked = _asked_pooling(lib, handle, pooling)
        if _generates(lib, handle) and asked in (None, _NUMBERS["none"]):
            raise _names_no_pooling()  # before a cache is made
        if asked == _NUMBERS["last"] and _sees_only_what_is_before(lib, handle):
            # No state depends on a later part of the text. Buffers for logits, which nobody reads, grow with the part.
            self._n_batch = params.n_batch = params.n_ubatch = min(context, options.n_ubatch)
        self._observer = GraphObserver(observer) if observer else None
        if self._observer:
            params.cb_eval = self._observer.callback
        forget_errors()
        self._ctx = lib.llama_init_from_model(handle, params)
        if not self._ctx:
            raise failure(
                f"llama.cpp cannot make a context of {context} tokens", hint="try a smaller --context"
            )
        self._memory = lib.llama_get_memory(self._ctx)
        number = lib.llama_pooling_type(self._ctx)
        if self._memory and number == _NUMBERS["none"]:
            self.close()
            raise _names_no_pooling()
        if number not in POOLING_NAMES:
            self.close()
            raise UnsupportedError("this model ranks texts instead of embedding them")
        self.pooling = POOLING_NAMES[number]

    def embed(self, tokens: Sequence[int], *, normalize: bool = False) -> FloatArray:
        """(n_rows, embedding_size) rows: one for each token, or one for the text.

        Args:
            normalize: scale every row to length 1; a row of zeros stays.

        Raises:
            ContextOverflowError: more tokens than the context.  ValueError: none, or one outside the vocabulary.
            BackendError: the native call failed, or gave numbers that are not finite.

        What an observer raised is raised too.
        """
        if not self._ctx:
            raise RuntimeError("this embedder is closed")
        rows = self._run(self._checked(tokens))
        if not np.isfinite(rows).all():
            raise BackendError("the model gives embeddings that are not finite: it is broken")
        return unit_rows(rows) if normalize else rows

    def _checked(self, tokens: Sequence[int]) -> Sequence[int]:
        if not tokens:
            raise ValueError("a text of no tokens has no embedding")
        if len(tokens) > self.context:
            raise ContextOverflowError(
                f"{len(tokens)} tokens do not fit the context of {self.context}",
                hint="use a larger --context or a shorter text",
            )
        low, high = min(tokens), max(tokens)
        if low < 0 or high >= self.vocab_size:
            raise ValueError(
                f"token {low if low < 0 else high} is outside the vocabulary of {self.vocab_size}"
            )
        return tokens

    def _run(self, tokens: Sequence[int]) -> FloatArray:
        compute = self._lib.llama_encode
        if self._memory:
            compute = self._lib.llama_decode
            self._lib.llama_memory_clear(self._memory, True)
        for start in range(0, len(tokens), self._n_batch):
            part = tokens[start : start + self._n_batch]
            ids = (ctypes.c_int32 * len(part))(*part)  # the batch points to it, and does not keep it
            batch = self._lib.llama_batch_get_one(ids, len(part))

            def encode(batch: Any = batch) -> int:
                return int(compute(self._ctx, batch))

            code = self._observer.run(encode) if self._observer else encode()
            if code:
                raise BackendError(f"llama.cpp failed with code {code}: {last_error()}")
        n_rows = len(tokens) if self.pooling == "none" else 1
        if self.pooling == "none":
            pointer = self._lib.llama_get_embeddings(self._ctx)
        else:
            pointer = self._lib.llama_get_embeddings_seq(self._ctx, 0)
        if not pointer:
            raise BackendError(f"llama.cpp gave no embeddings: {last_error()}")
        rows: FloatArray = np.ctypeslib.as_array(pointer, shape=(n_rows, self.embedding_size)).copy()
        return rows

    def close(self) -> None:
        """Release the buffers; safe to call twice."""
        if self._ctx:
            self._lib.llama_free(self._ctx)
            self._ctx = None

    def __del__(self) -> None:
        if getattr(self, "_ctx", None):
            self.close()


def unit_rows(rows: FloatArray) -> FloatArray:
    """Every row scaled to length 1; a row of zeros stays."""
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return (rows / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)


def _names_no_pooling() -> UnsupportedError:
    return UnsupportedError(
        "this model generates text, and its file names no pooling for embeddings",
        hint='use an encoder such as BERT, or say how it was trained: edgellm.load(..., pooling="last")',
    )


def _header(lib: Any, handle: Any, key: str) -> str:
    """An entry of the file's header as text; empty where there is none. `ARCH` stands for the architecture."""
    if key.startswith("ARCH."):
        key = _header(lib, handle, "general.architecture") + key.removeprefix("ARCH")
    buffer = ctypes.create_string_buffer(64)
    n = lib.llama_model_meta_val_str(handle, key.encode(), buffer, len(buffer))
    return buffer.value.decode(errors="replace") if n > 0 else ""


def _generates(lib: Any, handle: Any) -> bool:
    return _header(lib, handle, "general.architecture") not in ENCODERS


def _asked_pooling(lib: Any, handle: Any, pooling: AskedPooling) -> int | None:
    """Of `_NUMBERS`; None where neither the caller nor the file names one."""
    if pooling != "model":
        return _NUMBERS[pooling]
    named = _header(lib, handle, "ARCH.pooling_type")
    return int(named) if named.isdecimal() else None


def _sees_only_what_is_before(lib: Any, handle: Any) -> bool:
    return _generates(lib, handle) and _header(lib, handle, "ARCH.attention.causal") != "false"


def _parameters(lib: Any, options: LlamaOptions, context: int, pooling: AskedPooling) -> Any:
    params = lib.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = context
    params.n_seq_max = 1
    params.n_threads = options.n_threads
    params.n_threads_batch = options.n_threads_batch or options.n_threads
    params.flash_attn_type = FLASH_ATTENTION[options.flash_attention]
    params.embeddings = True
    params.pooling_type = _NUMBERS[pooling]
    params.no_perf = True
    return params

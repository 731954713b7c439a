"""llama.cpp behind the Backend and Batcher protocols, through llama-cpp-python's low-level declarations.

Every option is named here and checked here; what llama.cpp logs as an error becomes the text of ours.
Not thread-safe: one caller at a time per model. Files must have been validated before they come here.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgellm.errors import BackendError, SpecError, UnsupportedError
from edgellm.native.llama_adapters import LoadedAdapters
from edgellm.native.llama_batcher import LlamaBatcher
from edgellm.native.llama_embeddings import LlamaEmbedder
from edgellm.native.llama_library import binding_version, bindings, failure, forget_errors, header_overrides
from edgellm.native.llama_options import KV_TYPES, LlamaOptions
from edgellm.protocols import Adapters, AskedPooling, Capabilities, Observer
from edgellm.report import RuntimeInfo

__all__ = ["KV_TYPES", "LlamaBatcher", "LlamaModel", "LlamaOptions"]

# Learned positions: beyond the table's end llama.cpp would abort.
_POSITION_TABLES = {"gpt2", "starcoder"}


class LlamaModel:
    """One GGUF file loaded by llama.cpp; a Backend.

    Args:
        overrides: header keys that are read as if the file said so.

    Raises:
        SpecError: an unknown KV type.  BackendError: llama.cpp refuses the file; its own words are in the message.
    """

    def __init__(
        self,
        path: Path,
        options: LlamaOptions,
        *,
        vocab_only: bool = False,
        overrides: Mapping[str, str | bool] | None = None,
    ) -> None:
        if options.kv_type not in KV_TYPES:
            raise SpecError(
                f"unknown KV cache type {options.kv_type!r}", hint=f"one of: {', '.join(KV_TYPES)}"
            )
        self._lib = bindings()
        self._model: Any = None
        self.options = options
        params = self._lib.llama_model_default_params()
        params.vocab_only = vocab_only
        params.n_gpu_layers = self._gpu_layers()
        params.load_mode = self._lib.LLAMA_LOAD_MODE_MMAP if options.mmap else self._lib.LLAMA_LOAD_MODE_NONE
        replaced = header_overrides(self._lib, overrides or {})
        params.kv_overrides = replaced
        forget_errors()
        self._model = self._lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise failure(f"{path}: llama.cpp cannot load it", hint="check it with: edgellm verify")
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
        self._adapters = LoadedAdapters()
        simple_cache = not vocab_only and not (
            self._lib.llama_model_is_recurrent(self._model)
            or self._lib.llama_model_is_hybrid(self._model)
            or self._lib.llama_model_n_swa(self._model)
        )
        self.capabilities = Capabilities(
            can_truncate=simple_cache,
            can_copy=simple_cache,
            can_shift=simple_cache and self._lib.llama_model_rope_type(self._model) >= 0,
            lora=not vocab_only,
            observer=not vocab_only,
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
            binding=f"llama-cpp-python {binding_version()}",
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
        self._check_open()
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
        self._check_open()
        buffer = ctypes.create_string_buffer(64)
        n = self._lib.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        if n < 0:
            buffer = ctypes.create_string_buffer(-n)
            n = self._lib.llama_token_to_piece(self._vocab, token, buffer, -n, 0, special)
        return buffer.raw[:n]

    def is_end(self, token: int) -> bool:
        """Whether this token ends a generation (end of sequence, end of turn)."""
        self._check_open()
        return bool(self._lib.llama_vocab_is_eog(self._vocab, token))

    def load_adapter(self, name: str, path: Path) -> None:
        """Load a LoRA adapter (GGUF) once, to be named in feeds.

        Raises:
            SpecError: the name is taken.  BackendError: llama.cpp refuses the file for this model.
        """
        self._check_open()
        self._adapters.load(self._model, name, path)

    def check_adapters(self, adapters: Adapters) -> None:
        """Refuse names that are not loaded, and scales out of bounds.

        Raises:
            ValueError: one is.
        """
        self._adapters.check(adapters)

    def open(self, *, n_sequences: int = 1, context: int, observer: Observer | None = None) -> LlamaBatcher:
        """Make KV caches for that many sequences of `context` tokens each.

        Raises:
            SpecError: the model has a table of positions, and it ends before `context`.
            UnsupportedError: an observer was given, and this llama.cpp lays out its tensors differently.
        """
        self._check_open()
        if context > self.context_train and self._architecture() in _POSITION_TABLES:
            raise SpecError(
                f"context {context}: this model's table of positions ends at {self.context_train}",
                hint=f"use --context {self.context_train} or less",
            )
        return LlamaBatcher(
            self, self._model, self.options, n_sequences=n_sequences, context=context,
            adapters=self._adapters, observer=observer,
        )  # fmt: skip

    def _architecture(self) -> str:
        buffer = ctypes.create_string_buffer(64)
        n = self._lib.llama_model_meta_val_str(self._model, b"general.architecture", buffer, len(buffer))
        return buffer.value.decode(errors="replace") if n > 0 else ""

    def open_embedder(
        self, *, context: int, pooling: AskedPooling = "model", observer: Observer | None = None
    ) -> LlamaEmbedder:
        """Turn texts of up to `context` tokens into embeddings, pooled as the file says or as asked for.

        Raises:
            UnsupportedError: this model generates text and no pooling is named, or its activations cannot be shown to an
                observer.
        """
        self._check_open()
        return LlamaEmbedder(self._model, self.options, context=context, pooling=pooling, observer=observer)

    def _check_open(self) -> None:
        if not self._model:
            raise RuntimeError("this model is closed")

    def close(self) -> None:
        """Release the weights; safe to call twice. Batchers must be closed before."""
        if self._model:
            self._lib.llama_model_free(self._model)
            self._model = None

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self.close()

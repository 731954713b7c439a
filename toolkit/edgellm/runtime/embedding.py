"""Texts as embeddings: one row for each, from a model that was loaded for it or that can do it too."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from edgellm.errors import BackendError, ContextOverflowError, UnsupportedError
from edgellm.formats.records import Record
from edgellm.protocols import AskedPooling, Backend, Embedder, FloatArray
from edgellm.runtime import arguments
from edgellm.runtime.tokenizer import Tokenizer

MAX_TEXTS = 1 << 16
MAX_TOKEN = 1 << 31
# Little-endian float32, which is what numpy calls it.
_ROW_TYPE = np.dtype("<f4")

Text = str | list[int]
Texts = str | Sequence[str] | Sequence[Sequence[int]]


class Embedded(Record):
    """The embedding of one text: plain data, which may cross to another process.

    Attributes:
        row: embedding_size little-endian float32.
        n_tokens: of the text, special ones included.
    """

    row: bytes
    n_tokens: int


class EmbeddingUsage(Record):
    """What embedding some texts took.

    Attributes:
        prompt_tokens: of all texts, special ones included.
        total_s: from the call to the last row; tokenizing and waiting for other callers included.
    """

    prompt_tokens: int
    total_s: float


class Embeddings(NamedTuple):
    """The embeddings of some texts.

    Attributes:
        rows: (n_texts, embedding_size) float32, in the order of the texts.
    """

    rows: FloatArray
    usage: EmbeddingUsage


class TextEmbedder:
    """Embeds texts with a loaded backend; thread-safe, one text at a time. Its buffers are made when first needed.

    Args:
        context: most tokens of a text.
        pooling: how the states of a text's tokens become one row; `model` is what the model's file says.
        name: the model's, for errors.
    """

    def __init__(
        self, backend: Backend, tokenizer: Tokenizer, *, context: int, pooling: AskedPooling, name: str
    ) -> None:
        self._backend, self._tokenizer, self._name = backend, tokenizer, name
        self._context, self._pooling = context, pooling
        self._embedder: Embedder | None = None
        self._refusal: UnsupportedError | None = None
        self._closed = False
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Make the buffers.

        Raises:
            UnsupportedError: the model's file names no pooling, and none was asked for; or it ranks texts.
        """
        with self._lock:
            self._opened()

    def embed(self, text: Text, normalize: bool) -> Embedded:
        """The embedding of one text.

        Raises:
            ContextOverflowError: it is too long; both numbers are in the message.
            ValueError: no tokens, or one that the model does not know.  UnsupportedError: as in `prepare`.
        """
        ids = (
            self._tokenizer.encode(text, add_special=True, parse_special=False, most_tokens=self._context)
            if isinstance(text, str)
            else text
        )
        with self._lock:
            rows = self._opened().embed(ids, normalize=normalize)
        return Embedded(row=rows[0].astype(_ROW_TYPE).tobytes(), n_tokens=len(ids))

    def _opened(self) -> Embedder:
        if self._closed:
            raise RuntimeError("this model is closed")
        if self._refusal is not None:
            raise UnsupportedError(self._refusal.message, hint=self._refusal.hint)
        if self._embedder is None:
            try:
                self._embedder = self._open()
            except UnsupportedError as err:
                self._refusal = UnsupportedError(err.message, hint=err.hint)
                raise
        return self._embedder

    def _open(self) -> Embedder:
        embedder = self._backend.open_embedder(context=self._context, pooling=self._pooling)
        if embedder.pooling == "none":
            embedder.close()
            raise UnsupportedError(
                f"{self._name}: its file does not say how the states of tokens become one embedding",
                hint='say it as its authors do, for example: edgellm.load(..., pooling="mean")',
            )
        return embedder

    def close(self) -> None:
        """Release the buffers, after the text that is computed now; safe to call twice."""
        with self._lock:
            self._closed = True
            if self._embedder is not None:
                self._embedder.close()


def checked_texts(texts: Texts) -> list[Text]:
    """Texts, each as text or token ids; a single text is a list of one.

    Raises:
        TypeError: something that is neither.  ValueError: none, too many, or one out of bounds.
    """
    given: list[object] = [texts] if isinstance(texts, str) else list(texts)
    if not 1 <= len(given) <= MAX_TEXTS:
        raise ValueError(f"{len(given)} texts, expected 1 to {MAX_TEXTS}")
    found: list[Text] = []
    for i, text in enumerate(given):
        if isinstance(text, str):
            found.append(arguments.checked_text(f"text {i}", text))
        elif isinstance(text, list | tuple) and all(type(token) is int for token in text):
            beyond = next((token for token in text if not 0 <= token < MAX_TOKEN), None)
            if beyond is not None:
                raise ValueError(f"text {i}: a token of {beyond.bit_length()} bits is outside the vocabulary")
            found.append(list(text))
        else:
            raise TypeError(f"text {i} is {type(text).__name__}, expected text or a list of token ids")
    return found


class Batch:
    """The rows of several texts as they come.

    Args:
        embed: gives the embedding of one text.
        normalize: rows of length 1.
    """

    def __init__(self, embed: Callable[[Text, bool], Embedded], *, normalize: bool) -> None:
        self._embed, self._normalize = embed, normalize
        self._rows: list[FloatArray] = []
        self._n_tokens = 0
        self._started_s = time.perf_counter()

    def add(self, text: Text) -> None:
        """Embed the next text.

        Raises:
            ContextOverflowError, ValueError: as in `TextEmbedder.embed`, with the number of the text.
            BackendError: what came is no row of numbers, or of another length than those before.
        """
        where = f"text {len(self._rows)}"
        try:
            embedded = self._embed(text, self._normalize)
        except ContextOverflowError as err:
            raise ContextOverflowError(f"{where}: {err.message}", hint=err.hint) from err
        except ValueError as err:
            raise ValueError(f"{where}: {err}") from err
        n_bytes = len(embedded.row)
        if not n_bytes or n_bytes % _ROW_TYPE.itemsize or (self._rows and n_bytes != self._rows[0].nbytes):
            raise BackendError(f"{where}: an embedding of {n_bytes} bytes: the engine is broken")
        row = np.frombuffer(embedded.row, dtype=_ROW_TYPE).astype(np.float32)
        if not np.isfinite(row).all():
            raise BackendError(f"{where}: an embedding that is not finite: the engine is broken")
        self._rows.append(row)
        self._n_tokens += embedded.n_tokens

    def finish(self) -> Embeddings:
        """All of them."""
        usage = EmbeddingUsage(prompt_tokens=self._n_tokens, total_s=time.perf_counter() - self._started_s)
        return Embeddings(np.stack(self._rows), usage)

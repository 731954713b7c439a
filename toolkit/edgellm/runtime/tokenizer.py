"""Text to ids: by `tokenizers` where the artifact has a tokenizer.json, else by the backend itself."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any

from edgellm.errors import ArtifactError, ContextOverflowError
from edgellm.protocols import Backend

MAX_USUAL_CHARS = 64  # below so many for each token nothing is looked up
_MARGIN = 4


class Tokenizer:
    """Tokenizes for one model; thread-safe.

    Args:
        path: the artifact's tokenizer.json, or None to ask the backend.

    Raises:
        ArtifactError: the file is not a tokenizer, or has ids the model does not know.
    """

    def __init__(self, backend: Backend, path: Path | None) -> None:
        self._backend = backend
        self._own: Any = None
        self._lock = threading.Lock()
        if path is None:
            return
        from tokenizers import Tokenizer as Library

        try:
            self._own = Library.from_file(str(path))
        except Exception as err:  # the library raises bare Exception for every malformed file
            raise ArtifactError(f"{path}: not a tokenizer.json: {str(err)[:200]}") from err
        n_ids = max(self._own.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if n_ids > backend.vocab_size:
            raise ArtifactError(
                f"{path}: {n_ids} tokens, the model knows {backend.vocab_size}",
                hint="convert the model again",
            )
        self._own.no_truncation()
        self._own.no_padding()

    def encode(
        self, text: str, *, add_special: bool, parse_special: bool, most_tokens: int | None = None
    ) -> list[int]:
        """Ids of a text; `parse_special` lets text such as <|im_end|> become one special token.

        Args:
            most_tokens: a text that is much longer than so many tokens can be is refused at once, since tokenizing
                megabytes takes minutes.

        Raises:
            ContextOverflowError: it is.
        """
        if most_tokens is not None and len(text) > most_tokens * MAX_USUAL_CHARS:
            self._check_length(text, most_tokens)
        if self._own is None:
            return self._backend.tokenize(text, add_special=add_special, parse_special=parse_special)
        text = text.encode("utf-8", errors="replace").decode()  # half a surrogate pair is no text
        with self._lock:  # the switch belongs to the library's object, not to the call
            self._own.encode_special_tokens = not parse_special
            ids: list[int] = self._own.encode(text, add_special_tokens=add_special).ids
        return ids

    def _check_length(self, text: str, most_tokens: int) -> None:
        n_bytes = len(text.encode("utf-8", errors="replace"))
        # Some normalizers drop white space or accents before they cut into tokens.
        if n_bytes > _MARGIN * most_tokens * self._longest_bytes:
            raise ContextOverflowError(
                f"the prompt has {n_bytes} bytes, the context holds {most_tokens} tokens of at most {self._longest_bytes}",
                hint="use a larger context (--context) or a shorter prompt",
            )

    @functools.cached_property
    def _longest_bytes(self) -> int:
        backend = self._backend
        return max(
            max(len(backend.token_bytes(token)), len(backend.token_text(token).encode()))
            for token in range(backend.vocab_size)
        )

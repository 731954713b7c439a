"""The next step for a whole group of errors, where each of them need not name it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from edgellm.errors import EdgeLLMError
from edgellm.formats.safetensors import AGAIN_HINT

BROKEN = "the weights are damaged or were never sound: download them again, or convert another model"
TRUNCATED = AGAIN_HINT
SAVE_AS_UTF8 = "save the text as UTF-8"


@contextlib.contextmanager
def of(kind: type[EdgeLLMError], hint: str) -> Iterator[None]:
    """Give errors of that kind this hint where they have none of their own; also a decorator."""
    try:
        yield
    except kind as err:
        err.hint = err.hint or hint
        raise

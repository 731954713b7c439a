"""Model files with flipped bits: refused in Python, or loaded by llama.cpp in a child that is started anew when it dies."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Literal

from edgellm.api import models
from edgellm.errors import BadInputError, EdgeLLMError, NativeCrash, UnsupportedError
from edgellm.process.conversation import Conversation

Verdict = Literal["refused by the parser", "refused by llama.cpp", "generates", "crash"]
CHILD = [sys.executable, "-m", "tests.support.flip_child"]
MEMORY_BYTES = 8 << 30
TIMEOUT_S = 120.0
MOST_ERROR_CHARS = 700


def flips(seed: int, n_bytes: int) -> list[tuple[int, int]]:
    """(place, mask) of the bits to flip: in one byte mostly, at most in four, all within the first n_bytes."""
    draw = random.Random(seed)
    return [
        (draw.randrange(n_bytes), draw.choice([1 << draw.randrange(8), draw.randrange(1, 256)]))
        for _ in range(draw.choice([1, 1, 1, 4]))
    ]


def flipped(content: bytes, seed: int, n_bytes: int | None = None) -> bytes:
    """The content with those bits flipped."""
    changed = bytearray(content)
    for place, mask in flips(seed, n_bytes or len(content)):
        changed[place] ^= mask
    return bytes(changed)


def is_refused(path: Path) -> bool:
    """Whether Python's own reading refuses it.

    Raises:
        AssertionError: with an error that is none of ours, or not one short line.
    """
    try:
        models.read_model(path)
    except (BadInputError, UnsupportedError) as err:
        if "\n" in err.message or len(err.message) > MOST_ERROR_CHARS:
            raise AssertionError(f"{path}: not one short line: {err.message[:2000]!r}") from err
        return True
    except Exception as err:
        raise AssertionError(f"{path}: {type(err).__name__}: {err}") from err
    return False


class Loader:
    """A child that loads one model after the other, tokenizes with each and draws tokens; a context manager."""

    def __init__(self) -> None:
        self._child: Conversation | None = None
        self.crashes: list[EdgeLLMError] = []

    def verdict(self, path: Path) -> Verdict:
        """What becomes of a file that Python did not refuse."""
        if self._child is None:
            self._child = Conversation(CHILD, memory_limit_bytes=MEMORY_BYTES)
        try:
            said = self._child.ask(str(path).encode(), 1, timeout_s=TIMEOUT_S)
        except EdgeLLMError as err:
            self._child = None
            self.crashes.append(err)
            return "crash"
        return "generates" if said == b"1" else "refused by llama.cpp"

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._child is not None:
            self._child.close()


def count(contents: Iterable[bytes], path: Path) -> tuple[Counter[Verdict], dict[int, EdgeLLMError]]:
    """Verdicts on files of these contents, each written to `path`; and the crashes by their number in line."""
    counts: Counter[Verdict] = Counter()
    crashed: dict[int, EdgeLLMError] = {}
    with Loader() as loader:
        for number, content in enumerate(contents):
            path.unlink(missing_ok=True)
            path.write_bytes(content)
            verdict: Verdict = "refused by the parser" if is_refused(path) else loader.verdict(path)
            counts[verdict] += 1
            if verdict == "crash":
                crashed[number] = loader.crashes[-1]
    return counts, crashed


def said(crashed: dict[int, EdgeLLMError]) -> str:
    """Crashes in lines."""
    return "\n".join(
        f"{number}: {err.signal_name if isinstance(err, NativeCrash) else ''} {err.message[:300]}"
        for number, err in crashed.items()
    )

"""The reference of a quality check: transformers in an environment of its own, or the unquantized GGUF."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from edgellm import machine, outside, resources
from edgellm.api.unquantized import Unquantized
from edgellm.checkpoint import Checkpoint
from edgellm.errors import BackendError, EdgeLLMError
from edgellm.native.llama_embeddings import unit_rows
from edgellm.process.conversation import Conversation
from edgellm.protocols import Feed, FloatArray, Pooling, Sampled
from edgellm.units import format_bytes

PYTHON_VARIABLE = "EDGELLM_EXPORT_PYTHON"
_HELLO_BYTES = 256
_LOAD_S = 600.0
_ANSWER_S = 900.0
# Weights in float32, what loading adds, and the interpreter.
_LOADING_FACTOR = 1.3
_INTERPRETER_BYTES = 1 << 30


class Found(NamedTuple):
    """An interpreter that has transformers, or None and why there is none."""

    python: Path | None
    because: str


def find_python() -> Found:
    """The interpreter of the export environment: named by EDGELLM_EXPORT_PYTHON, made by set-up, or this one."""
    named = os.environ.get(PYTHON_VARIABLE)
    if named:
        return Found(Path(named), f"named by {PYTHON_VARIABLE}")
    if find_spec("torch") and find_spec("transformers"):
        return Found(Path(sys.executable), "installed beside edgellm")
    for place in resources.export_environments():
        python = place / "bin" / "python"
        if python.exists():
            return Found(python, f"found in {place.name}")
    return Found(None, "transformers is not installed")


def why_not(reference: Unquantized) -> str | None:
    """Why transformers cannot be the reference for this model here; None if it can be tried."""
    checkpoint = reference.source.checkpoint
    if checkpoint.kind != "hf":
        return "the source is a GGUF"
    if not reference.as_published:
        return "an adapter is merged into the source"
    if find_python().python is None:
        return find_python().because
    needed = int(reference.source.shape.n_params * 4 * _LOADING_FACTOR) + _INTERPRETER_BYTES
    free = machine.available_memory_bytes()
    if free is not None and needed > free:
        return f"float32 weights need {format_bytes(needed)}, {format_bytes(free)} are free"
    return None


class _Child:
    """A model loaded by transformers in float32, in a child process.

    Attributes:
        n_vocab: tokens it knows.  n_columns: numbers in a row.  engine: what computes, in words.

    Raises:
        EdgeLLMError: the child cannot load the model; its own last words are in the message.
    """

    def __init__(
        self, checkpoint: Checkpoint, wanted: Literal["logits", "states"], *, n_threads: int
    ) -> None:
        python = find_python().python
        if python is None:
            raise BackendError("transformers is not installed")
        program = Path(outside.__file__).parent / "transformers_reference.py"
        class_name = checkpoint.config["architectures"][0]
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
        argv = [str(python), "-P", str(program), str(checkpoint.path.resolve()), class_name]
        argv += [str(n_threads), wanted]
        self._conversation = Conversation(argv, env={**os.environ, **quiet})
        try:
            hello = json.loads(self._conversation.ask(b"", _HELLO_BYTES, timeout_s=_LOAD_S))
        except BaseException:
            self.close()
            raise
        self.n_vocab, self.n_columns = int(hello["n_vocab"]), int(hello["n_columns"])
        self.engine = f"transformers {hello['transformers']}, torch {hello['torch']}, float32"

    def rows(self, ids: Sequence[int], n_last: int) -> FloatArray:
        """(n_last, n_columns) rows of the last positions."""
        question = json.dumps({"ids": list(ids), "n_last": n_last}).encode()
        answer = self._conversation.ask(question, 4 * n_last * self.n_columns, timeout_s=_ANSWER_S)
        found: FloatArray = np.frombuffer(answer, dtype="<f4").reshape(n_last, self.n_columns)
        return found

    def close(self) -> None:
        """End it; safe to call twice."""
        self._conversation.close()


class TransformersReference:
    """A model that generates text, computed by transformers; only what a comparison needs.

    Attributes:
        vocab_size: logits per position.  engine: what computes, in words.

    Raises:
        EdgeLLMError: transformers cannot load it.
    """

    def __init__(self, checkpoint: Checkpoint, *, add_bos: bool, bos_id: int | None, n_threads: int) -> None:
        self._child = _Child(checkpoint, "logits", n_threads=n_threads)
        self.vocab_size, self.engine = self._child.n_vocab, self._child.engine
        self.add_bos, self.bos_id = add_bos, bos_id

    def open(self, *, n_sequences: int, context: int) -> TransformersReference:
        """The one sequence there is, empty."""
        if n_sequences != 1:
            raise ValueError("a reference has one sequence")
        self._context = context
        self._ids: list[int] = []
        return self

    def free(self, _sequence: int) -> None:
        """Forget the sequence."""
        self._ids = []

    def step(self, feeds: Sequence[Feed]) -> list[Sampled]:
        """Append tokens; logits of shape (n_tokens, vocab_size) if all are wanted."""
        (feed,) = feeds
        self._ids += feed.tokens
        if feed.want != "all":
            return [Sampled(tokens=[])]
        return [Sampled(tokens=[], logits=self._child.rows(self._ids, len(feed.tokens)))]

    def close(self) -> None:
        """End the child; safe to call twice."""
        self._child.close()


class TransformersEmbedder:
    """A model that gives embeddings, computed by transformers; an Embedder.

    The states come from transformers, below any head; the pooling is done here.

    Attributes:
        engine: what computes, in words.

    Raises:
        EdgeLLMError: transformers cannot load it.
    """

    def __init__(self, checkpoint: Checkpoint, *, context: int, pooling: Pooling, n_threads: int) -> None:
        self._child = _Child(checkpoint, "states", n_threads=n_threads)
        self.vocab_size, self.embedding_size = self._child.n_vocab, self._child.n_columns
        self.engine = self._child.engine
        self.context, self.pooling = context, pooling

    def embed(self, tokens: Sequence[int], *, normalize: bool = False) -> FloatArray:
        """(n_rows, embedding_size) rows: one for each token, or one for the text."""
        rows = pool(self._child.rows(tokens, len(tokens)), self.pooling)
        return unit_rows(rows) if normalize else rows

    def close(self) -> None:
        """End the child; safe to call twice."""
        self._child.close()


def pool(states: FloatArray, pooling: Pooling) -> FloatArray:
    """(n_tokens, n_columns) states as they are, or pooled into one row."""
    if pooling == "mean":
        mean: FloatArray = states.mean(axis=0, keepdims=True)
        return mean
    return states[{"none": slice(None), "cls": slice(1), "last": slice(-1, None)}[pooling]]


C = TypeVar("C", TransformersReference, TransformersEmbedder)


def open_transformers(reference: Unquantized, make: Callable[[Checkpoint], C]) -> tuple[C | None, str]:
    """The reference by transformers as `make` opens it, or None and the reason."""
    reason = why_not(reference)
    if reason:
        return None, reason
    try:
        return make(reference.source.checkpoint), ""
    except EdgeLLMError as err:
        return None, f"transformers cannot load it: {err.message[:200]}"

"""The seams: what a room may ask of another without importing it.

A `Backend` is one loaded model; a `Batcher` runs many sequences of it, one native call per step, and an `Observer`
sees what its weights are multiplied with. A `Meter` reads energy. Implementations are found by name in `registry`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from edgellm.formats.records import Record
from edgellm.report import Reading, RuntimeInfo

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]
Want = Literal["none", "last", "all"]
# How the states of a text's tokens become one row: `none` leaves them apart, `model` is what the model's file says.
Pooling = Literal["none", "mean", "cls", "last"]
MAX_LOGIT_BIASES = 1024
# (name, scale) of each LoRA adapter in use, sorted by name; empty for the model alone.
Adapters = tuple[tuple[str, float], ...]
AskedPooling = Literal["model", "none", "mean", "cls", "last"]


class SamplingParams(Record):
    """How the next token is drawn; plain data, no native handle.

    Attributes:
        temperature: 0 is greedy.
        top_k: keep the k best, 0 for all.  top_p: keep the smallest set with that probability, 1 for all.
        min_p: drop tokens less likely than min_p times the best, 0 for none.
        repeat_penalty: divide the logits of the last `repeat_last_n` tokens, 1 for none.
        presence_penalty, frequency_penalty: taken off their logits: once, and once for each time they occur there.
        logit_bias: token -> what is added to its logit; -inf forbids it.
        seed: the same seed, prompt and model give the same text; None draws one.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, 100.0), ("top_k", 0, 1 << 20), ("top_p", 0.0, 1.0), ("min_p", 0.0, 1.0),
            ("repeat_penalty", 0.01, 100.0), ("repeat_last_n", 0, 1 << 16),
            ("presence_penalty", -10.0, 10.0), ("frequency_penalty", -10.0, 10.0),
        ):  # fmt: skip
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}, outside {low} to {high}")
        if self.seed is not None and not 0 <= self.seed < 2**32 - 1:
            raise ValueError(f"seed is {self.seed}, outside 0 to {2**32 - 2}")
        if len(self.logit_bias) > MAX_LOGIT_BIASES:
            raise ValueError(f"logit_bias has {len(self.logit_bias)} tokens, at most {MAX_LOGIT_BIASES}")
        for token, bias in self.logit_bias.items():
            if token < 0 or math.isnan(bias) or bias == math.inf:
                raise ValueError(f"logit_bias of token {token} is {bias}, expected a number or -inf")


class Capabilities(Record):
    """What a backend's cache can do; sliding-window and recurrent caches cannot do all."""

    can_truncate: bool
    can_copy: bool
    can_shift: bool
    lora: bool
    observer: bool


class Constraint(Protocol):
    """Which tokens may come next in one sequence; it follows what is drawn."""

    def mask(self, logits: FloatArray) -> None:
        """Set the logits (n_vocab,) of tokens that may not come to -inf, in place."""
        ...

    def accept(self, token: int) -> None:
        """This token was drawn."""
        ...


class Feed(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens for one sequence in one step.

    Attributes:
        sequence: which one, below the batcher's n_sequences.
        tokens: ids appended to its cache, at least one.
        sampling: draw a token after the last one; None draws nothing.
        want: rows of logits to return: none, the last token's, or all.
        draft: guesses of what will be drawn. They are computed in the same call; a token is drawn after each that was
            guessed right, and wrong ones leave the cache again. The text is the same as without.
        constraint: masks the logits before each draw.
        adapters: LoRA adapters that these tokens are computed with.
    """

    sequence: int
    tokens: Sequence[int]
    sampling: SamplingParams | None = None
    want: Want = "none"
    draft: Sequence[int] = ()
    constraint: Constraint | None = None
    adapters: Adapters = ()


class Sampled(msgspec.Struct, frozen=True, kw_only=True):
    """What a step gave for one feed.

    Attributes:
        tokens: drawn: the guesses that were right, and one more. All but the last are in the cache.
        logits: (n_rows, n_vocab) if wanted, before any constraint; with a draft, `last` gives one row per token drawn.
    """

    tokens: list[int]
    logits: FloatArray | None = None


class Batcher(Protocol):
    """Many sequences of one model; one native call per step. Not thread-safe: one caller at a time."""

    n_sequences: int
    context: int

    def step(self, feeds: Sequence[Feed]) -> list[Sampled]:
        """Append each feed's tokens and draw or return what it asks for; at most one feed per sequence."""
        ...

    def length(self, sequence: int) -> int:
        """Tokens in that sequence's cache."""
        ...

    def tokens(self, sequence: int) -> Sequence[int]:
        """The tokens in that sequence's cache; valid until the next step, not to be changed."""
        ...

    def truncate(self, sequence: int, n_tokens: int) -> None:
        """Keep the first n_tokens of a sequence."""
        ...

    def copy_prefix(self, source: int, destination: int, n_tokens: int) -> None:
        """Make `destination` the first n_tokens of `source`."""
        ...

    def shift(self, sequence: int, n_keep: int, n_drop: int) -> None:
        """Forget n_drop tokens after the first n_keep; what follows moves up.

        Raises:
            UnsupportedError: see `capabilities.can_shift`.
        """
        ...

    def state_bytes(self, sequence: int) -> int:
        """Bytes that `save` would give."""
        ...

    def save(self, sequence: int) -> bytes | bytearray:
        """A sequence's cache as bytes, for `load` of a batcher of the same model and options."""
        ...

    def load(self, sequence: int, state: bytes | bytearray, tokens: Sequence[int]) -> None:
        """Replace a sequence's cache by what `save` gave for these tokens.

        Raises:
            BackendError: it is not such a state; the sequence is empty then.
        """
        ...

    def reset_sampler(self, sequence: int) -> None:
        """Forget a sequence's sampler, so that its seed starts anew; the cache stays."""
        ...

    def free(self, sequence: int) -> None:
        """Forget a sequence and its sampler."""
        ...

    def close(self) -> None:
        """Release native memory; safe to call twice."""
        ...


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """What one weight was multiplied with in one native call.

    Attributes:
        weight: its name, such as blk.0.ffn_down.weight; a head tied to the embedding is token_embd.weight.
        rows: (n_rows, n_columns) float32 inputs, read-only; valid only until `observe` returns.
        experts: (n_rows, n_used) the matrices of the weight that each row meets; None for a plain matrix.
        n_experts: matrices in the weight, 1 for a plain one.
        source: a number for the input: weights observed with the same number saw the same rows (query, key and value).
    """

    weight: str
    rows: FloatArray
    experts: IntArray | None = None
    n_experts: int = 1
    source: int = 0

    def by_expert(self) -> Iterator[tuple[int, FloatArray]]:
        """(matrix, the rows it met) for each matrix that met any; of a plain weight (0, all rows)."""
        if self.experts is None:
            yield 0, self.rows
            return
        for expert in np.unique(self.experts):
            yield int(expert), self.rows[np.nonzero(self.experts == expert)[0]]


class Observer(Protocol):
    """Sees the inputs of weights while a batcher computes; called in another thread, one call at a time."""

    def wants(self, weight: str) -> bool:
        """Whether to be shown this weight; asked once per name. What is not wanted costs next to nothing."""
        ...

    def observe(self, observation: Observation) -> None:
        """Take what is needed from the rows. What this raises ends the step and is raised by it."""
        ...


class Embedder(Protocol):
    """Turns texts into embeddings. Not thread-safe: one caller at a time.

    Attributes:
        context: tokens of the longest text.
        embedding_size: columns of a row.  vocab_size: token ids are below it.
        pooling: what the rows are: one per token (`none`), or one per text.
    """

    context: int
    embedding_size: int
    vocab_size: int
    pooling: Pooling

    def embed(self, tokens: Sequence[int], *, normalize: bool = False) -> FloatArray:
        """(n_rows, embedding_size) rows: one for each token, or one for the text."""
        ...

    def close(self) -> None:
        """Release native memory; safe to call twice."""
        ...


class Backend(Protocol):
    """One loaded model."""

    vocab_size: int
    context_train: int
    bos_id: int | None
    eos_id: int | None
    add_bos: bool
    chat_template: str | None
    capabilities: Capabilities

    @property
    def info(self) -> RuntimeInfo:
        """The engine as it runs."""
        ...

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Text to token ids. `parse_special` lets text such as <|im_end|> become one special token."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token stands for; empty for control tokens."""
        ...

    def token_text(self, token: int) -> str:
        """The token as written in the vocabulary, control tokens included."""
        ...

    def is_end(self, token: int) -> bool:
        """Whether this token ends a generation."""
        ...

    def load_adapter(self, name: str, path: Path) -> None:
        """Load a LoRA adapter once, to be named in feeds. Before any batcher is in use.

        Raises:
            BackendError: it does not fit the model.  UnsupportedError: see `capabilities.lora`.
        """
        ...

    def check_adapters(self, adapters: Adapters) -> None:
        """Refuse names that are not loaded, and scales out of bounds.

        Raises:
            ValueError: one is.
        """
        ...

    def open(self, *, n_sequences: int, context: int, observer: Observer | None = None) -> Batcher:
        """Make caches for that many sequences of `context` tokens each.

        Args:
            observer: is shown what weights are multiplied with, in every step.

        Raises:
            UnsupportedError: an observer was given, and this backend cannot (see `capabilities.observer`); or the
                model is an encoder, which keeps no cache.
        """
        ...

    def open_embedder(
        self, *, context: int, pooling: AskedPooling = "model", observer: Observer | None = None
    ) -> Embedder:
        """Turn texts of up to `context` tokens into embeddings.

        Raises:
            UnsupportedError: the model generates text and no pooling is named, or an observer was given and this backend
                cannot.
        """
        ...

    def close(self) -> None:
        """Release native memory; safe to call twice."""
        ...


class Availability(Record):
    """Whether something can be used here; if not, why and what to do."""

    available: bool
    reason: str = ""
    remedy: str = ""


class Meter(Protocol):
    """An energy source. `read` gives cumulative joules or instant watts, with wrap-around handled inside."""

    name: str
    scope: str
    kind: Literal["joules", "watts"]

    def probe(self) -> Availability:
        """Whether it can be read, without side effects."""
        ...

    def read(self) -> Reading:
        """The value now.

        Raises:
            MeterError: it went away or gives nonsense.
        """
        ...


class Launcher(Protocol):
    """Starts one measurement in a fresh child process and returns what it printed, decoded from JSON."""

    def __call__(self, spec: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """Run `spec`; a child that dies becomes NativeCrash."""
        ...

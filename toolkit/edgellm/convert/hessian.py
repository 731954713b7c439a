"""What weights are multiplied with, as rounding needs it: H = mean of x x^T, collected while a model runs, factored.

One factor is kept per distinct input (query, key and value share one). Experts that each see rows of their own get the
diagonal only, one per expert, since a matrix for each would not fit; experts that see the same rows share a matrix.
What is in memory at once is bounded: where all matrices together are larger, the tokens are run several times, each
time for some of the layers. Finished factors lie in files. The first token of a chunk counts FIRST_TOKEN_WEIGHT times.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgellm.convert import hints, mixture
from edgellm.convert.chunks import chunk_tokens, cut
from edgellm.convert.rounding.compensate import Feedback, feedback
from edgellm.errors import BadInputError
from edgellm.protocols import Backend, Feed, Observation
from edgellm.shape import ModelShape

N_CHUNKS = 20
MEMORY_BYTES = 2 * 1024**3
TEXT_DAMPING = 0.01
VOCABULARY_DAMPING = 0.1
# All later tokens attend to the first one, so what is lost of its keys and values is lost many times.
FIRST_TOKEN_WEIGHT = 64
RECENT_SOURCES = 16
HEAD = "token_embd.weight"
_LAYER = re.compile(r"blk\.([0-9]+)\.(.*)")
_SHARED = (("attn_q.", "attn_k.", "attn_v."), ("ffn_gate.", "ffn_up."), ("ffn_gate_exps.", "ffn_up_exps."))
Matrix = npt.NDArray[np.float32]


@dataclasses.dataclass
class Moments:
    """What was collected; factors lie in files of `folder` and are read when asked for.

    Attributes:
        n_tokens: tokens that were run.
        owner: weight -> the weight under whose name its input was collected.
        importance: weight -> (n_experts, n_columns) mean squares, for experts with rows of their own; 0 where an expert
            saw no row.
    """

    folder: Path
    n_tokens: int = 0
    owner: dict[str, str] = dataclasses.field(default_factory=dict)
    importance: dict[str, Matrix] = dataclasses.field(default_factory=dict)

    def feedback(self, weight: str) -> Feedback | None:
        """The factor of a weight's H; None where its inputs were not seen as a matrix."""
        owner = self.owner.get(weight)
        if owner is None:
            return None
        with np.load(self.folder / f"{owner}.npz") as stored:
            return Feedback(stored["upper"], stored["weights"], stored["order"])

    def save(self, owner: str, factor: Feedback) -> None:
        """Put a factor into its file."""
        np.savez(self.folder / f"{owner}.npz", upper=factor.upper, weights=factor.weights, order=factor.order)


def vocabulary_chunks(backend: Backend, *, n_chunks: int = N_CHUNKS, seed: int = 0) -> list[list[int]]:
    """Chunks of token ids drawn evenly from the vocabulary: a probe of the weights that needs no text."""
    length = chunk_tokens(backend.context_train)
    draw = np.random.default_rng(seed)
    chunks = draw.integers(0, backend.vocab_size, (n_chunks, length)).tolist()
    return [_with_bos(backend, chunk) for chunk in chunks]


def text_chunks(backend: Backend, ids: Sequence[int], *, n_chunks: int = N_CHUNKS) -> list[list[int]]:
    """At most n_chunks chunks of token ids, spread evenly over a text.

    Raises:
        BadInputError: the text is shorter than one chunk.
    """
    whole = cut(ids, chunk_tokens(backend.context_train), "the calibration text")
    picked = np.unique(np.linspace(0, len(whole) - 1, min(n_chunks, len(whole))).astype(int))
    return [_with_bos(backend, whole[i]) for i in picked]


def collect(
    backend: Backend,
    shape: ModelShape,
    chunks: Sequence[list[int]],
    folder: Path,
    *,
    damping: float = TEXT_DAMPING,
    memory_bytes: int = MEMORY_BYTES,
    progress: Callable[[int], None] | None = None,
) -> Moments:
    """Run the model over the chunks and factor the second moments of all its matrices' inputs.

    Args:
        backend: the model in a type that loses next to nothing; `capabilities.observer` must hold.
        folder: where the matrices are put; empty, and the caller's to remove.
        damping: see `rounding.feedback`; more where the tokens are not like those the model will meet.
        memory_bytes: bound on the matrices in memory; one matrix may always be there, and factoring one takes six
            times its bytes for a moment.
        progress: called with the number of tokens just run, `n_passes` times the tokens of the chunks in all.

    Raises:
        UnsupportedError: this backend cannot be observed.  BadInputError: its activations are not finite.
        OSError: the folder cannot be written.
    """
    found = Moments(folder)
    for names in passes(shape, memory_bytes):
        collector = _Collector(names)
        batcher = backend.open(n_sequences=1, context=max(map(len, chunks)), observer=collector)
        try:
            for chunk in chunks:
                batcher.free(0)
                collector.begin_chunk()
                batcher.step([Feed(sequence=0, tokens=chunk, want="all")])
                if progress:
                    progress(len(chunk))
        finally:
            batcher.close()
        collector.finish(found, damping)
    found.n_tokens = sum(map(len, chunks))
    return found


def passes(shape: ModelShape, memory_bytes: int) -> list[frozenset[str]]:
    """Names of the weights to collect in each run over the tokens."""
    groups: list[frozenset[str]] = []
    names: set[str] = set()
    used = 0
    for unit in _units(shape):
        size = sum(_matrix_bytes(shape, name) for name in unit[:1])
        if names and used + size > memory_bytes:
            groups.append(frozenset(names))
            names, used = set(), 0
        names.update(unit)
        used += size
    return [*groups, frozenset(names)] if names else groups


def matrix_columns(shape: ModelShape) -> list[int]:
    """The width of each matrix that will be collected, where weights share inputs as their names suggest."""
    return [shape.tensors[unit[0]][-1] for unit in _units(shape)]


def _units(shape: ModelShape) -> Iterable[list[str]]:
    """Weights that (by their names) share an input; an embedding that is not the head is multiplied with nothing."""
    units: dict[object, list[str]] = {}
    for name, tensor in shape.tensors.items():
        if not mixture.quantizable(name, tensor):
            continue
        if name == HEAD and "output.weight" in shape.tensors:
            continue
        match = _LAYER.fullmatch(name)
        shared = next((i for i, parts in enumerate(_SHARED) if match and match[2].startswith(parts)), None)
        units.setdefault(name if match is None or shared is None else (match[1], shared), []).append(name)
    return units.values()


def _matrix_bytes(shape: ModelShape, name: str) -> int:
    return 4 * shape.tensors[name][-1] ** 2


def _with_bos(backend: Backend, chunk: list[int]) -> list[int]:
    return [backend.bos_id, *chunk[1:]] if backend.add_bos and backend.bos_id is not None else chunk


class _Collector:
    """Sums of x x^T, one per distinct input; an Observer."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._owner: dict[str, str] = {}
        self._recent: dict[int, str] = {}
        self._sums: dict[str, Matrix] = {}
        self._squares: dict[str, Matrix] = {}
        self._counts: dict[str, npt.NDArray[np.int64]] = {}
        self._begun: set[str] = set()

    def begin_chunk(self) -> None:
        """The next row of each weight is that of a first token."""
        self._begun.clear()

    def wants(self, weight: str) -> bool:
        return weight in self._names

    def observe(self, observation: Observation) -> None:
        name = observation.weight
        own_rows = observation.experts is not None and observation.experts.shape[1] == 1
        key = f"{name}#own" if own_rows else name
        owner = self._owner.setdefault(name, self._recent.get(observation.source, key))
        self._recent[observation.source] = owner
        while len(self._recent) > RECENT_SOURCES:
            del self._recent[next(iter(self._recent))]
        if owner != key:
            return
        if own_rows:
            self._add_squares(observation)
            return
        rows = observation.rows
        product = rows.T @ rows
        n_rows = len(rows)
        if name not in self._begun:
            self._begun.add(name)
            product += (FIRST_TOKEN_WEIGHT - 1) * np.outer(rows[0], rows[0])
            n_rows += FIRST_TOKEN_WEIGHT - 1
        if name in self._sums:
            self._sums[name] += product
        else:
            self._sums[name] = product
            self._counts[name] = np.zeros(1, dtype=np.int64)
        self._counts[name] += n_rows

    def _add_squares(self, observation: Observation) -> None:
        name = observation.weight
        if name not in self._squares:
            shape = (observation.n_experts, observation.rows.shape[1])
            self._squares[name] = np.zeros(shape, dtype=np.float32)
            self._counts[name] = np.zeros(observation.n_experts, dtype=np.int64)
        for expert, rows in observation.by_expert():
            self._squares[name][expert] += np.einsum("ij,ij->j", rows, rows)
            self._counts[name][expert] += len(rows)

    def finish(self, found: Moments, damping: float) -> None:
        """Divide by the counts, factor, and hand over; a sum is dropped when its factor is in its file."""
        for name in list(self._sums):
            total = self._sums.pop(name)
            total /= np.float32(self._counts[name][0])
            _check_finite(name, total)
            found.save(name, feedback(total, damping=damping))
        for name, squares in self._squares.items():
            squares /= np.maximum(self._counts[name], 1)[:, None].astype(np.float32)
            _check_finite(name, squares)
        for name, owner in self._owner.items():
            if owner.endswith("#own"):
                found.importance[name] = self._squares[owner.removesuffix("#own")]
            else:
                found.owner[name] = owner


def _check_finite(name: str, values: Matrix) -> None:
    if not np.isfinite(values).all():
        raise BadInputError(f"the inputs of {name!r} are not finite: the model is broken", hint=hints.BROKEN)

"""Importance matrices: how much each input column of each weight matters, measured on a text.

The method of llama-imatrix: the text is cut into chunks, each run from an empty cache, and for every weight the
squares of what it is multiplied with are summed per column. ggml's quantizers weigh their errors with the means. As
there, only weights of layers are looked at unless the head is asked for. Files are read and written by `imatrix_file`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgellm.artifact import Provenance
from edgellm.convert import hints
from edgellm.convert.chunks import chunk_tokens, cut
from edgellm.convert.mix_rules import EMBEDDINGS
from edgellm.errors import BadInputError, UnsupportedError
from edgellm.formats.paths import open_regular
from edgellm.native import ggml
from edgellm.protocols import Backend, Batcher, Feed, FloatArray, Observation
from edgellm.shape import Shape, n_elements

MAX_CHUNKS = 128
MAX_TEXT_BYTES = 64 * 1024**2
MAX_LOGITS = 16 * 1024**2
BUNDLED_TEXT = Path(__file__).parent / "calibration_text.txt"
Encode = Callable[[str, int, ggml.Floats, str], ggml.Bytes]
Counts = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Importance:
    """What was seen of one weight.

    Attributes:
        sums: (n_matrices, n_columns) float32 sums of squares of its inputs.
        counts: (n_matrices,) rows summed; 0 for an expert that no token was sent to.
    """

    sums: FloatArray
    counts: Counts

    def means(self, n_matrices: int) -> FloatArray:
        """(n_matrices, n_columns) float32 means; all ones where nothing was seen, as in llama-quantize."""
        counts = self.counts.astype(np.float32)[:, np.newaxis]
        with np.errstate(divide="ignore", invalid="ignore"):
            means = np.where(counts > 0, self.sums / counts, np.float32(1))
        return means.astype(np.float32).reshape(n_matrices, -1)


@dataclasses.dataclass(frozen=True)
class ImportanceMatrix:
    """Importance of weights by name, and where it comes from."""

    entries: dict[str, Importance]
    provenance: Provenance

    def unseen_experts(self) -> int:
        """Matrices that no token met: they are quantized as if all columns mattered alike."""
        return sum(int((entry.counts == 0).sum()) for entry in self.entries.values())


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A text to collect on, and its name."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        """Of the text's UTF-8 bytes."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def bundled_calibration() -> Calibration:
    """The text that comes with edgellm: prose, dialogue, code, lists and numbers, in several languages."""
    return Calibration("edgellm's calibration text", BUNDLED_TEXT.read_text(encoding="utf-8"))


def read_calibration(path: Path) -> Calibration:
    """A text of the user's.

    Raises:
        MissingInputError: there is no such file.  BadInputError: it is larger than 64 MiB, or not UTF-8.
    """
    with open_regular(path) as (file, n_bytes):
        if n_bytes > MAX_TEXT_BYTES:
            raise BadInputError(
                f"{path}: {n_bytes} bytes of text, at most {MAX_TEXT_BYTES} are read",
                hint="give a part of it",
            )
        raw = file.read(MAX_TEXT_BYTES)
    try:
        return Calibration(path.name, raw.decode("utf-8"))
    except UnicodeDecodeError as err:
        raise BadInputError(f"{path}: not UTF-8 text at byte {err.start}", hint=hints.SAVE_AS_UTF8) from None


def collect(
    backend: Backend,
    ids: Sequence[int],
    calibration: Calibration,
    *,
    model: str,
    model_sha256: str | None = None,
    max_chunks: int = MAX_CHUNKS,
    with_head: bool = False,
    is_encoder: bool = False,
    progress: Callable[[int], None] | None = None,
) -> ImportanceMatrix:
    """Run a model over a text and sum what its weights see.

    Args:
        ids: token ids of the text, special tokens added: `backend.tokenize(text, add_special=True, parse_special=False)`.
        calibration: the text they come from.
        model, model_sha256: for the provenance.
        is_encoder: the model gives embeddings; its chunks are no longer than what it was trained for.
        with_head: also look at the head, as `llama-imatrix --process-output`; a tied head is token_embd.weight.
        progress: called with the number of tokens just run.

    Raises:
        BadInputError: the text is shorter than a chunk, or the model computes what is not finite.
        UnsupportedError: this backend has no observer.
    """
    if not backend.capabilities.observer:
        raise UnsupportedError("this backend does not show what weights are multiplied with")
    length = chunk_tokens(backend.context_train)
    chunks = cut(ids, length, calibration.name)[:max_chunks]
    collector = _Collector(with_head=with_head)
    with _opened(backend, collector, length, is_encoder=is_encoder) as run_chunk:
        for chunk in chunks:
            if backend.add_bos and backend.bos_id is not None:
                chunk[0] = backend.bos_id
            run_chunk(chunk)
            if progress:
                progress(length)
    info = backend.info
    provenance = Provenance(
        text=calibration.name,
        text_sha256=calibration.sha256,
        n_tokens=len(chunks) * length,
        chunk_tokens=length,
        model=model,
        model_sha256=model_sha256,
        engine=f"{info.engine} {info.engine_version}",
    )
    return ImportanceMatrix(collector.result(), provenance)


@contextlib.contextmanager
def _opened(
    backend: Backend, collector: _Collector, context: int, *, is_encoder: bool
) -> Iterator[Callable[[list[int]], object]]:
    """What runs a chunk through the model, while the collector looks on."""
    if is_encoder:
        embedder = backend.open_embedder(context=context, pooling="none", observer=collector)
        with contextlib.closing(embedder):
            yield embedder.embed
        return
    batcher = backend.open(n_sequences=1, context=context, observer=collector)
    at_once = max(1, MAX_LOGITS // backend.vocab_size)
    with contextlib.closing(batcher):
        yield lambda chunk: _run_chunk(batcher, chunk, at_once)


def _run_chunk(batcher: Batcher, chunk: list[int], at_once: int) -> None:
    """All outputs are asked for: otherwise the last layer would see the last token alone."""
    batcher.free(0)
    for start in range(0, len(chunk), at_once):
        batcher.step([Feed(sequence=0, tokens=chunk[start : start + at_once], want="all")])


class _Collector:
    """An Observer that keeps sums of squares, in float64 until the end."""

    def __init__(self, *, with_head: bool) -> None:
        self._heads = {"output.weight", "token_embd.weight"} if with_head else set()
        self._sums: dict[str, npt.NDArray[np.float64]] = {}
        self._counts: dict[str, Counts] = {}
        self._last_source = 0
        self._last_sum = np.zeros(0, dtype=np.float32)

    def wants(self, weight: str) -> bool:
        return weight.startswith("blk.") or weight in self._heads

    def observe(self, observation: Observation) -> None:
        name = observation.weight
        if name not in self._sums:
            size = observation.n_experts, observation.rows.shape[1]
            self._sums[name] = np.zeros(size)
            self._counts[name] = np.zeros(size[0], dtype=np.int64)
        if observation.experts is None:
            self._sums[name][0] += self._sum_of_squares(observation)
            self._counts[name][0] += len(observation.rows)
            return
        for expert, rows in observation.by_expert():
            self._sums[name][expert] += np.einsum("ij,ij->j", rows, rows)
            self._counts[name][expert] += len(rows)

    def _sum_of_squares(self, observation: Observation) -> FloatArray:
        """Query, key and value see the same rows: summed once."""
        if observation.source != self._last_source:
            self._last_sum = np.einsum("ij,ij->j", observation.rows, observation.rows)
            self._last_source = observation.source
        return self._last_sum

    def result(self) -> dict[str, Importance]:
        found = {}
        for name in sorted(self._sums):
            with np.errstate(over="ignore"):
                sums = self._sums[name].astype(np.float32)
            if not np.isfinite(sums).all():
                raise BadInputError(
                    f"{name} is multiplied with what is not finite: the model is broken", hint=hints.BROKEN
                )
            found[name] = Importance(sums, self._counts[name])
        return found


def encoder(matrix: ImportanceMatrix, shapes: Mapping[str, Shape]) -> Encode:
    """What packs rows of tensors for `writer.write_gguf`: ggml's quantizers, weighing errors by importance.

    A tensor that is not in the matrix is packed without. Safe to call from several threads.

    Args:
        shapes: tensor name -> shape, rows first; rows are counted over all experts together.

    Raises:
        BadInputError: the matrix is of another model: no name fits, or a tensor has other columns or experts.
    """
    used = {name: shape for name, shape in shapes.items() if name in matrix.entries}
    if shapes and not used:
        raise BadInputError(
            f"the importance matrix is of another model: it has {next(iter(matrix.entries), 'nothing')}, which this one has not",
            hint="use --imatrix auto, or a matrix of this very model",
        )
    means: dict[str, FloatArray] = {}
    for name, shape in used.items():
        entry = matrix.entries[name]
        n_matrices = n_elements(shape[:-2])
        if entry.sums.size == n_matrices * shape[-1]:
            means[name] = entry.means(n_matrices)
        elif name not in EMBEDDINGS:  # as in llama-quantize: what goes in there is no activation
            raise BadInputError(
                f"the importance matrix has {entry.sums.size} values for {name}, which has {n_matrices} x {shape[-1]} columns",
                hint="use --imatrix auto, or a matrix of this very model",
            )

    def encode(name: str, first_row: int, rows: ggml.Floats, type_name: str) -> ggml.Bytes:
        if name not in means:
            return ggml.quantize_rows(rows, type_name)
        rows_each = shapes[name][-2]
        packed = []
        at = 0
        while at < len(rows):
            matrix_index, row = divmod(first_row + at, rows_each)
            end = min(len(rows), at + rows_each - row)
            packed.append(ggml.quantize_rows(rows[at:end], type_name, means[name][matrix_index]))
            at = end
        return packed[0] if len(packed) == 1 else np.concatenate(packed)

    return encode

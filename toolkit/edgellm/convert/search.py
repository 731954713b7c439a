"""A mix of our own for a byte budget: the order of its steps.

What the weights are multiplied with is collected on a few thousand tokens; damages are measured; types are chosen;
and the encoder compensates the errors of rounding. The tokens come from a calibration text, or are drawn from the
vocabulary, so that nothing but the weights decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from edgellm.convert import allocate, hessian, sensitivity, writer
from edgellm.convert.allocate import Allocation, Candidate
from edgellm.convert.rounding import make_encoder
from edgellm.convert.rounding.encoder import Encode
from edgellm.convert.sensitivity import Load
from edgellm.convert.source import Source
from edgellm.errors import BadInputError
from edgellm.formats import ggml_types

# Every llama.cpp reads these; a target may permit fewer.
TYPES = (
    "Q2_K", "Q3_K", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_K", "Q4_1", "Q5_0", "Q5_K", "Q5_1", "Q6_K", "Q8_0",
)  # fmt: skip
FINEST = TYPES[-1]
PROBE_BPW = 4.0
# For `writer.write_gguf`: with fewer rows at a time, numpy is called more than it computes.
SLAB_WEIGHTS = 1 << 21
Progress = Callable[[str, int, int], None]


class Mix(NamedTuple):
    """What to write: the types (of the tensors that a mix may choose for), and how to encode their rows."""

    allocation: Allocation
    encode: Encode


class Measured(NamedTuple):
    """What is known of a model's tensors; any number of budgets may be tried on it.

    Attributes:
        candidates: tensor -> types with their bytes and damage, in nats per token.
        fixed_bytes: the header, and the tensors whose type is not chosen.
        encode: for `writer.write_gguf`, as long as the folder of `measure` is there.
    """

    candidates: dict[str, list[Candidate]]
    fixed_bytes: int
    encode: Encode

    def mix(self, max_bytes: int) -> Mix:
        """The mix with the least damage in a file of at most that many bytes.

        Raises:
            SpecError: even the smallest file is larger; the hint says what would fit.
        """
        return Mix(allocate.allocate(self.candidates, self.fixed_bytes, max_bytes), self.encode)


def measure(
    source: Source,
    load: Load,
    folder: Path,
    *,
    header_bytes: int,
    text_ids: Sequence[int] | None,
    n_workers: int,
    permitted: Sequence[str] = TYPES,
    n_chunks: int = hessian.N_CHUNKS,
    max_probes: int = sensitivity.MAX_PROBES,
    memory_bytes: int = hessian.MEMORY_BYTES,
    progress: Progress | None = None,
) -> Measured:
    """Run the model and measure the damage of each type in each tensor.

    Args:
        source: the model, its vocabulary in the header.
        load: opens a GGUF as a Backend that can be observed.
        folder: for a copy of the model in F16 or F32, which is what is run, and for factors; `needed_bytes` says how
            much. It must live as long as the encoder is used.
        header_bytes: of the file to be written, see `writer.header_bytes`.
        text_ids: token ids of a calibration text, or None for tokens drawn from the vocabulary.
        permitted: types to choose from.
        progress: called with (stage, done, total).

    Raises:
        UnsupportedError: the backend cannot be observed.
    """
    types = sensitivity.choosable(source, permitted)
    working = folder / "working.gguf"
    _write_working_copy(working, source, n_workers)
    moments, chunks = _collect(working, source, load, folder, text_ids, n_chunks, memory_bytes, progress)
    errors = sensitivity.output_errors(
        source, types, moments, progress=_counted(progress, "errors", len(types))
    )
    found = sensitivity.groups(source, list(types), max_probes=max_probes)
    probe_types = {name: _probe_type(options) for name, options in types.items()}
    encode = make_encoder(moments, source.shape.tensors)
    measured = sensitivity.probe(
        working,
        source,
        found,
        probe_types,
        encode,
        load,
        chunks,
        progress=_counted(progress, "probes", len(found)),
    )
    working.unlink()
    options = sensitivity.candidates(source, errors, measured, probe_types)
    return Measured(options, fixed_bytes(source, types, header_bytes), encode)


def check_budget(
    source: Source, *, max_bytes: int, header_bytes: int, permitted: Sequence[str] = TYPES
) -> None:
    """Refuse a budget that nothing fits, before anything is run.

    Raises:
        SpecError: it is below the smallest file; the hint says what would fit.
    """
    types = sensitivity.choosable(source, permitted)
    shapes = source.shape.tensors
    sizes = {
        name: [Candidate(kind, allocate.padded_bytes(shapes[name], kind), 0.0) for kind in options]
        for name, options in types.items()
    }
    allocate.allocate(sizes, fixed_bytes(source, types, header_bytes), max_bytes)


def largest_bytes(source: Source, *, permitted: Sequence[str] = TYPES) -> int:
    """Bytes of the weights of the largest mix there can be, padding included, the header not."""
    types = sensitivity.choosable(source, permitted)
    shapes = source.shape.tensors
    chosen = sum(
        max(allocate.padded_bytes(shapes[name], kind) for kind in options) for name, options in types.items()
    )
    return chosen + fixed_bytes(source, types, 0)


def needed_bytes(source: Source) -> int:
    """Bytes that `search` puts into its folder at most: the copy of the model, and the factors."""
    factors = sum(4 * columns * columns for columns in hessian.matrix_columns(source.shape))
    return writer.needed_bytes(source, _working_types(source, "F32")) + factors


def _write_working_copy(path: Path, source: Source, n_workers: int) -> None:
    """What is run: in F16, or in F32 where a weight is beyond F16.

    Not in BF16 or Q8_0, where inputs are rounded as coarsely as the weights: any change of an early layer, however
    small, then moves the output by 0.0002 or 0.0035 nats (SmolLM2-135M; F16: 0.000005), as much as a probe measures.
    """
    for kind in ("F16", "F32"):
        try:
            writer.write_gguf(path, source, _working_types(source, kind), source.header, n_workers=n_workers)
        except BadInputError:
            if kind == "F32":
                raise
        else:
            return


def _working_types(source: Source, kind: str) -> dict[str, str]:
    return source.base_types() | dict.fromkeys(sensitivity.choosable(source, (kind,)), kind)


def fixed_bytes(source: Source, chosen_for: Sequence[str] | dict[str, list[str]], header_bytes: int) -> int:
    """The header and the tensors whose type is not chosen, padding included."""
    base = source.base_types()
    kept = (t for t in source.tensors if t.name not in chosen_for)
    return header_bytes + sum(allocate.padded_bytes(t.shape, base[t.name]) for t in kept)


def _collect(
    working: Path, source: Source, load: Load, folder: Path, text_ids: Sequence[int] | None, n_chunks: int,
    memory_bytes: int, progress: Progress | None,
) -> tuple[hessian.Moments, list[list[int]]]:  # fmt: skip
    backend = load(working)
    try:
        if text_ids is None:
            chunks, damping = (
                hessian.vocabulary_chunks(backend, n_chunks=n_chunks),
                hessian.VOCABULARY_DAMPING,
            )
        else:
            chunks, damping = hessian.text_chunks(backend, text_ids, n_chunks=n_chunks), hessian.TEXT_DAMPING
        total = sum(map(len, chunks)) * len(hessian.passes(source.shape, memory_bytes))
        return hessian.collect(
            backend, source.shape, chunks, folder, damping=damping, memory_bytes=memory_bytes,
            progress=_counted(progress, "observe", total),
        ), chunks  # fmt: skip
    finally:
        backend.close()


def _probe_type(options: Sequence[str]) -> str:
    """Coarse enough to measure, fine enough that the square law holds."""
    return next((name for name in options if ggml_types.BY_NAME[name].bpw >= PROBE_BPW), options[-1])


def _counted(progress: Progress | None, stage: str, total: int) -> Callable[[int], None]:
    done = 0

    def step(n: int) -> None:
        nonlocal done
        done += n
        if progress:
            progress(stage, done, total)

    return step

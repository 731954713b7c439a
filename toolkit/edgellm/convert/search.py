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
from edgellm.convert.allocate import Allocation
from edgellm.convert.rounding import make_encoder
from edgellm.convert.rounding.encoder import Encode
from edgellm.convert.sensitivity import Load
from edgellm.convert.source import Source
from edgellm.formats import ggml_types

# Every llama.cpp reads these; a target may permit fewer.
TYPES = (
    "Q2_K", "Q3_K", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_K", "Q4_1", "Q5_0", "Q5_K", "Q5_1", "Q6_K", "Q8_0",
)  # fmt: skip
PROBE_BPW = 4.0
# For `writer.write_gguf`: with fewer rows at a time, numpy is called more than it computes.
SLAB_WEIGHTS = 1 << 21
Progress = Callable[[str, int, int], None]


class Mix(NamedTuple):
    """What to write: the types (of the tensors that a mix may choose for), and how to encode their rows."""

    allocation: Allocation
    encode: Encode


def search(
    source: Source,
    load: Load,
    folder: Path,
    *,
    max_bytes: int,
    header_bytes: int,
    text_ids: Sequence[int] | None,
    n_workers: int,
    permitted: Sequence[str] = TYPES,
    n_chunks: int = hessian.N_CHUNKS,
    max_probes: int = sensitivity.MAX_PROBES,
    memory_bytes: int = hessian.MEMORY_BYTES,
    progress: Progress | None = None,
) -> Mix:
    """Choose types and an encoder.

    Args:
        source: the model, its vocabulary in the header.
        load: opens a GGUF as a Backend that can be observed.
        folder: for a copy of the model in Q8_0, which is what is run, and for factors; `needed_bytes` says how much. It
            must live as long as the encoder is used.
        max_bytes: bound on the file;  header_bytes: of the file to be written, see `writer.header_bytes`.
        text_ids: token ids of a calibration text, or None for tokens drawn from the vocabulary.
        permitted: types to choose from.
        progress: called with (stage, done, total).

    Raises:
        SpecError: the budget is below the smallest file.  UnsupportedError: the backend cannot be observed.
    """
    types = sensitivity.choosable(source, permitted)
    _refuse_early(source, types, header_bytes, max_bytes)
    working = folder / "working.gguf"
    writer.write_gguf(working, source, _working_types(source), source.header, n_workers=n_workers)
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
    return Mix(allocate.allocate(options, fixed_bytes(source, types, header_bytes), max_bytes), encode)


def needed_bytes(source: Source) -> int:
    """Bytes that `search` puts into its folder: the copy of the model, and the factors."""
    factors = sum(4 * columns * columns for columns in hessian.matrix_columns(source.shape))
    return writer.needed_bytes(source, _working_types(source)) + factors


def _working_types(source: Source) -> dict[str, str]:
    """Q8_0 where a row can have it: half the time and space of 16 bits, and next to no error."""
    return {
        **source.base_types(),
        **{name: types[0] for name, types in sensitivity.choosable(source, ("Q8_0",)).items()},
    }


def fixed_bytes(source: Source, chosen_for: Sequence[str] | dict[str, list[str]], header_bytes: int) -> int:
    """The header and the tensors whose type is not chosen, padding included."""
    base = source.base_types()
    kept = (t for t in source.tensors if t.name not in chosen_for)
    return header_bytes + sum(allocate.padded_bytes(t.shape, base[t.name]) for t in kept)


def _refuse_early(source: Source, types: dict[str, list[str]], header_bytes: int, max_bytes: int) -> None:
    """A budget that nothing fits is refused before anything is run."""
    shapes = source.shape.tensors
    sizes = {
        name: [allocate.Candidate(kind, allocate.padded_bytes(shapes[name], kind), 0.0) for kind in options]
        for name, options in types.items()
    }
    allocate.allocate(sizes, fixed_bytes(source, types, header_bytes), max_bytes)


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

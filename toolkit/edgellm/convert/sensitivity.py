"""How much damage each tensor does in each type: measured where it can be, apportioned where it cannot.

Two things are measured. For every tensor and type, the output error of a sample of rows: the part of the energy of
W x that rounding loses, with the inputs that `hessian` saw. And for groups of tensors (the same part of neighbouring
layers), the KL divergence of the whole model's next-token distributions when only that group is coarse. A group's KL
is shared out among its tensors and types in the ratio of their output errors, since KL grows with the square of small
errors; damages of different tensors are taken to add up. Cost: one run over the probe tokens per group, and one
rounding of every tensor.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgellm.checkpoint import SourceTensor, open_checkpoint
from edgellm.convert import mixture
from edgellm.convert.allocate import Candidate, padded_bytes
from edgellm.convert.rounding import FORMATS, encode_plain
from edgellm.convert.rounding.encoder import Encode, Inputs
from edgellm.convert.rows import read_rows
from edgellm.convert.source import PlannedTensor, Source
from edgellm.formats import ggml_types
from edgellm.native import ggml
from edgellm.protocols import Backend, Batcher, Feed, FloatArray

SAMPLE_ROWS = 64
MAX_PROBES = 30
PROBE_CHUNKS = 2
PROBE_TOKENS = 256
MAX_PROBE_LOGITS = 64 * 1024**2
_LAYER = re.compile(r"blk\.([0-9]+)\.(.+)")
Load = Callable[[Path], Backend]


class Group(NamedTuple):
    """Tensors that are probed together, and what it cost: nats per token when all are in the probe's types."""

    names: tuple[str, ...]
    kl: float = 0.0


def candidate_types(shape: Sequence[int], permitted: Sequence[str]) -> list[str]:
    """The permitted types that a tensor's rows can have, from few bits to many."""
    fitting = [name for name in permitted if shape[-1] % ggml_types.BY_NAME[name].block == 0]
    return sorted(fitting, key=lambda name: ggml_types.BY_NAME[name].bpw)


def choosable(source: Source, permitted: Sequence[str]) -> dict[str, list[str]]:
    """Tensors whose type a mix may choose -> their candidate types."""
    found = {}
    for tensor in source.tensors:
        if tensor.always_f32 or not mixture.quantizable(tensor.name, tensor.shape, source.shape.architecture):
            continue
        types = candidate_types(tensor.shape, permitted)
        if types:
            found[tensor.name] = types
    return found


def output_errors(
    source: Source,
    types: Mapping[str, Sequence[str]],
    inputs: Inputs,
    *,
    progress: Callable[[int], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Lost part of the output's energy, per tensor and type.

    Definition: sum of D_k E_k^2 over the energy W H W^T, over a sample of rows; E the rounding errors, H = U D U^T the
    second moment of the inputs (see `rounding.compensate`). Without known inputs H is the identity or its known
    diagonal. Experts are sampled like rows.

    Args:
        types: tensor -> candidate types.
        progress: called with the number of tensors just done, always 1.
    """
    found = {}
    for tensor in source.tensors:
        if tensor.name not in types:
            continue
        rows = _sample(tensor)
        factor = inputs.feedback(tensor.name)
        if factor is not None:
            energy = float(np.square(rows[:, factor.order] @ factor.upper * np.sqrt(factor.weights)).sum())
            weights = np.empty_like(factor.weights)
            weights[factor.order] = factor.weights
        else:
            known = inputs.importance.get(tensor.name)
            weights = np.ones(rows.shape[1], np.float32) if known is None else known.mean(axis=0)
            energy = float((np.square(rows) * weights).sum())
        found[tensor.name] = {
            name: float((np.square(rows - _rounded(rows, name)) * weights).sum()) / energy
            if energy > 0
            else 0.0
            for name in types[tensor.name]
        }
        if progress:
            progress(1)
    return found


def _sample(tensor: PlannedTensor) -> FloatArray:
    """SAMPLE_ROWS rows spread evenly over a tensor, in runs of eight."""
    n = tensor.n_rows
    if n <= SAMPLE_ROWS:
        return read_rows(tensor, 0, n)
    starts = np.linspace(0, n - 8, SAMPLE_ROWS // 8).astype(int)
    return np.concatenate([read_rows(tensor, int(low), int(low) + 8) for low in starts])


def _rounded(rows: FloatArray, type_name: str) -> FloatArray:
    packed = (encode_plain if type_name in FORMATS else ggml.quantize_rows)(rows, type_name)
    return ggml.dequantize_rows(packed, type_name, rows.shape[1])


def groups(source: Source, names: Sequence[str], *, max_probes: int = MAX_PROBES) -> list[Group]:
    """The same part of neighbouring layers together; the first and the last layer, which are often unlike the rest, apart."""
    parts: dict[str, list[tuple[int, str]]] = {}
    alone = []
    for name in names:
        match = _LAYER.fullmatch(name)
        if match:
            parts.setdefault(match[2], []).append((int(match[1]), name))
        else:
            alone.append(Group((name,)))
    per_part = max(1, (max_probes - len(alone)) // max(1, len(parts)))
    found = alone
    for layers in parts.values():
        ordered = [name for _, name in sorted(layers)]
        found += [Group(tuple(band)) for band in _bands(ordered, per_part)]
    return found


def _bands(names: list[str], n_bands: int) -> list[list[str]]:
    if n_bands >= len(names):
        return [[name] for name in names]
    if n_bands < 3:
        return [list(band) for band in np.array_split(np.array(names), n_bands)]
    middle = np.array_split(np.array(names[1:-1]), n_bands - 2)
    return [names[:1], *(list(map(str, band)) for band in middle), names[-1:]]


def probe(
    working: Path,
    source: Source,
    found: Sequence[Group],
    probe_types: Mapping[str, str],
    encode: Encode,
    load: Load,
    chunks: Sequence[list[int]],
    *,
    progress: Callable[[int], None] | None = None,
) -> list[Group]:
    """Measure each group's KL divergence, with its tensors in their probe types and all others as they are.

    Args:
        working: a GGUF of the source in F16 or F32. It is changed in place; its own bytes are put back after each
            probe.
        encode: as the writer will call it.
        load: opens a GGUF; what it returns is closed here.
        chunks: token ids; the first PROBE_TOKENS of the first PROBE_CHUNKS are run.
        progress: called after each group with 1.
    """
    tensors = {tensor.name: tensor for tensor in source.tensors}
    stored = open_checkpoint(working).tensors
    tokens = [chunk[:PROBE_TOKENS] for chunk in chunks[:PROBE_CHUNKS]]
    wanted = _log_probabilities(load, working, tokens)
    measured = []
    for group in found:
        with working.open("r+b") as file:
            kept = [
                _coarsen(file.fileno(), tensors[name], stored[name], probe_types[name], encode)
                for name in group.names
            ]
        try:
            measured.append(
                Group(group.names, _divergence(wanted, _log_probabilities(load, working, tokens)))
            )
        finally:
            with working.open("r+b") as file:
                for offset, original in kept:
                    os.pwrite(file.fileno(), original, offset)
        if progress:
            progress(1)
    return measured


def _coarsen(
    fd: int, tensor: PlannedTensor, stored: SourceTensor, type_name: str, encode: Encode
) -> tuple[int, bytes]:
    """Write a tensor's rounded values over its own; the offset and the bytes that stood there."""
    step = max(1, (1 << 21) // tensor.n_columns)
    offset, kept = stored.offset, []
    for low in range(0, tensor.n_rows, step):
        rows = read_rows(tensor, low, min(low + step, tensor.n_rows))
        rounded = ggml.dequantize_rows(encode(tensor.name, low, rows, type_name), type_name, tensor.n_columns)
        packed = ggml.quantize_rows(rounded, stored.type_name).tobytes()
        kept.append(os.pread(fd, len(packed), offset))
        os.pwrite(fd, packed, offset)
        offset += len(packed)
    return stored.offset, b"".join(kept)


def _log_probabilities(load: Load, path: Path, tokens: Sequence[list[int]]) -> list[FloatArray]:
    """(n_tokens, n_vocab) per chunk."""
    backend = load(path)
    try:
        batcher = backend.open(n_sequences=1, context=max(map(len, tokens)))
        try:
            return [_run(batcher, chunk, backend.vocab_size) for chunk in tokens]
        finally:
            batcher.close()
    finally:
        backend.close()


def _run(batcher: Batcher, chunk: list[int], n_vocab: int) -> FloatArray:
    """The last positions of a chunk, as many as MAX_PROBE_LOGITS allow over all chunks."""
    n_scored = max(1, min(len(chunk), MAX_PROBE_LOGITS // (PROBE_CHUNKS * n_vocab)))
    batcher.free(0)
    if n_scored < len(chunk):
        batcher.step([Feed(sequence=0, tokens=chunk[:-n_scored])])
    logits = batcher.step([Feed(sequence=0, tokens=chunk[-n_scored:], want="all")])[0].logits
    assert logits is not None
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)
    return logits


def _divergence(wanted: Sequence[FloatArray], found: Sequence[FloatArray]) -> float:
    """Mean KL divergence in nats per token."""
    rows = [
        np.einsum("ij,ij->i", np.exp(p), p - q, dtype=np.float64) for p, q in zip(wanted, found, strict=True)
    ]
    return max(0.0, float(np.concatenate(rows).mean()))


def candidates(
    source: Source,
    errors: Mapping[str, Mapping[str, float]],
    measured: Sequence[Group],
    probe_types: Mapping[str, str],
) -> dict[str, list[Candidate]]:
    """What `allocate` needs: each tensor's types with their bytes and their share of the measured KL.

    Args:
        errors: of `output_errors`.  measured: of `probe`.
    """
    group_of = {name: group for group in measured for name in group.names}
    found = {}
    for name, by_type in errors.items():
        group = group_of[name]
        total = sum(errors[other][probe_types[other]] for other in group.names)
        per_error = group.kl / total if total > 0 else 0.0
        shape = source.shape.tensors[name]
        found[name] = [
            Candidate(type_name, padded_bytes(shape, type_name), per_error * error)
            for type_name, error in by_type.items()
        ]
    return found

"""Importance matrices as GGUF files, in the format of llama-imatrix.

Two tensors for each weight, `<weight>.in_sum2` and `<weight>.counts`, both F32, and the keys general.type,
imatrix.datasets, imatrix.chunk_count and imatrix.chunk_size (llama.cpp, tools/imatrix). What edgellm knows beyond that
stands under a key of its own, which llama.cpp passes over.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgellm.artifact import Provenance, sha256_file
from edgellm.convert import hints
from edgellm.convert.imatrix import Importance, ImportanceMatrix
from edgellm.errors import BadInputError
from edgellm.formats import records
from edgellm.formats.gguf import GGUFFile, GGUFTensor, read_gguf
from edgellm.formats.paths import open_regular

MAX_DATA_BYTES = 2 * 1024**3
MAX_COUNT = 1 << 40
MAX_DATASETS = 1024
PROVENANCE_KEY = "edgellm.imatrix.provenance"
_SUMS, _COUNTS = ".in_sum2", ".counts"
_HINT = "make one with --imatrix auto, or with llama-imatrix (an older .dat: llama-imatrix -m MODEL --in-file OLD -o NEW.gguf)"


def write_imatrix(path: Path, matrix: ImportanceMatrix) -> None:
    """Write the matrix; the file appears whole, or not at all.

    Raises:
        OSError: the place cannot be written.
    """
    from gguf import GGUFValueType, GGUFWriter

    said = matrix.provenance
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    writer: Any = GGUFWriter(None, "")
    writer.kv_data[0].clear()
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [said.text])
    writer.add_uint32("imatrix.chunk_count", said.n_tokens // said.chunk_tokens)
    writer.add_uint32("imatrix.chunk_size", said.chunk_tokens)
    writer.add_key_value(PROVENANCE_KEY, records.to_json(said).decode(), GGUFValueType.STRING)
    for name, entry in sorted(matrix.entries.items()):
        writer.add_tensor(name + _SUMS, np.ascontiguousarray(entry.sums, dtype=np.float32))
        writer.add_tensor(name + _COUNTS, entry.counts.astype(np.float32).reshape(-1, 1))
    try:
        writer.write_header_to_file(partial)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@hints.of(BadInputError, _HINT)
def read_imatrix(path: Path) -> ImportanceMatrix:
    """Read a matrix that edgellm or llama-imatrix wrote.

    Raises:
        MissingInputError: there is no such file.
        BadInputError: no importance matrix, truncated, or with sums or counts that cannot be.
    """
    file = read_gguf(path)
    if file.get("general.type", str, None) != "imatrix":
        raise BadInputError(f"{path.name}: a GGUF file, but not an importance matrix")
    n_bytes = sum(tensor.n_bytes for tensor in file.tensors.values())
    if n_bytes > MAX_DATA_BYTES:
        raise BadInputError(f"{path.name}: {n_bytes} bytes of sums, at most {MAX_DATA_BYTES} are read")
    names = _paired_names(file)
    entries = {}
    with open_regular(path) as (stream, _):
        for name in names:
            sums, counts = (_read(stream, file, file.tensors[name + suffix]) for suffix in (_SUMS, _COUNTS))
            entries[name] = _entry(f"{path.name}: {name}", sums, counts)
    return ImportanceMatrix(entries, _provenance(file))


def _paired_names(file: GGUFFile) -> list[str]:
    """Weights that have both sums and counts; anything else is refused."""
    found: dict[str, set[str]] = {}
    for name in file.tensors:
        suffix = next((suffix for suffix in (_SUMS, _COUNTS) if name.endswith(suffix)), None)
        if suffix is None or len(name) == len(suffix):
            raise BadInputError(
                f"{file.path.name}: tensor {name!r} holds neither sums nor counts of a weight"
            )
        found.setdefault(name.removesuffix(suffix), set()).add(suffix)
    for name, suffixes in found.items():
        for suffix in {_SUMS, _COUNTS} - suffixes:
            raise BadInputError(f"{file.path.name}: {name} has no {suffix.strip('.')}")
    if not found:
        raise BadInputError(f"{file.path.name}: an importance matrix without entries")
    return list(found)


def _read(stream: Any, file: GGUFFile, tensor: GGUFTensor) -> npt.NDArray[np.float32]:
    where = f"{file.path.name}: {tensor.name}"
    if tensor.type_name != "F32":
        raise BadInputError(f"{where} is {tensor.type_name}, expected F32")
    stream.seek(tensor.offset)
    raw = stream.read(tensor.n_bytes)
    if len(raw) != tensor.n_bytes:
        raise BadInputError(f"{where}: the file shrank while it was read")
    values = np.frombuffer(raw, dtype="<f4").astype(np.float32)
    if not np.isfinite(values).all() or values.min() < 0:
        raise BadInputError(f"{where} holds a value that is negative or not finite")
    return values


def _entry(where: str, sums: npt.NDArray[np.float32], counts: npt.NDArray[np.float32]) -> Importance:
    if sums.size % counts.size:
        raise BadInputError(f"{where}: {sums.size} sums do not divide among {counts.size} counts")
    if counts.max() > MAX_COUNT:
        raise BadInputError(f"{where}: a count of {counts.max():g}, at most {MAX_COUNT} is possible")
    whole = np.rint(counts)
    if np.abs(whole - counts).max() > 1e-3:
        raise BadInputError(f"{where}: a count is not a whole number")
    table = sums.reshape(counts.size, -1)
    if table[whole == 0].any():
        raise BadInputError(f"{where}: sums of rows that were not counted")
    return Importance(table, whole.astype(np.int64))


def _provenance(file: GGUFFile) -> Provenance:
    """Ours where the file has it, else what llama-imatrix writes."""
    n_chunks = file.fields.integer("imatrix.chunk_count", 0, 1 << 31)
    chunk_tokens = file.fields.integer("imatrix.chunk_size", 1, 1 << 24)
    datasets = file.get("imatrix.datasets", list, None)
    if datasets is None or len(datasets) > MAX_DATASETS:
        raise BadInputError(
            f"{file.path.name}: imatrix.datasets is not a list of at most {MAX_DATASETS} names"
        )
    digest = sha256_file(file.path)
    ours = file.get(PROVENANCE_KEY, str, None)
    if ours is not None:
        said = records.from_json(Provenance, ours.encode(), f"{file.path.name}: {PROVENANCE_KEY}")
        return records.replace(said, file_sha256=digest)
    return Provenance(
        text=", ".join(Path(name).name for name in datasets) or "not stated",
        text_sha256=None,
        n_tokens=n_chunks * chunk_tokens,
        chunk_tokens=chunk_tokens,
        model=None,
        model_sha256=None,
        engine=None,
        file_sha256=digest,
    )

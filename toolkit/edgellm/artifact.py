"""Artifact: a converted model as a directory, with its manifest and receipt.

    manifest.json   what it is, where it came from, how and why it was made, sha256 of every other file
    model.gguf      the model
    tokenizer.json  the source's own tokenizer, where it has one
    imatrix.gguf    the importance matrix, where one was collected; in llama.cpp's format
    receipt.json    how far it is from its source, where that was measured

Nothing here reads weights; how a directory appears whole is in `staging`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from edgellm.errors import ArtifactError, BadInputError, MissingInputError
from edgellm.formats.records import Record, from_json, read_bounded, to_json

MANIFEST_SCHEMA = "edgellm.manifest/1"
RECEIPT_SCHEMA = "edgellm.receipt/1"
MANIFEST_NAME = "manifest.json"
RECEIPT_NAME = "receipt.json"
MAX_MANIFEST_BYTES = 16 * 1024**2
MAX_CONTEXT = 1 << 30
MAX_NAME_CHARS = 1024
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_HASH_CHUNK_BYTES = 1 << 20
ZERO_WEIGHTS = "all weights are zero in "  # how a warning begins that only writing shows


class Reason(Record):
    """One choice of a recipe and why it was made."""

    choice: str
    because: str


class Recipe(Record):
    """How a model is converted, resolved to every tensor, with the reason for each choice.

    Attributes:
        quant: the name asked for or chosen, for example `Q4_K_M`.
        tensor_types: GGUF tensor name -> ggml type.
        kv_type, context: used when it is run, unless the caller says otherwise; an encoder keeps no KV cache (None).
        threads, offload: what the target has; a run uses what the machine it runs on has.
        steps: what will be done, in order.
        imatrix: the importance matrix that weighs rounding errors.
        predicted_memory_bytes: what running it is expected to take: weights, kv, compute, program.
    """

    format: Literal["gguf", "onnx"]
    quant: str
    tensor_types: dict[str, str]
    kv_type: str | None
    context: int
    threads: int | None
    offload: str
    steps: list[str]
    reasons: list[Reason]
    predicted_memory_bytes: dict[str, int] = {}
    imatrix: Literal["none", "collected", "file"] = "none"

    def __post_init__(self) -> None:
        if not 1 <= self.context <= MAX_CONTEXT:
            raise ValueError(f"context is {self.context}, outside 1 to {MAX_CONTEXT}")


class FileEntry(Record):
    """A file of the artifact."""

    name: str
    n_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        check_file_name(self.name)
        if not _SHA256.match(self.sha256):
            raise ValueError(f"sha256 of {self.name!r} is not 64 hexadecimal digits")


class Parent(Record):
    """A file the artifact was made from; its name is relative to the model's directory, its size may not be known."""

    name: str
    n_bytes: int | None
    sha256: str

    def __post_init__(self) -> None:
        if len(self.name) > MAX_NAME_CHARS or any(part in {"", ".", ".."} for part in self.name.split("/")):
            raise ValueError(f"not a name inside a directory: {self.name[:80]!r}")


class Provenance(Record):
    """Where an importance matrix comes from; None is what its file does not say.

    Attributes:
        text, text_sha256: the calibration text.
        n_tokens: tokens run;  chunk_tokens: tokens in each chunk.
        model, model_sha256: what ran them;  engine: by which program.
        file_sha256: of the file the matrix was read from; None if it was collected.
    """

    text: str
    text_sha256: str | None
    n_tokens: int
    chunk_tokens: int
    model: str | None
    model_sha256: str | None
    engine: str | None
    file_sha256: str | None = None

    def __post_init__(self) -> None:
        for name, low in (("n_tokens", 0), ("chunk_tokens", 1)):
            value = getattr(self, name)
            if not low <= value < 1 << 53:
                raise ValueError(f"{name} is {value}, expected at least {low}")


class Manifest(Record):
    """What an artifact is and where it came from.

    Attributes:
        bpw: 8 * tensor bytes / n_params, from the real bytes.
        licence: as the source states it; None where it states none.
        importance: where the importance matrix comes from; None where none was used.
    """

    schema: str
    model: str
    revision: str | None
    architecture: str
    format: Literal["gguf", "onnx"]
    quant: str
    n_params: int
    file_bytes: int
    bpw: float
    context_train: int
    target: str
    recipe: Recipe | None
    files: list[FileEntry]
    parents: list[Parent]
    tool_versions: dict[str, str]
    argv: list[str]
    licence: str | None
    created_at: str | None
    warnings: list[str] = []
    importance: Provenance | None = None

    def __post_init__(self) -> None:
        if self.schema != MANIFEST_SCHEMA:
            raise ValueError(f"schema is {self.schema!r}, expected {MANIFEST_SCHEMA!r}")
        for name, low in (("n_params", 0), ("file_bytes", 0), ("bpw", 0), ("context_train", 1)):
            value = getattr(self, name)
            if not low <= value < 1 << 62:
                raise ValueError(f"{name} is {value}, expected at least {low}")
        names = [entry.name for entry in self.files]
        if len(names) != len(set(names)):
            raise ValueError("a file is listed twice")


class GoldenOutput(Record):
    """The greedy continuation of a fixed prompt."""

    prompt: str
    token_ids: list[int]
    text: str


class GoldenEmbedding(Record):
    """The first values of a fixed sentence's embedding, scaled to length 1."""

    text: str
    token_ids: list[int]
    first_values: list[float]


class Receipt(Record):
    """How far the converted model is from its reference, on the same token ids.

    A model that generates text is compared by its next-token distributions: KL divergence is KL(reference ||
    converted) in nats per token, errors are standard errors of the mean. One that gives embeddings is compared by the
    cosines of its embeddings with the reference's. What belongs to the other kind is None.

    Attributes:
        reference_engine: what computed the reference.  reference_because: why it was that.
        same_parents: the reference is, hash by hash, what the artifact was made from; None where it does not say.
        n_tokens: positions scored; of embeddings, tokens run.
        n_texts: embeddings compared.  cosine_mean, cosine_min: over them.
        max_kl, min_top1_agreement, min_cosine: the bounds that decide the verdict; without a least agreement
            any will do.
    """

    schema: str
    reference: str
    reference_engine: str
    reference_sha256: str
    text_name: str
    text_sha256: str
    n_tokens: int
    verdict: Literal["pass", "fail"]
    kind: Literal["generation", "embedding"] = "generation"
    kl_mean: float | None = None
    kl_mean_error: float | None = None
    kl_p99: float | None = None
    top1_agreement: float | None = None
    top1_agreement_error: float | None = None
    perplexity_ratio: float | None = None
    perplexity_ratio_error: float | None = None
    golden: list[GoldenOutput] | None = None
    max_kl: float | None = None
    reference_because: str = "not stated"
    same_parents: bool | None = None
    min_top1_agreement: float | None = None
    n_texts: int | None = None
    cosine_mean: float | None = None
    cosine_min: float | None = None
    min_cosine: float | None = None
    golden_embeddings: list[GoldenEmbedding] | None = None

    def __post_init__(self) -> None:
        if self.schema != RECEIPT_SCHEMA:
            raise ValueError(f"schema is {self.schema!r}, expected {RECEIPT_SCHEMA!r}")
        for kind, fields in _FIGURES.items():
            for name in fields:
                if (getattr(self, name) is not None) != (kind == self.kind):
                    there = "absent" if kind == self.kind else "there"
                    raise ValueError(f"{name} is {there} in a receipt of kind {self.kind!r}")
        if self.kind == "embedding" and self.min_top1_agreement is not None:
            raise ValueError("min_top1_agreement is there in a receipt of kind 'embedding'")


_FIGURES = {
    "generation": (
        "kl_mean", "kl_mean_error", "kl_p99", "top1_agreement", "top1_agreement_error", "perplexity_ratio",
        "perplexity_ratio_error", "golden", "max_kl",
    ),
    "embedding": ("n_texts", "cosine_mean", "cosine_min", "min_cosine", "golden_embeddings"),
}  # fmt: skip


class Artifact(Record):
    """An artifact on disk, or a plain GGUF file with a manifest derived from its header."""

    path: str
    manifest: Manifest
    model_path: str
    tokenizer_path: str | None
    receipt: Receipt | None


def check_file_name(name: str) -> str:
    """A plain file name: no directory, no way out.

    Raises:
        ValueError: the name is empty, hidden by a separator, a dot name, or holds control characters.
    """
    if not name or name in {".", ".."} or re.search(r"[/\\:\x00-\x1f]", name) or len(name.encode()) > 255:
        raise ValueError(f"not a plain file name: {name!r}")
    return name


def read_manifest(directory: Path) -> Manifest:
    """The manifest of an artifact directory.

    Raises:
        MissingInputError: there is none.  BadInputError: it is malformed.
    """
    manifest_path = directory / MANIFEST_NAME
    if not manifest_path.is_file():
        raise MissingInputError(
            f"{directory}: no {MANIFEST_NAME}, so not an artifact",
            hint="convert a model first: edgellm convert MODEL",
        )
    return from_json(Manifest, read_bounded(manifest_path, MAX_MANIFEST_BYTES), str(manifest_path))


def holds_nothing_else(directory: Path) -> bool:
    """Whether a directory is an artifact and holds only the files that its manifest lists."""
    if directory.is_symlink() or not directory.is_dir():
        return False
    try:
        listed = {entry.name for entry in read_manifest(directory).files}
    except (BadInputError, MissingInputError):
        return False
    return {path.name for path in directory.iterdir()} <= listed | {MANIFEST_NAME}


def open_directory(directory: Path) -> Artifact:
    """Read an artifact's manifest and check that its files are there with their sizes; hashes are `verify`'s work.

    Raises:
        MissingInputError: no manifest.  BadInputError: a malformed one.  ArtifactError: a file is missing or has another size.
    """
    manifest = read_manifest(directory)
    manifest_path = directory / MANIFEST_NAME
    names = set()
    for entry in manifest.files:
        path = directory / entry.name
        if path.is_symlink() or not path.is_file():
            raise ArtifactError(
                f"{path}: named in the manifest but not a file there", hint="convert the model again"
            )
        seen_bytes = path.stat().st_size
        if seen_bytes != entry.n_bytes:
            raise ArtifactError(
                f"{path}: {seen_bytes} bytes, the manifest says {entry.n_bytes}",
                hint="convert the model again",
            )
        names.add(entry.name)
    model_name = f"model.{manifest.format}"
    if model_name not in names:
        raise ArtifactError(f"{manifest_path}: lists no {model_name}", hint="convert the model again")
    receipt = None
    if RECEIPT_NAME in names:
        receipt_path = directory / RECEIPT_NAME
        receipt = from_json(Receipt, read_bounded(receipt_path, MAX_MANIFEST_BYTES), str(receipt_path))
    return Artifact(
        path=str(directory),
        manifest=manifest,
        model_path=str(directory / model_name),
        tokenizer_path=str(directory / "tokenizer.json") if "tokenizer.json" in names else None,
        receipt=receipt,
    )


def verify_hashes(artifact: Artifact, progress: Callable[[int], None] | None = None) -> None:
    """Compare every file with the sha256 in the manifest.

    Args:
        progress: called with the number of bytes just hashed.

    Raises:
        ArtifactError: a file differs; the message names it and both hashes.
    """
    for entry in artifact.manifest.files:
        path = Path(artifact.path) / entry.name
        seen = sha256_file(path, progress)
        if seen != entry.sha256:
            raise ArtifactError(
                f"{path}: sha256 is {seen}, the manifest says {entry.sha256}", hint="convert the model again"
            )


def manifest_sha256(fields: Mapping[str, Any]) -> str:
    """sha256 of what a manifest says beside what its files say of themselves; it stands in the header of the model.

    Definition: of the manifest without `files`, `file_bytes`, `created_at` and a warning of zero weights, which are not
    known yet when the header is written; as JSON in ASCII, keys sorted, no spaces.

    Args:
        fields: the manifest as it is in its file, so that a field of a later version changes nothing of an older one.
    """
    kept = {
        name: value for name, value in fields.items() if name not in ("files", "file_bytes", "created_at")
    }
    warnings = kept.get("warnings")
    if isinstance(warnings, list):
        kept["warnings"] = [said for said in warnings if not str(said).startswith(ZERO_WEIGHTS)]
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sha256_file(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Hexadecimal sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_CHUNK_BYTES):
            digest.update(block)
            if progress:
                progress(len(block))
    return digest.hexdigest()


def entry_for(path: Path) -> FileEntry:
    """The manifest's entry for a small file just written."""
    return FileEntry(name=path.name, n_bytes=path.stat().st_size, sha256=sha256_file(path))


def write_record(path: Path, record: Record) -> None:
    """Write a record to a new name and sync it."""
    with path.open("xb") as file:
        file.write(to_json(record))
        file.flush()
        os.fsync(file.fileno())


def now_utc() -> str:
    """The time now, RFC 3339 in UTC with seconds."""
    import datetime

    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

"""Verifying: hashes and structure, and how far a model is from its reference."""

from __future__ import annotations

from pathlib import Path

from edgellm import artifact
from edgellm.api import models
from edgellm.api.receipts import Check, Engine, Mode, Progress, make_receipt, rejected
from edgellm.api.unquantized import Unquantized
from edgellm.artifact import Artifact, Receipt
from edgellm.convert import pipeline
from edgellm.errors import ArtifactError


def verify(
    path: str | Path,
    *,
    reference: str | Path | None = None,
    text: Path | None = None,
    mode: Mode = "quick",
    max_kl: float | None = None,
    min_cosine: float | None = None,
    engine: Engine = "auto",
    progress: Progress | None = None,
) -> Receipt | None:
    """Check an artifact's structure and hashes; with a reference, also how far it is from it.

    Args:
        max_kl, min_cosine: bounds, as in `convert`.

    Raises:
        ArtifactError, BadInputError: it is not what its manifest says.  QualityError: further than allowed.
    """
    opened = models.open_artifact(path)
    done = 0
    total = sum(entry.n_bytes for entry in opened.manifest.files)

    def hashed(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        if progress:
            progress("hash", done, total)

    artifact.verify_hashes(opened, hashed)
    _check_manifest(opened)
    if reference is None:
        return None
    check = Check(mode, max_kl, min_cosine=min_cosine, text=text, engine=engine)
    source = pipeline.read_source(models.resolve(reference, progress=progress))
    with Unquantized(source) as unquantized:
        receipt = make_receipt(opened, unquantized, check, progress=progress)
    if receipt.verdict == "fail":
        raise rejected(receipt, str(path))
    return receipt


def _check_manifest(opened: Artifact) -> None:
    """The manifest says of the model what the model's own header says."""
    found, said = pipeline.manifest_of_gguf(models.resolve(opened.model_path)), opened.manifest
    for name in ("architecture", "n_params", "context_train", "quant", "file_bytes"):
        if getattr(found, name) != getattr(said, name):
            raise ArtifactError(
                f"{opened.path}: the manifest says {name} is {getattr(said, name)}, model.gguf says {getattr(found, name)}",
                hint="convert the model again",
            )

"""Verifying: hashes and structure, and how far a model is from its reference."""

from __future__ import annotations

from pathlib import Path

from edgellm import artifact
from edgellm.api import models
from edgellm.api.receipts import Check, Engine, Mode, Progress, make_receipt, rejected
from edgellm.api.unquantized import Unquantized
from edgellm.artifact import Artifact, Receipt
from edgellm.convert import pipeline
from edgellm.errors import ArtifactError, SpecError


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
    given = {
        "--max-kl": max_kl is not None, "--min-cosine": min_cosine is not None, "--text": text is not None,
        "--reference-engine": engine != "auto", "--full": mode != "quick",
    }  # fmt: skip
    name = next((name for name, is_given in given.items() if is_given), None)
    if reference is None and name:
        raise SpecError(f"{name} without a comparison", hint="add --reference MODEL")
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
    """The manifest says of the model what the model's own header says: facts, types, licence and parents."""
    checkpoint, said = models.resolve(opened.model_path), opened.manifest
    found = pipeline.manifest_of_gguf(checkpoint)
    facts = ("architecture", "n_params", "context_train", "quant", "file_bytes", "licence")
    differing: list[tuple[str, object, object]] = [(n, getattr(said, n), getattr(found, n)) for n in facts]
    if said.recipe:
        types = {name: tensor.type_name for name, tensor in checkpoint.tensors.items()}
        differing += [(f"type of {n}", kind, types.get(n)) for n, kind in said.recipe.tensor_types.items()]
    if said.files:
        embedded = {parent.name: parent.sha256 for parent in found.parents}
        differing += [(f"sha256 of {p.name}", p.sha256, embedded.get(p.name)) for p in said.parents]
    for name, in_manifest, in_model in differing:
        if in_manifest != in_model:
            raise ArtifactError(
                f"{opened.path}: the manifest says {name} is {in_manifest}, model.gguf says {in_model}",
                hint="convert the model again",
            )

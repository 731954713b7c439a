"""Verifying: hashes and structure, and how far a model is from its reference."""

from __future__ import annotations

from pathlib import Path

from edgellm import artifact
from edgellm.api import models
from edgellm.api.planning import read
from edgellm.api.receipts import Check, Engine, Mode, Progress, make_receipt, rejected
from edgellm.api.unquantized import Unquantized
from edgellm.artifact import Artifact, Receipt
from edgellm.convert import pipeline
from edgellm.convert.lora import WEIGHTS_NAME, Adapter, merged_name, read_adapter
from edgellm.errors import ArtifactError, BadInputError, SpecError


def verify(
    path: str | Path,
    *,
    reference: str | Path | None = None,
    lora: Path | None = None,
    text: Path | None = None,
    mode: Mode = "quick",
    max_kl: float | None = None,
    min_cosine: float | None = None,
    engine: Engine = "auto",
    progress: Progress | None = None,
) -> Receipt | None:
    """Check an artifact's structure and hashes; with a reference, also how far it is from it.

    Args:
        lora: directory of the PEFT adapter that was merged while converting; the reference is the base with it.
        max_kl, min_cosine: bounds, as in `convert`.

    Raises:
        ArtifactError, BadInputError: it is not what its manifest says, or the adapter is not the one it was made with.
        SpecError: an option without effect, or no adapter where it was made with one.
        QualityError: further than allowed.
    """
    given = {
        "--max-kl": max_kl is not None, "--min-cosine": min_cosine is not None, "--text": text is not None,
        "--reference-engine": engine != "auto", "--full": mode != "quick", "--lora": lora is not None,
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
    adapter = read_adapter(lora) if lora else None
    source = read(models.resolve(reference, progress=progress), adapter)
    with Unquantized(source) as unquantized:
        _check_adapter(opened, unquantized, adapter)
        receipt = make_receipt(opened, unquantized, check, progress=progress)
    if receipt.verdict == "fail":
        raise rejected(receipt, str(path))
    return receipt


def _check_manifest(opened: Artifact) -> None:
    """The manifest says of the model what the model's own header says: facts, types, licence and parents."""
    checkpoint, said = models.resolve(opened.model_path), opened.manifest
    found = pipeline.manifest_of_gguf(checkpoint)
    facts = ("architecture", "n_params", "context_train", "quant", "file_bytes", "bpw", "licence")
    differing: list[tuple[str, object, object]] = [(n, getattr(said, n), getattr(found, n)) for n in facts]
    if said.recipe:
        types = {name: tensor.type_name for name, tensor in checkpoint.tensors.items()}
        differing += [(f"type of {n}", kind, types.get(n)) for n, kind in said.recipe.tensor_types.items()]
    if said.files:
        listed, embedded = ({p.name: p.sha256 for p in each.parents} for each in (said, found))
        names = dict.fromkeys((*listed, *embedded))
        differing += [(f"sha256 of {n}", listed.get(n), embedded.get(n)) for n in names]
    for name, in_manifest, in_model in differing:
        if in_manifest != in_model:
            raise ArtifactError(
                f"{opened.path}: the manifest says {name} is {in_manifest}, model.gguf says {in_model}",
                hint="convert the model again",
            )


def _check_adapter(opened: Artifact, reference: Unquantized, adapter: Adapter | None) -> None:
    """Refuse a reference without the adapter that the artifact was made with, or with another one.

    Files are compared by their hashes. An artifact that says nothing of what it was made from is compared as asked.
    """
    parents = {parent.name.rpartition("/")[2]: parent.sha256 for parent in opened.manifest.parents}
    made_with, found = parents.get(WEIGHTS_NAME), reference.hashes()
    if adapter is None:
        base = {digest for name, digest in parents.items() if name.endswith(".safetensors")} - {made_with}
        if made_with and base & set(found.values()):
            name = merged_name(opened.manifest.recipe) or f"of sha256 {made_with[:12]}"
            raise SpecError(
                f"{opened.path}: was made with the LoRA adapter {name}, {reference.source.checkpoint.name} is its base without",
                hint="add --lora DIR with the adapter's directory",
            )
        return
    if not parents:
        return
    if made_with is None:
        raise BadInputError(
            f"{opened.path}: was not made with an adapter, {adapter.name} is given", hint="leave --lora out"
        )
    for path in adapter.files:
        if found[path] != parents.get(path.name):
            raise BadInputError(
                f"{path}: sha256 is {found[path]}, {opened.path} was made with {parents.get(path.name)}",
                hint="give the adapter that it was converted with, at the same revision",
            )

"""Verifying: hashes and structure, and how far a model is from its reference."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from edgellm import artifact
from edgellm.api import first_load, models
from edgellm.api.planning import read
from edgellm.api.receipts import Check, Engine, Mode, Progress, check_words, make_receipt, rejected
from edgellm.api.unquantized import Unquantized
from edgellm.artifact import Artifact, Receipt
from edgellm.checkpoint import Checkpoint
from edgellm.convert.gguf_manifest import manifest_of_gguf
from edgellm.convert.header_keys import MANIFEST_KEY
from edgellm.convert.lora import WEIGHTS_NAME, Adapter, merged_name, read_adapter
from edgellm.errors import ArtifactError, BadInputError, SpecError
from edgellm.formats.gguf import read_gguf
from edgellm.formats.gguf_vocab import validate_vocab
from edgellm.formats.plain_json import read_json
from edgellm.native.llama_options import LlamaOptions


def verify(
    path: str | Path,
    *,
    reference: str | Path | None = None,
    lora: str | Path | None = None,
    text: str | Path | None = None,
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
        ValueError: none of the modes or engines.
        ArtifactError, BadInputError: it is not what its manifest says, or the adapter is not the one it was made with.
        SpecError: an option without effect, or no adapter where it was made with one.
        QualityError: further than allowed.
    """
    check_words({"mode": mode, "engine": engine}, mode=get_args(Mode), engine=get_args(Engine))
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
    words = None if text is None else Path(text)
    check = Check(mode, max_kl, min_cosine=min_cosine, text=words, engine=engine)
    adapter = None if lora is None else read_adapter(Path(lora))
    source = read(models.resolve(reference, progress=progress), adapter)
    with Unquantized(source) as unquantized:
        _check_adapter(opened, unquantized, adapter)
        file = Path(opened.model_path)
        models.read_model(file)
        first_load.check(file, LlamaOptions(n_threads=unquantized.n_threads))
        receipt = make_receipt(opened, unquantized, check, progress=progress)
    if receipt.verdict == "fail":
        raise rejected(receipt, str(path))
    return receipt


def warnings(opened: Artifact) -> list[str]:
    """What is odd about its file and does no harm, a line each."""
    file = read_gguf(Path(opened.model_path))
    if not file.trailing_bytes:
        return []
    return [f"{file.path.name}: {file.trailing_bytes} bytes behind the last tensor, which nothing reads"]


def knows_manifest(opened: Artifact) -> bool:
    """Whether the model's header has the hash of the manifest; those of the first conversions have none."""
    return _manifest_sha256(models.resolve(opened.model_path)) is not None


def _manifest_sha256(checkpoint: Checkpoint) -> str | None:
    return checkpoint.gguf.get(MANIFEST_KEY, str, None) if checkpoint.gguf else None


def _check_manifest(opened: Artifact) -> None:
    """The manifest says of the model what the model's own header says: facts, types, licence, parents, and its hash."""
    checkpoint, said = models.resolve(opened.model_path), opened.manifest
    if checkpoint.gguf:
        validate_vocab(checkpoint.gguf)
    found = manifest_of_gguf(checkpoint)
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
    expected = _manifest_sha256(checkpoint)
    if said.files and expected is not None:
        path = Path(opened.path) / artifact.MANIFEST_NAME
        seen = artifact.manifest_sha256(read_json(path, artifact.MAX_MANIFEST_BYTES))
        if seen != expected:
            raise ArtifactError(
                f"{path}: is not as it was written: sha256 of what it says is {seen}, model.gguf says {expected}",
                hint="take the manifest that was written with this model.gguf, or convert the model again",
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

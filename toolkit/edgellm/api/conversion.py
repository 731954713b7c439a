"""Converting and verifying: the order in which rooms are called, and what each is handed."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from edgellm import artifact, machine, resources, staging, targets
from edgellm.api import launch, models
from edgellm.artifact import Artifact, Receipt, Recipe
from edgellm.checkpoint import Checkpoint
from edgellm.convert import pipeline, quality, writer
from edgellm.convert import recipe as recipes
from edgellm.convert.source import Source
from edgellm.errors import ArtifactError, BadInputError, OutputExistsError, QualityError
from edgellm.formats.records import read_bounded, replace
from edgellm.native.llama import LlamaOptions
from edgellm.runtime.tokenizer import Tokenizer
from edgellm.targets import Target

Verify = Literal["none", "quick", "full"]
MAX_TEXT_BYTES = 64 * 1024**2
HEADER_BYTES = 64 * 1024**2
Progress = Callable[[str, int, int], None]


class Plan(NamedTuple):
    """What a conversion would do."""

    source: Source
    target: Target
    recipe: Recipe
    output: Path
    needed_bytes: int
    warnings: list[str]


def find_target(name: str) -> Target:
    """A target by name; `host` is this machine.

    Raises:
        SpecError: no such target.
    """
    return machine.detect_target() if name == "host" else targets.load(name)


def plan_conversion(
    model: str | Path,
    *,
    target: str = "host",
    output: str | Path | None = None,
    quant: str = "auto",
    context: int | None = None,
    kv_type: str = "auto",
) -> Plan:
    """What `convert` would do, with reasons and sizes; no weight is read.

    Raises:
        SpecError: an unknown target or quantization, or a model that does not fit the target.
        MissingInputError, BadInputError, UnsupportedError: as in `convert`.
    """
    chosen = find_target(target)
    options = recipes.ConvertOptions(quant=quant, context=context, kv_type=kv_type)
    source = pipeline.read_source(models.resolve(model, weights=False))
    recipe = recipes.make_recipe(chosen, source, options)
    place = Path(output) if output is not None else Path(f"{source.checkpoint.name}-{chosen.id}")
    return Plan(
        source=source,
        target=chosen,
        recipe=recipe,
        output=place,
        needed_bytes=writer.needed_bytes(source, recipe.tensor_types),
        warnings=pipeline.conversion_warnings(source, recipe),
    )


def convert(
    model: str | Path,
    *,
    target: str = "host",
    output: str | Path | None = None,
    quant: str = "auto",
    context: int | None = None,
    kv_type: str = "auto",
    verify: Verify = "none",
    max_kl: float | None = None,
    jobs: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Artifact:
    """Convert a model for a target into a new artifact directory.

    Args:
        model: a Hugging Face directory, a hub id, a .gguf, an artifact, or builtin:smollm2.
        output: the directory to make; by default ./<model>-<target>.
        quant: a name such as Q4_K_M, or auto for the target's recipe.
        verify: compare with the source on a text afterwards: quick (1,024 tokens) or full (at most 32,768).
        max_kl: fail when the mean KL divergence is larger, in nats per token; by default a bound per type that only a
            broken conversion exceeds.
        jobs: worker threads; by default all usable cores.
        force: replace an artifact of that name; it stays until the new one is complete.
        progress: called with (stage, done, total).

    Raises:
        SpecError, MissingInputError, BadInputError, UnsafeInputError, UnsupportedError: bad arguments or input.
        OutputExistsError, OutputError: the output is there already, or cannot be written.
        QualityError: further from the source than allowed; the result is kept beside the output as NAME.rejected.
    """
    plan = plan_conversion(model, target=target, output=output, quant=quant, context=context, kv_type=kv_type)
    final = plan.output
    staging.check_output_free(final, force=force)
    _check_source_outside(plan.source.checkpoint, final)
    writer.check_free_space(final.parent, plan.needed_bytes)
    source, note = pipeline.add_vocabulary(_with_weights(plan.source, progress), launch.tokenize_file)
    done = 0
    total = source.shape.n_params

    def written(n_weights: int) -> None:
        nonlocal done
        done += n_weights
        if progress:
            progress("convert", done, total)

    with staging.staged_directory(final, force=force) as folder:
        manifest = pipeline.convert(
            source, plan.target, plan.recipe, folder, n_workers=jobs or machine.usable_cores(), argv=list(sys.argv),
            progress=written, note=note,
        )  # fmt: skip
        if verify != "none":
            staged = _staged(folder, manifest)
            receipt = make_receipt(staged, source.checkpoint, verify=verify, max_kl=max_kl, progress=progress)
            artifact.write_record(folder / artifact.RECEIPT_NAME, receipt)
            manifest = replace(
                manifest, files=[*manifest.files, artifact.entry_for(folder / artifact.RECEIPT_NAME)]
            )
            if receipt.verdict == "fail":
                artifact.write_record(folder / artifact.MANIFEST_NAME, manifest)
                _keep_rejected(folder, final, receipt)
        artifact.write_record(folder / artifact.MANIFEST_NAME, manifest)
    return artifact.open_directory(final)


def verify(
    path: str | Path,
    *,
    reference: str | Path | None = None,
    text: Path | None = None,
    mode: Literal["quick", "full"] = "quick",
    max_kl: float | None = None,
    progress: Progress | None = None,
) -> Receipt | None:
    """Check an artifact's structure and hashes; with a reference, also how far it is from it.

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
    receipt = make_receipt(
        opened, models.resolve(reference), verify=mode, max_kl=max_kl, text=text, progress=progress
    )
    if receipt.verdict == "fail":
        raise QualityError(
            f"{path}: KL divergence from {receipt.reference} is {receipt.kl_mean:.4f} nats per token, more than {receipt.max_kl}",
            hint="choose a type with more bits, or allow more with --max-kl",
        )
    return receipt


def _with_weights(source: Source, progress: Progress | None) -> Source:
    """The same source with its weights on the disk, for a model that was planned from the hub."""
    if source.checkpoint.has_weights:
        return source
    # A tokenizer that cannot be converted is refused before the download, not after it.
    pipeline.add_vocabulary(source, launch.tokenize_file)
    return pipeline.read_source(models.with_weights(source.checkpoint, progress))


def _check_manifest(opened: Artifact) -> None:
    """The manifest says of the model what the model's own header says."""
    found, said = pipeline.manifest_of_gguf(models.resolve(opened.model_path)), opened.manifest
    for name in ("architecture", "n_params", "context_train", "quant", "file_bytes"):
        if getattr(found, name) != getattr(said, name):
            raise ArtifactError(
                f"{opened.path}: the manifest says {name} is {getattr(said, name)}, model.gguf says {getattr(found, name)}",
                hint="convert the model again",
            )


def _check_source_outside(source: Checkpoint, final: Path) -> None:
    """Replacing a directory must not remove the model that is being read."""
    inside = next((path for path in source.files if path.resolve().is_relative_to(final.resolve())), None)
    if inside and final.exists():
        raise OutputExistsError(f"{final}: holds the source itself ({inside.name})", hint="choose another -o")


def make_receipt(
    opened: Artifact,
    reference: Checkpoint,
    *,
    verify: Literal["quick", "full"],
    max_kl: float | None,
    text: Path | None = None,
    progress: Progress | None = None,
) -> Receipt:
    """Run reference and artifact over a text and write down how far apart they are.

    A Hugging Face reference is first written as a GGUF of its own precision into the cache, and removed afterwards.
    """
    chosen = text or quality.CHECK_TEXT
    data = read_bounded(chosen, MAX_TEXT_BYTES)
    try:
        words = data.decode("utf-8")
    except UnicodeDecodeError as err:
        raise BadInputError(f"{chosen}: not UTF-8 text: {err}") from err
    options = LlamaOptions(n_threads=machine.default_threads())
    bound = (
        max_kl
        if max_kl is not None
        else quality.MAX_KL.get(opened.manifest.quant, max(quality.MAX_KL.values()))
    )
    with _reference_gguf(reference) as reference_path:
        first = models.open_backend(reference_path, options)
        try:
            second = models.open_backend(Path(opened.model_path), options)
        except BaseException:
            first.close()
            raise
        try:
            tokenizer = Tokenizer(second, Path(opened.tokenizer_path) if opened.tokenizer_path else None)
            ids = tokenizer.encode(words, add_special=False, parse_special=False)
            max_chunks = quality.QUICK_CHUNKS if verify == "quick" else quality.FULL_CHUNKS
            total = min(len(ids) // quality.N_CTX, max_chunks) * (quality.N_CTX - 1)
            done = 0

            def scored(n_tokens: int) -> None:
                nonlocal done
                done += n_tokens
                if progress:
                    progress("verify", done, total)

            found = quality.compare(first, second, ids, max_chunks=max_chunks, progress=scored)
            golden = quality.golden_outputs(
                second, lambda prompt: tokenizer.encode(prompt, add_special=True, parse_special=False)
            )
        finally:
            first.close()
            second.close()
    return Receipt(
        schema=artifact.RECEIPT_SCHEMA,
        reference=f"{reference.name} ({_precision(reference)})",
        reference_engine=f"{second.info.engine} {second.info.engine_version}",
        reference_sha256=_digest(reference),
        text_name=chosen.name,
        text_sha256=hashlib.sha256(data).hexdigest(),
        golden=golden,
        max_kl=bound,
        verdict="pass" if found.kl_mean <= bound else "fail",
        **found.__dict__,
    )


@contextmanager
def _reference_gguf(reference: Checkpoint) -> Iterator[Path]:
    if reference.kind == "gguf":
        yield reference.path
        return
    cache = resources.cache_directory()
    source, _ = pipeline.add_vocabulary(pipeline.read_source(reference), launch.tokenize_file)
    writer.check_free_space(cache, writer.needed_bytes(source, source.base_types()))
    with staging.scratch_directory(cache, "reference") as folder:
        path = folder / "reference.gguf"
        writer.write_gguf(path, source, source.base_types(), source.header, n_workers=machine.usable_cores())
        yield path


def _precision(reference: Checkpoint) -> str:
    kinds = [t.type_name for t in reference.tensors.values() if len(t.shape) > 1]
    return max(set(kinds), key=kinds.count) if kinds else "F32"


def _digest(reference: Checkpoint) -> str:
    """sha256 of the reference's weights: of the file, or of its shards' hashes in order."""
    weights = [path for path in reference.files if path.suffix in {".gguf", ".safetensors"}]
    hashes = [artifact.sha256_file(path) for path in weights]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _staged(folder: Path, manifest: artifact.Manifest) -> Artifact:
    tokenizer = folder / "tokenizer.json"
    return Artifact(
        path=str(folder),
        manifest=manifest,
        model_path=str(folder / "model.gguf"),
        tokenizer_path=str(tokenizer) if tokenizer.exists() else None,
        receipt=None,
    )


def _keep_rejected(folder: Path, final: Path, receipt: Receipt) -> None:
    rejected = final.with_name(f"{final.name}.rejected")
    try:
        staging.check_output_free(rejected, force=True)
    except OutputExistsError:
        kept = f"not kept, since {rejected.name} exists and is not an artifact"
    else:
        shutil.rmtree(rejected, ignore_errors=True)
        folder.replace(rejected)
        kept = f"kept as {rejected.name}"
    raise QualityError(
        f"{final}: KL divergence from {receipt.reference} is {receipt.kl_mean:.4f} nats per token, more than {receipt.max_kl}; "
        f"{kept}",
        hint="choose a type with more bits, or allow more with --max-kl",
    )

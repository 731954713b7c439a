"""Converting and verifying: the order in which rooms are called, and what each is handed."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Literal, NamedTuple

from edgellm import artifact, machine, staging, targets
from edgellm.api import launch, models
from edgellm.api.verification import Check, Engine, Progress, make_receipt, why_rejected
from edgellm.artifact import Artifact, Receipt, Recipe
from edgellm.checkpoint import Checkpoint
from edgellm.convert import pipeline, writer
from edgellm.convert import recipe as recipes
from edgellm.convert.source import Source
from edgellm.errors import OutputExistsError, QualityError
from edgellm.formats.records import replace
from edgellm.targets import Target

Verify = Literal["none", "quick", "full"]


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
    engine: Engine = "auto",
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
            broken conversion exceeds, or the target's bound where that is lower.
        engine: what computes the reference: transformers where it is installed (auto), or the unquantized gguf.
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
    source, note = pipeline.add_vocabulary(_with_weights(plan.source, progress), launch.TOKENIZERS)
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
            check = Check(verify, max_kl, engine=engine, target=plan.target)
            receipt = make_receipt(staged, source.checkpoint, check, progress=progress)
            artifact.write_record(folder / artifact.RECEIPT_NAME, receipt)
            manifest = replace(
                manifest, files=[*manifest.files, artifact.entry_for(folder / artifact.RECEIPT_NAME)]
            )
            if receipt.verdict == "fail":
                artifact.write_record(folder / artifact.MANIFEST_NAME, manifest)
                _keep_rejected(folder, final, receipt)
        artifact.write_record(folder / artifact.MANIFEST_NAME, manifest)
    return artifact.open_directory(final)


def _with_weights(source: Source, progress: Progress | None) -> Source:
    """The same source with its weights on the disk, for a model that was planned from the hub."""
    if source.checkpoint.has_weights:
        return source
    # A tokenizer that cannot be converted is refused before the download, not after it.
    pipeline.add_vocabulary(source, launch.TOKENIZERS)
    return pipeline.read_source(models.with_weights(source.checkpoint, progress))


def _check_source_outside(source: Checkpoint, final: Path) -> None:
    """Replacing a directory must not remove the model that is being read."""
    inside = next((path for path in source.files if path.resolve().is_relative_to(final.resolve())), None)
    if inside and final.exists():
        raise OutputExistsError(f"{final}: holds the source itself ({inside.name})", hint="choose another -o")


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
        f"{final}: {why_rejected(receipt)}; {kept}",
        hint="choose a type with more bits, or allow more with --max-kl",
    )

"""Converting and verifying: the order in which rooms are called, and what each is handed."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Unpack

from edgellm import artifact, machine, scratch, staging
from edgellm.api import calibration, first_load, launch, models
from edgellm.api.mixing import search_mix
from edgellm.api.planning import Choices, Demands, Plan, Verify, make_plan, read
from edgellm.api.receipts import Check, Engine, Progress, make_receipt, rejected
from edgellm.api.unquantized import Unquantized
from edgellm.artifact import Artifact, Manifest, Receipt, Recipe
from edgellm.convert import chat_templates, mixture, pipeline, search
from edgellm.convert import recipe as recipes
from edgellm.convert.imatrix import ImportanceMatrix
from edgellm.convert.slabs import Slabs
from edgellm.convert.source import Source
from edgellm.errors import OutputExistsError
from edgellm.formats.records import replace
from edgellm.native import blas
from edgellm.runtime.chat import check_template


def convert(
    model: str | Path,
    *,
    target: str = "host",
    output: str | Path | None = None,
    verify: Verify = "none",
    max_kl: float | None = None,
    min_cosine: float | None = None,
    engine: Engine = "auto",
    jobs: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **choices: Unpack[Choices],
) -> Artifact:
    """Convert a model for a target into a new artifact directory.

    Args:
        model: a Hugging Face directory, a hub id, a .gguf, an artifact, or builtin:smollm2.
        output: the directory to make; by default ./<model>-<target>.
        verify: compare with the source on a text afterwards: quick (1,024 tokens) or full (at most 32,768).
        max_kl: fail when the mean KL divergence is larger, in nats per token; by default a bound per type that only a
            broken conversion exceeds, or the target's bound where that is lower.
        min_cosine: of a model that gives embeddings: fail when the cosine of an embedding with the source's is less.
        engine: what computes the reference: transformers where it is installed (auto), or the unquantized gguf.
        jobs: threads that write, measure and compare; by default all usable cores, and for running a model the
            physical ones.
        force: replace an artifact of that name; it stays until the new one is complete.
        progress: called with (stage, done, total).
        choices: see `Choices`.

    Raises:
        TypeError, ValueError: an argument that does not exist, or a value that it cannot have.
        SpecError, MissingInputError, BadInputError, UnsafeInputError, UnsupportedError: bad arguments or input.
        DoesNotFitError: the target cannot hold the model.
        ResourceError: this process may take less memory than the conversion needs.
        OutputExistsError, OutputError: the output is there already, or cannot be written.
        QualityError: further from the source than allowed; the result is kept beside the output as NAME.rejected.
    """
    demands: Demands = {
        "output": output, "verify": verify, "max_kl": max_kl, "min_cosine": min_cosine, "engine": engine, "jobs": jobs,
        "force": force,
    }  # fmt: skip
    plan = make_plan(model, target, demands, choices)
    scratch.sweep()
    _carry_out(plan, choices, jobs=jobs, force=force, progress=progress)
    return artifact.open_directory(plan.output)


def _carry_out(
    plan: Plan, choices: Choices, *, jobs: int | None, force: bool, progress: Progress | None
) -> None:
    """Make the artifact that was planned."""
    final = plan.output
    with ExitStack() as stack:
        stack.enter_context(blas.limited(jobs))
        source = _with_weights(plan, progress)
        parents = stack.enter_context(pipeline.hashing(source.checkpoint))
        n_workers = jobs or machine.usable_cores()
        slabs = _packed_ahead(plan, source, n_workers)
        if slabs:
            stack.enter_context(slabs)
        source, note = _with_vocabulary(source, choices.get("chat_template"))
        unquantized = stack.enter_context(Unquantized(source, jobs=jobs))
        recipe, encoding = _measured(plan, unquantized, choices, stack, progress)
        source = _with_importance_noted(source, encoding.importance, unquantized)
        folder = stack.enter_context(staging.staged_directory(final, force=force))
        manifest = pipeline.convert(
            source, plan.target, recipe, folder, n_workers=n_workers, argv=list(sys.argv),
            progress=_counting(progress, source.shape.n_params), note=note, encoding=encoding, parents=parents,
            slabs=slabs,
        )  # fmt: skip
        if plan.check:
            manifest = _held_to(plan.check, manifest, unquantized, folder, final, progress)
        artifact.write_record(folder / artifact.MANIFEST_NAME, manifest)
    if plan.check:  # it has just been run, and renaming it changes none of what it is known by
        first_load.note_sound(final / "model.gguf")


def _packed_ahead(plan: Plan, source: Source, n_workers: int) -> Slabs | None:
    """The rows, while the vocabulary is still being found; None where their types are yet to be measured."""
    if plan.recipe.quant == mixture.MIX or plan.recipe.imatrix == "collected":
        return None
    return pipeline.packing(source, plan.recipe, pipeline.Encoding(plan.importance), n_workers=n_workers)


def _measured(
    plan: Plan, unquantized: Unquantized, choices: Choices, stack: ExitStack, progress: Progress | None
) -> tuple[Recipe, pipeline.Encoding]:
    """What the plan leaves to be measured on the unquantized model: an importance matrix, or a whole mix."""
    max_bytes, bpw = choices.get("max_bytes"), choices.get("bpw")
    text = choices.get("calibration")
    if max_bytes is None and bpw is None:
        importance = plan.importance
        if plan.recipe.imatrix == "collected":
            importance = calibration.collect(unquantized, text, progress)
        provenance = importance.provenance if importance else None
        return plan.recipe, pipeline.Encoding(importance, provenance=provenance)
    mix, provenance = search_mix(
        unquantized, plan.recipe, max_bytes=max_bytes, bpw=bpw, text=text,
        without_text=choices.get("imatrix") == "none", stack=stack, progress=progress,
    )  # fmt: skip
    recipe = recipes.with_mix(plan.recipe, unquantized.source, plan.target, mix.allocation)
    return recipe, pipeline.Encoding(
        encode=mix.encode, slab_weights=search.SLAB_WEIGHTS, provenance=provenance
    )


def _held_to(
    check: Check,
    manifest: Manifest,
    reference: Unquantized,
    folder: Path,
    final: Path,
    progress: Progress | None,
) -> Manifest:
    """The manifest with a receipt; a result that fails is kept as rejected, and is an error."""
    receipt = make_receipt(_staged(folder, manifest), reference, check, progress=progress)
    artifact.write_record(folder / artifact.RECEIPT_NAME, receipt)
    listed = [*manifest.files, artifact.entry_for(folder / artifact.RECEIPT_NAME)]
    manifest = replace(manifest, files=listed)
    if receipt.verdict == "fail":
        artifact.write_record(folder / artifact.MANIFEST_NAME, manifest)
        _keep_rejected(folder, final, receipt)
    return manifest


def _counting(progress: Progress | None, total: int) -> Callable[[int], None]:
    done = 0

    def written(n_weights: int) -> None:
        nonlocal done
        done += n_weights
        if progress:
            progress("convert", done, total)

    return written


def _with_weights(plan: Plan, progress: Progress | None) -> Source:
    """The plan's source with its weights on the disk, for a model that was planned from the hub."""
    if plan.source.checkpoint.has_weights:
        return plan.source
    # A tokenizer that cannot be converted is refused before the download, not after it.
    pipeline.add_vocabulary(plan.source, launch.TOKENIZERS)
    source = read(models.with_weights(plan.source.checkpoint, progress), plan.adapter)
    return dataclasses.replace(source, notes=tuple(dict.fromkeys((*source.notes, *plan.source.notes))))


def _with_importance_noted(
    source: Source, importance: ImportanceMatrix | None, unquantized: Unquantized
) -> Source:
    """The source with notes where the importance matrix is of other weights, or has not seen every expert."""
    if importance is None:
        return source
    notes = []
    said = importance.provenance
    if said.model_sha256 is not None and said.model_sha256 != unquantized.weights_sha256():
        notes.append(f"the importance matrix was collected on other weights ({said.model or 'not named'})")
    if unseen := importance.unseen_experts():
        notes.append(f"{unseen} experts met no token while it was collected: all their columns count alike")
    return dataclasses.replace(source, notes=(*source.notes, *notes))


def _with_vocabulary(source: Source, chat_template: str | None) -> tuple[Source, str | None]:
    """As `pipeline.add_vocabulary`; a chat template that cannot be used is noted, and the model converts all the same."""
    source, note = pipeline.add_vocabulary(source, launch.TOKENIZERS, chat_template=chat_template)
    entry = source.header.get("tokenizer.chat_template")
    said = chat_templates.warning(entry.value, check_template) if entry else None
    return dataclasses.replace(source, notes=(*source.notes, said)) if said else source, note


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
    place = final.with_name(f"{final.name}.rejected")
    try:
        staging.check_output_free(place, force=True)
    except OutputExistsError:
        kept = f"not kept, since {place.name} exists and is not an artifact"
    else:
        shutil.rmtree(place, ignore_errors=True)
        folder.replace(place)
        kept = f"kept as {place.name}"
    raise rejected(receipt, str(final), kept=f"; {kept}")

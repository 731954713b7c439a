"""Planning a conversion: every choice with its reason, and every refusal that needs no weight to be read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict, Unpack, get_args

from edgellm import machine, staging, targets
from edgellm.api import calibration, models
from edgellm.api.receipts import Check, Engine, check_words
from edgellm.artifact import Recipe
from edgellm.checkpoint import Checkpoint
from edgellm.convert import (
    chat_templates,
    header,
    imatrix,
    lora,
    mixture,
    pipeline,
    search,
    slabs,
    tokenizer,
    writer,
)
from edgellm.convert import recipe as recipes
from edgellm.convert.imatrix import ImportanceMatrix
from edgellm.convert.source import Source
from edgellm.errors import OutputExistsError, SpecError
from edgellm.targets import Target
from edgellm.units import format_bytes

Verify = Literal["none", "quick", "full"]


class Choices(TypedDict, total=False):
    """What may be asked for beside model and target; what is left out is chosen, with a reason.

    Attributes:
        quant: a name such as Q4_K_M, or auto for the target's recipe.
        context: tokens of prompt and answer together.
        kv_type: type of the KV cache, or auto.
        imatrix: auto (collected where the type cannot be made without), none, or a file of llama-imatrix or edgellm.
        calibration: text to collect on; by default one that edgellm ships.
        tensor_types: PATTERN=TYPE, as llama-quantize's --tensor-type.
        output_tensor_type, token_embedding_type: type of the head and of the embedding.
        max_bytes, bpw: a budget for a mix of our own, measured tensor by tensor: bytes of the file, or bits per weight.
        lora: directory of a PEFT adapter that is merged while converting.
        chat_template: a name or a file; by default the model's own, else what evidence says.
    """

    quant: str
    context: int | None
    kv_type: str
    imatrix: str | Path
    calibration: str | Path | None
    tensor_types: Sequence[str]
    output_tensor_type: str | None
    token_embedding_type: str | None
    max_bytes: int | None
    bpw: float | None
    lora: str | Path | None
    chat_template: str | None


class Plan(NamedTuple):
    """What a conversion would do.

    Attributes:
        check: what the result is held to; None where nothing is compared.
        adapter: to be merged.  importance: the matrix of a file, where some type weighs its errors by it.
    """

    source: Source
    target: Target
    recipe: Recipe
    output: Path
    needed_bytes: int
    warnings: list[str]
    adapter: lora.Adapter | None
    importance: ImportanceMatrix | None
    check: Check | None = None


class Demands(TypedDict, total=False):
    """What the result must be, where, and how many threads may make it: as in `convert`."""

    output: str | Path | None
    verify: Verify
    max_kl: float | None
    min_cosine: float | None
    engine: Engine
    jobs: int | None
    force: bool


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
    verify: Verify = "none",
    max_kl: float | None = None,
    min_cosine: float | None = None,
    engine: Engine = "auto",
    jobs: int | None = None,
    force: bool = False,
    **choices: Unpack[Choices],
) -> Plan:
    """What `convert` would do, with reasons and sizes, or the error it would end with; no weight is read.

    Raises:
        As `convert`, but for what shows only in the weights, in running the model or while writing: NaN, the quality, too
        little text, a cache without room. A `max_bytes` within 300 bytes of the smallest file may be refused by `convert`
        alone: see `header.least_mix_header_bytes`.
    """
    demands: Demands = {
        "output": output, "verify": verify, "max_kl": max_kl, "min_cosine": min_cosine, "engine": engine, "jobs": jobs,
        "force": force,
    }  # fmt: skip
    plan = make_plan(model, target, demands, choices)
    if (
        plan.source.checkpoint.kind == "hf"
    ):  # `convert` finds out with the help of children, which takes longer
        tokenizer.read_vocabulary(plan.source.checkpoint, plan.source.shape.vocab_size)
    return plan


def make_plan(model: str | Path, target: str, demands: Demands, choices: Choices) -> Plan:
    """The plan, but for the tokenizer, which whoever carries it out reads anyway.

    Raises:
        As `plan_conversion`.
    """
    _check_use(demands, choices)
    check = _check(demands)
    chosen = find_target(target)
    importance = calibration.read_importance(choices.get("imatrix", "auto"))
    calibration.read_text(choices.get("calibration"))  # a bad one is refused before the work
    directory = choices.get("lora")
    adapter = lora.read_adapter(Path(directory)) if directory else None
    source = read(models.resolve(model, weights=False), adapter)
    options = _options(choices, importance, source)
    recipe = recipes.make_recipe(chosen, source, options)
    source = dataclasses.replace(
        source, notes=(*source.notes, *_unused(source.checkpoint, recipe, options, choices))
    )
    importance = importance if recipe.imatrix == "file" else None
    if importance:
        imatrix.encoder(importance, source.shape.tensors)  # of another model: refused now
    if adapter:
        recipe = lora.say_merged(recipe, adapter)
    needed_bytes = writer.needed_bytes(source, recipe.tensor_types or source.base_types())
    _check_template(source, choices.get("chat_template"))
    if recipe.quant == mixture.MIX:
        needed_bytes = recipe.predicted_memory_bytes["weights"]
        _check_budget(source, recipe, choices)
    _check_memory(source, recipe, demands.get("jobs"))
    if check:
        check = dataclasses.replace(check, target=chosen)
        check.check_kind(is_encoder=source.shape.is_encoder)
    asked = demands.get("output")
    place = Path(asked) if asked is not None else Path(f"{source.checkpoint.name}-{chosen.id}")
    staging.check_output_free(place, force=demands.get("force", False))
    _check_source_outside(source.checkpoint, place)
    staging.check_place(place)
    writer.check_free_space(place.parent, needed_bytes)
    return Plan(
        source=source,
        target=chosen,
        recipe=recipe,
        output=place,
        needed_bytes=needed_bytes,
        warnings=pipeline.conversion_warnings(source, recipe),
        adapter=adapter,
        importance=importance,
        check=check,
    )


def read(checkpoint: Checkpoint, adapter: lora.Adapter | None) -> Source:
    """A checkpoint as a source, with the adapter merged where there is one."""
    source = pipeline.read_source(checkpoint)
    return lora.merge(source, adapter) if adapter else source


def _check_use(demands: Demands, choices: Choices) -> None:
    """What only a Python program can get wrong.

    Raises:
        TypeError: no such argument, or not of its type.  ValueError: none of the words or numbers that it may be.
    """
    unknown = next((name for name in choices if name not in Choices.__annotations__), None)
    if unknown is not None:
        raise TypeError(f"no argument {unknown!r}; there are {', '.join(Choices.__annotations__)}")
    if not isinstance(quant := choices.get("quant", "auto"), str):
        raise TypeError(f"quant must be the name of a type, got {quant!r}")
    if isinstance(types := choices.get("tensor_types", ()), str):
        raise TypeError(f"tensor_types must be a sequence of PATTERN=TYPE, got {types!r}")
    check_words(
        {"verify": "none", "engine": "auto", **demands}, verify=get_args(Verify), engine=get_args(Engine)
    )
    jobs, output = demands.get("jobs"), demands.get("output")
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    if output == "":
        raise ValueError("output must name a directory, got ''")
    for name, number in (("bpw", choices.get("bpw")), ("max_bytes", choices.get("max_bytes"))):
        if number is not None and not 0 < number < math.inf:
            raise ValueError(f"{name} must be above 0, got {number}")


def _check(demands: Demands) -> Check | None:
    """What the result is held to. A bound that nothing is held to must not look as if it had held."""
    verify, engine = demands.get("verify", "none"), demands.get("engine", "auto")
    max_kl, min_cosine = demands.get("max_kl"), demands.get("min_cosine")
    given = {
        "--max-kl": max_kl is not None,
        "--min-cosine": min_cosine is not None,
        "--reference-engine": engine != "auto",
    }
    name = next((name for name, is_given in given.items() if is_given), None)
    if verify != "none":
        return Check(verify, max_kl, min_cosine=min_cosine, engine=engine)
    if name:
        raise SpecError(f"{name} without a comparison", hint="add --verify quick or --verify full")
    return None


def _check_budget(source: Source, recipe: Recipe, choices: Choices) -> None:
    """Refuse a budget that nothing fits: bytes hold the header too, bits per weight do not count it."""
    header_bytes, max_bytes = 0, choices.get("max_bytes")
    if max_bytes is not None:
        header_bytes = header.least_mix_header_bytes(
            source, recipe, chat_template=choices.get("chat_template")
        )
    n_bytes = recipe.predicted_memory_bytes["weights"] if max_bytes is None else max_bytes
    search.check_budget(source, max_bytes=n_bytes, header_bytes=header_bytes)


def _check_memory(source: Source, recipe: Recipe, jobs: int | None) -> None:
    """Refuse what cannot be packed in the memory that this process may take."""
    slab_weights = search.SLAB_WEIGHTS if recipe.quant == mixture.MIX else None
    slabs.check_memory(source, n_workers=jobs or machine.usable_cores(), slab_weights=slab_weights)


def _check_template(source: Source, asked: str | None) -> None:
    if asked is not None and source.shape.is_encoder:
        raise SpecError(
            f"--chat-template {asked} is given, but this model gives embeddings: nobody chats with it",
            hint="leave --chat-template out",
        )
    chat_templates.choose_chat_template(source.checkpoint, asked)


def _unused(
    checkpoint: Checkpoint, recipe: Recipe, options: recipes.ConvertOptions, choices: Choices
) -> list[str]:
    """What was asked for and has no effect, a line each."""
    found = []
    has_budget = recipe.quant == mixture.MIX
    if options.imatrix == "file" and recipe.imatrix != "file":
        name = Path(choices["imatrix"]).name
        found.append(
            f"the importance matrix {name} is not used: nothing that is rounded to {recipe.quant} is weighed by it"
        )
    text = choices.get("calibration")
    measures = options.imatrix != "none" if has_budget else recipe.imatrix == "collected"
    if text is not None and not measures:
        why = (
            "the mix is measured on tokens drawn from the vocabulary"
            if has_budget
            else f"nothing is measured for {recipe.quant}"
        )
        found.append(f"the calibration text {Path(text).name} is not used: {why}")
    largest = options.largest_mix_bytes
    if largest is not None and options.max_bytes is not None:
        if options.max_bytes > largest + _header_bytes(checkpoint):
            found.append(_too_large(format_bytes(options.max_bytes), largest))
    elif largest is not None and recipe.predicted_memory_bytes["weights"] == largest:
        found.append(_too_large(f"{options.bpw:g} bits per weight", largest))
    return found


def _header_bytes(checkpoint: Checkpoint) -> int:
    """About what the header of the result takes: the source's own, or the tokenizer, in which the same words stand."""
    if checkpoint.gguf is not None:
        return checkpoint.gguf.data_offset
    return sum(path.stat().st_size for path in checkpoint.files if path.suffix != ".safetensors")


def _too_large(budget: str, largest_bytes: int) -> str:
    return (
        f"the whole of {budget} cannot be used: a mix has at most {search.FINEST}, {format_bytes(largest_bytes)} of weights, "
        "and no more is made; --quant F16 or BF16 makes a finer file"
    )


def _options(choices: Choices, importance: ImportanceMatrix | None, source: Source) -> recipes.ConvertOptions:
    asked = choices.get("imatrix", "auto")
    overrides = mixture.Overrides(
        patterns=tuple(mixture.parse_override(text) for text in choices.get("tensor_types", ())),
        output=_type(choices.get("output_tensor_type")),
        token_embedding=_type(choices.get("token_embedding_type")),
    )
    max_bytes, bpw = choices.get("max_bytes"), choices.get("bpw")
    has_budget = max_bytes is not None or bpw is not None
    return recipes.ConvertOptions(
        quant=choices.get("quant", "auto"),
        context=choices.get("context"),
        kv_type=choices.get("kv_type", "auto"),
        imatrix="file" if importance else "none" if asked == "none" else "auto",
        importance_of=frozenset(importance.entries) if importance else frozenset(),
        overrides=overrides,
        max_bytes=max_bytes,
        bpw=bpw,
        largest_mix_bytes=search.largest_bytes(source) if has_budget else None,
    )


def _type(name: str | None) -> str | None:
    return None if name is None else mixture.tensor_type(name)


def _check_source_outside(source: Checkpoint, final: Path) -> None:
    """Replacing a directory must not remove the model that is being read."""
    inside = next((path for path in source.files if path.resolve().is_relative_to(final.resolve())), None)
    if inside and final.exists():
        raise OutputExistsError(f"{final}: holds the source itself ({inside.name})", hint="choose another -o")

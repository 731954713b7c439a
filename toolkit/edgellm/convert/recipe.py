"""The recipe: (target, shape, options) -> what will be done to every tensor, with the reason for each choice.

Pure: no disk, no native code, no measuring.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from edgellm.artifact import Reason, Recipe
from edgellm.convert import fit, kernels, mixture
from edgellm.convert.allocate import Allocation
from edgellm.convert.source import Source
from edgellm.errors import SpecError, UnsupportedError
from edgellm.formats import ggml_types, records
from edgellm.formats.records import Record
from edgellm.native.llama_options import KV_TYPES
from edgellm.registry import unknown
from edgellm.shape import Memory, tensor_bytes
from edgellm.targets import Target
from edgellm.units import format_bytes, format_count

SMALL_MODEL_WEIGHTS = 500_000_000


class ConvertOptions(Record):
    """What the user may ask for beside model and target; `auto` leaves the choice to the target.

    Attributes:
        imatrix: auto (collected where a type cannot be made without), none, or file.
        importance_of: tensors that the file has.
        overrides: types of single tensors.
        max_bytes, bpw: a budget for a mix of our own: bytes of the file, or bits per weight.
        largest_mix_bytes: the weights of the largest mix there can be; None where there is no budget.
    """

    quant: str = "auto"
    context: int | None = None
    kv_type: str = "auto"
    imatrix: Literal["auto", "none", "file"] = "auto"
    importance_of: frozenset[str] = frozenset()
    overrides: mixture.Overrides = mixture.Overrides()
    max_bytes: int | None = None
    bpw: float | None = None
    largest_mix_bytes: int | None = None


def make_recipe(target: Target, source: Source, options: ConvertOptions) -> Recipe:
    """Resolve every choice.

    Raises:
        SpecError: an unknown quantization or option.
        DoesNotFitError: the target's memory cannot hold the model.
    """
    if options.max_bytes is not None or options.bpw is not None:
        return _budgeted(target, source, options)
    wanted, why_quant = _quant(target, source, options)
    context, why_context = _context(target, source, options)
    kv_type, why_kv_type = _kv_type(target, source, options)
    mixes = _Mixes(source, options)

    def types_of(name: str) -> dict[str, str]:
        return mixes.of(name).types

    choice = fit.choose(
        target, source.shape, types_of, quant=wanted.name, context=context, kv_type=kv_type or "F16",
        quant_open=options.quant == "auto", context_open=options.context is None,
    )  # fmt: skip
    if choice.quant != wanted.name:
        why_quant = f"{wanted.name} would not fit {target.id} at {context} tokens"
    if choice.context != context:
        why_context = f"{context} tokens would not fit {target.id}"
    mix = mixes.of(choice.quant)
    mixes.check_importance(choice.quant)
    reasons = [
        Reason(choice=f"quant {choice.quant}", because=why_quant),
        *_fallbacks(choice.quant, source, mix.fallbacks),
        _importance(mix),
        Reason(choice=f"context {choice.context}", because=why_context),
        *([Reason(choice=f"kv_type {kv_type}", because=why_kv_type)] if kv_type else []),
    ]
    threads = target.defaults.threads
    if threads is not None:
        reasons.append(
            Reason(choice=f"threads {threads}", because=target.why.get("threads", "the target's default"))
        )
    types = mix.types
    reasons += [
        Reason(choice="kernels", because=kernels.said_of(target, _bytes_by_type(source, types))),
        _fits(target, choice.memory),
    ]
    return Recipe(
        format="gguf",
        quant=choice.quant,
        tensor_types=types,
        kv_type=kv_type,
        context=choice.context,
        threads=threads,
        offload=target.defaults.offload,
        steps=_steps(source, types),
        reasons=reasons,
        predicted_memory_bytes=choice.memory._asdict(),
        imatrix=mix.imatrix,
    )


def _budgeted(target: Target, source: Source, options: ConvertOptions) -> Recipe:
    """The recipe of a mix whose types are measured while converting: until then it names none."""
    _check_budget(options)
    shape = source.shape
    n_bytes = options.max_bytes or int((options.bpw or 0) * shape.n_params / 8)
    asked = f"{options.bpw:g} bits per weight" if options.bpw else format_bytes(n_bytes)
    n_bytes = min(n_bytes, options.largest_mix_bytes or n_bytes)
    context, why_context = _context(target, source, options)
    kv_type, why_kv_type = _kv_type(target, source, options)
    if kv_type is None:
        raise UnsupportedError(
            f"{source.checkpoint.name} gives embeddings: a mix of our own is measured on what a model generates",
            hint="choose a type with --quant",
        )
    memory = shape.memory(source.base_types(), context, kv_type)._replace(weights=n_bytes)
    fit.check(target, memory, f"a mix of {format_bytes(n_bytes)} at {context} tokens")
    how = {
        "auto": "measured on a calibration text",
        "none": "measured on tokens drawn from the vocabulary: no text is used",
    }
    reasons = [
        Reason(choice=f"a mix of our own in {asked}", because="asked for"),
        Reason(choice="types", because=f"{how[options.imatrix]}, tensor by tensor, while converting"),
        Reason(choice="rounding", because="each column's error is made good in the columns after it"),
        Reason(choice=f"context {context}", because=why_context),
        Reason(choice=f"kv_type {kv_type}", because=why_kv_type),
        _fits(target, memory),
    ]
    return Recipe(
        format="gguf",
        quant=mixture.MIX,
        tensor_types={},
        kv_type=kv_type,
        context=context,
        threads=target.defaults.threads,
        offload=target.defaults.offload,
        steps=[
            *_steps(source, {})[:-1],
            f"measure, choose and write types in at most {format_bytes(n_bytes)}",
        ],
        reasons=reasons,
        predicted_memory_bytes=memory._asdict(),
    )


def _check_budget(options: ConvertOptions) -> None:
    if options.max_bytes is not None and options.bpw is not None:
        raise SpecError("two budgets: --max-bytes and --bpw", hint="leave one of them out")
    asked = {
        "--quant": options.quant != "auto",
        "--tensor-type": bool(options.overrides.patterns),
        "--output-tensor-type": options.overrides.output is not None,
        "--token-embedding-type": options.overrides.token_embedding is not None,
        "--imatrix FILE": options.imatrix == "file",
    }
    other = next((name for name, is_asked in asked.items() if is_asked), None)
    if other:
        raise SpecError(
            f"{other} together with a budget: a mix of our own chooses every type by measuring",
            hint=f"leave out {other}, or the budget; --calibration FILE gives the text to measure on",
        )


def with_mix(recipe: Recipe, source: Source, target: Target, allocation: Allocation) -> Recipe:
    """The recipe of a budget with the types that were chosen, and why."""
    types = {**source.base_types(), **allocation.types}
    memory = source.shape.memory(types, recipe.context, recipe.kv_type or "F16")
    kept = [reason for reason in recipe.reasons if reason.choice != "fits"]
    said = Reason(choice="kernels", because=kernels.said_of(target, _bytes_by_type(source, types)))
    return records.replace(
        recipe,
        quant=f"{mixture.MIX}_{8 * source.shape.weight_bytes(types) / source.shape.n_params:.2f}",
        tensor_types=types,
        steps=[*recipe.steps[:-1], _steps(source, types)[-1]],
        reasons=[*kept, *allocation.reasons, said, _fits(target, memory)],
        predicted_memory_bytes=memory._asdict(),
    )


def _fits(target: Target, memory: Memory) -> Reason:
    return Reason(
        choice="fits",
        because=f"{fit.said(memory)}; {target.id} has {format_bytes(target.ram_bytes)}, of which "
        f"{format_bytes(target.usable_ram_bytes)} can be used",
    )


def _quant(target: Target, source: Source, options: ConvertOptions) -> tuple[mixture.Quant, str]:
    if options.quant == "auto":
        return _auto_quant(target, source)
    return mixture.find(options.quant), "asked for"


class _Mix(NamedTuple):
    types: dict[str, str]
    fallbacks: list[str]
    imatrix: Literal["none", "collected", "file"]
    because: str = ""


class _Mixes:
    """Named mixes of one source under one set of options, each worked out once."""

    def __init__(self, source: Source, options: ConvertOptions) -> None:
        self._source, self._options = source, options
        self._known: dict[str, _Mix] = {}

    def of(self, name: str) -> _Mix:
        if name not in self._known:
            self._known[name] = self._work_out(mixture.find(name))
        return self._known[name]

    def check_importance(self, name: str) -> None:
        """Refuse a mix that needs an importance matrix and has none, or not for every tensor."""
        mix = self.of(name)
        if mix.imatrix != "collected":
            mixture.check_importance(
                mixture.find(name), self._source.shape, mix.types, self._options.importance_of
            )

    def _work_out(self, quant: mixture.Quant) -> _Mix:
        shape, base_types = self._source.shape, self._source.base_types()
        has_file, overrides = self._options.imatrix == "file", self._options.overrides
        types, fallbacks = mixture.named_mix(
            quant, shape, base_types, has_imatrix=has_file, overrides=overrides
        )
        because = ""
        if has_file and not self._weighs(types):
            has_file, because = False, "nothing that is rounded here is weighed by the one given"
            types, fallbacks = mixture.named_mix(quant, shape, base_types, overrides=overrides)
        needed = mixture.need_importance(quant, shape, types)
        if self._options.imatrix == "auto" and needed:
            _refuse_uncollectable(needed, types)
            types, fallbacks = mixture.named_mix(
                quant, shape, base_types, has_imatrix=True, overrides=overrides
            )
            because = f"{needed[0]} in {types[needed[0]]} is noise without one; collected on a text before converting"
            return _Mix(types, fallbacks, "collected", because)
        return _Mix(types, fallbacks, "file" if has_file else "none", because)

    def _weighs(self, types: dict[str, str]) -> bool:
        """Whether the matrix given weighs anything. One of another model, which is refused, counts as if it did."""
        weighed = {
            t.name
            for t in self._source.tensors
            if types[t.name] in mixture.WEIGHED and not t.copied_as(types[t.name])
        }
        known = self._options.importance_of & self._source.shape.tensors.keys()
        return bool(weighed & known if known else weighed)


def _importance(mix: _Mix) -> Reason:
    because = {"none": "not asked for, and no type here needs one", "file": "asked for"}
    return Reason(choice=f"importance matrix: {mix.imatrix}", because=mix.because or because[mix.imatrix])


def _refuse_uncollectable(needed: list[str], types: dict[str, str]) -> None:
    """Only the weights of layers are looked at while collecting."""
    outside = next((name for name in needed if not name.startswith("blk.")), None)
    if outside:
        raise SpecError(
            f"{outside} in {types[outside]} needs an importance matrix, and none can be collected for it",
            hint="give it a type from Q2_K on, or --imatrix FILE with an entry for it",
        )


def _fallbacks(quant: str, source: Source, fallbacks: list[str]) -> list[Reason]:
    if not fallbacks:
        return []
    width = source.shape.tensors[fallbacks[0]][-1]
    return [
        Reason(
            choice=f"{len(fallbacks)} tensors in another type than {quant}'s mix",
            because=f"their rows (the first has {width} weights) are not a multiple of the type's block, as in llama.cpp",
        )
    ]


def _bytes_by_type(source: Source, types: dict[str, str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, shape in source.shape.tensors.items():
        found[types[name]] = found.get(types[name], 0) + tensor_bytes(shape, types[name])
    return found


def _auto_quant(target: Target, source: Source) -> tuple[mixture.Quant, str]:
    """The target's quantization; a small model gets more bits, since it loses more and is fast anyway."""
    wanted = mixture.find(target.defaults.quant)
    if source.shape.n_params >= SMALL_MODEL_WEIGHTS or ggml_types.BY_NAME[wanted.base].bpw > 8:
        return wanted, target.why["quant"]
    measured = (
        "all-MiniLM-L6-v2: lowest cosine 0.918 at Q4_0, 0.969 at Q4_K_M, 0.999 at Q8_0"
        if source.shape.is_encoder
        else "SmolLM2-135M: KL 0.34 at Q4_0, 0.064 at Q4_K_M, 0.004 at Q8_0"
    )
    because = (
        f"a model of {format_count(source.shape.n_params)} weights is small: it loses much at {wanted.name} ({measured}) and is "
        f"fast at 8 bits; from {format_count(SMALL_MODEL_WEIGHTS)} weights on it would be {wanted.name}"
    )
    packed = sorted({kind for kind in source.base_types().values() if ggml_types.BY_NAME[kind].quantized})
    if packed:
        because += f"; the source is {', '.join(packed)} already: 8 bits keep what it has, rounding to 4 bits again would not"
    return mixture.find("Q8_0"), because


def requantized(source: Source, types: dict[str, str]) -> list[str]:
    """Source types that are themselves quantized and will be changed: information is lost twice."""
    base_types = source.base_types()
    lossy = {
        base_types[name]
        for name, kind in types.items()
        if base_types[name] not in {"F32", "F16", "BF16"} and kind != base_types[name]
    }
    return sorted(lossy)


def _context(target: Target, source: Source, options: ConvertOptions) -> tuple[int, str]:
    trained = source.shape.context_train
    if options.context is not None:
        if not 1 <= options.context <= trained:
            raise SpecError(
                f"context {options.context} is outside 1 to {trained}, the tokens this model was trained for",
                hint=f"use --context {trained} or less",
            )
        return options.context, "asked for"
    if trained < target.defaults.context:
        return trained, f"the model was trained for {trained} tokens"
    return target.defaults.context, target.why.get("context", "the target's default")


def _kv_type(target: Target, source: Source, options: ConvertOptions) -> tuple[str | None, str]:
    if source.shape.is_encoder:
        if options.kv_type != "auto":
            raise SpecError(
                f"--kv-type {options.kv_type} is given, but this model gives embeddings: it keeps no KV cache",
                hint="leave --kv-type out",
            )
        return None, "it keeps no KV cache"
    if options.kv_type == "auto":
        kv_type, because = str(target.defaults.kv_type), target.why.get("kv_type", "the target's default")
    else:
        kv_type, because = options.kv_type.upper(), "asked for"
    if kv_type not in KV_TYPES:
        raise unknown(options.kv_type, list(KV_TYPES), "KV cache type")
    return kv_type, because


def _steps(source: Source, types: dict[str, str]) -> list[str]:
    counts: dict[str, int] = {}
    for kind in types.values():
        counts[kind] = counts.get(kind, 0) + 1
    written = ", ".join(f"{n} x {kind}" for kind, n in sorted(counts.items(), key=lambda row: -row[1]))
    steps = [f"read {len(source.tensors)} tensors from {source.checkpoint.kind.upper()} row by row"]
    if any(t.reordered for t in source.tensors):
        steps.append("reorder query and key rows from Hugging Face's order to GGUF's")
    return [*steps, f"write {written}"]

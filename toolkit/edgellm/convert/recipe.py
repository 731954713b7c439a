"""The recipe: (target, shape, options) -> what will be done to every tensor, with the reason for each choice.

Pure: no disk, no native code, no measuring.
"""

from __future__ import annotations

from edgellm.artifact import Reason, Recipe
from edgellm.convert import mixture
from edgellm.convert.source import Source
from edgellm.errors import SpecError
from edgellm.formats import ggml_types
from edgellm.formats.records import Record
from edgellm.native.llama_options import KV_TYPES
from edgellm.registry import unknown
from edgellm.targets import Target
from edgellm.units import format_bytes, format_count

RUNTIME_OVERHEAD_BYTES = 128 * 1024**2
SMALL_MODEL_WEIGHTS = 500_000_000


class ConvertOptions(Record):
    """What the user may ask for beside model and target; `auto` leaves the choice to the target."""

    quant: str = "auto"
    context: int | None = None
    kv_type: str = "auto"


def make_recipe(target: Target, source: Source, options: ConvertOptions) -> Recipe:
    """Resolve every choice.

    Raises:
        SpecError: an unknown quantization, or a model that does not fit the target's memory.
    """
    reasons: list[Reason] = []
    if options.quant == "auto":
        quant, because = _auto_quant(target, source)
        reasons.append(Reason(choice=f"quant {quant.name}", because=because))
    else:
        quant = mixture.find(options.quant)
        reasons.append(Reason(choice=f"quant {quant.name}", because="asked for"))
    base_types = source.base_types()
    types, fallbacks = mixture.named_mix(quant, source.shape, base_types)
    if fallbacks:
        width = source.shape.tensors[fallbacks[0]][-1]
        reasons.append(
            Reason(
                choice=f"{len(fallbacks)} tensors in another type than {quant.name}'s mix",
                because=f"their rows (the first has {width} weights) are not a multiple of the type's block, as in llama.cpp",
            )
        )
    context = _context(target, source, options, reasons)
    kv_type = _kv_type(target, options, reasons)
    threads = target.defaults.threads
    if threads is not None:
        reasons.append(
            Reason(choice=f"threads {threads}", because=target.why.get("threads", "the target's default"))
        )
    _check_fit(target, source, types, context, kv_type, reasons)
    return Recipe(
        format="gguf",
        quant=quant.name,
        tensor_types=types,
        kv_type=kv_type,
        context=context,
        threads=threads,
        offload=target.defaults.offload,
        steps=_steps(source, types),
        reasons=reasons,
    )


def _auto_quant(target: Target, source: Source) -> tuple[mixture.Quant, str]:
    """The target's quantization; a small model gets more bits, since it loses more and is fast anyway."""
    wanted = mixture.find(target.defaults.quant)
    if source.shape.n_params >= SMALL_MODEL_WEIGHTS or ggml_types.BY_NAME[wanted.base].bpw > 8:
        return wanted, target.why["quant"]
    because = (
        f"a model of {format_count(source.shape.n_params)} weights is small: it loses much at {wanted.name} (SmolLM2-135M: "
        f"KL 0.34 at Q4_0, 0.064 at Q4_K_M, 0.004 at Q8_0) and is fast at 8 bits; from "
        f"{format_count(SMALL_MODEL_WEIGHTS)} weights on it would be {wanted.name}"
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


def _context(target: Target, source: Source, options: ConvertOptions, reasons: list[Reason]) -> int:
    trained = source.shape.context_train
    if options.context is not None:
        if not 1 <= options.context <= trained:
            raise SpecError(
                f"context {options.context} is outside 1 to {trained}, the tokens this model was trained for",
                hint=f"use --context {trained} or less",
            )
        reasons.append(Reason(choice=f"context {options.context}", because="asked for"))
        return options.context
    context = min(target.defaults.context, trained)
    because = target.why.get("context", "the target's default")
    if context < target.defaults.context:
        because = f"the model was trained for {trained} tokens"
    reasons.append(Reason(choice=f"context {context}", because=because))
    return context


def _kv_type(target: Target, options: ConvertOptions, reasons: list[Reason]) -> str:
    if options.kv_type == "auto":
        kv_type: str = target.defaults.kv_type
        because = target.why.get("kv_type", "the target's default")
    else:
        kv_type, because = options.kv_type.upper(), "asked for"
    if kv_type not in KV_TYPES:
        raise unknown(options.kv_type, list(KV_TYPES), "KV cache type")
    reasons.append(Reason(choice=f"kv_type {kv_type}", because=because))
    return kv_type


def _check_fit(
    target: Target, source: Source, types: dict[str, str], context: int, kv_type: str, reasons: list[Reason]
) -> None:
    weights = source.shape.weight_bytes(types)
    cache = source.shape.kv_bytes(context, kv_type)
    total = weights + cache + RUNTIME_OVERHEAD_BYTES
    said = (
        f"{format_bytes(weights)} of weights + {format_bytes(cache)} of KV cache at {context} tokens + "
        f"{format_bytes(RUNTIME_OVERHEAD_BYTES)} for the program = {format_bytes(total)}"
    )
    if target.ram_bytes is None:
        return
    if total > target.ram_bytes:
        raise SpecError(
            f"{source.checkpoint.name} does not fit {target.id}: {said}, it has {format_bytes(target.ram_bytes)}",
            hint="choose a smaller --quant, a shorter --context or a smaller model",
        )
    reasons.append(Reason(choice="fits", because=f"{said}; {target.id} has {format_bytes(target.ram_bytes)}"))


def _steps(source: Source, types: dict[str, str]) -> list[str]:
    counts: dict[str, int] = {}
    for kind in types.values():
        counts[kind] = counts.get(kind, 0) + 1
    written = ", ".join(f"{n} x {kind}" for kind, n in sorted(counts.items(), key=lambda row: -row[1]))
    steps = [f"read {len(source.tensors)} tensors from {source.checkpoint.kind.upper()} row by row"]
    if any(t.reordered for t in source.tensors):
        steps.append("reorder query and key rows from Hugging Face's order to GGUF's")
    return [*steps, f"write {written}"]

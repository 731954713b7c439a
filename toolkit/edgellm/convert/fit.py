"""What fits a target: quantization and context against its memory.

Where the user leaves both open, the target's default is tried first, then smaller types down to four bits, then a
shorter context, and only then fewer than four bits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from edgellm.convert import mixture
from edgellm.errors import DoesNotFitError
from edgellm.formats import ggml_types
from edgellm.shape import Memory, ModelShape
from edgellm.targets import Target
from edgellm.units import format_bytes

# Best first.
LADDER = ("BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K")
_FOUR_BITS = LADDER.index("Q4_0")
_MIX_NAME = re.compile(rf"{mixture.MIX}_([0-9]{{1,3}}(?:\.[0-9]{{1,3}})?)")
MIN_CONTEXT = 1024

TypesOf = Callable[[str], dict[str, str]]


class Choice(NamedTuple):
    """A quantization and a context, and the memory they need."""

    quant: str
    context: int
    memory: Memory


def choose(
    target: Target,
    shape: ModelShape,
    types_of: TypesOf,
    *,
    quant: str,
    context: int,
    kv_type: str,
    quant_open: bool,
    context_open: bool,
) -> Choice:
    """The first choice that fits.

    Args:
        types_of: quantization name -> type of every tensor.
        quant, context: what is wanted; `quant_open`, `context_open` say whether something smaller will do.

    Raises:
        DoesNotFitError: nothing that was allowed fits; it carries the table of what would.
    """
    for tried, length in _attempts(quant, context, quant_open=quant_open, context_open=context_open):
        memory = shape.memory(types_of(tried), length, kv_type)
        if memory.total <= target.usable_ram_bytes:
            return Choice(tried, length, memory)
    needed = shape.memory(types_of(quant), context, kv_type)
    rows = table(target, shape, types_of, context=context, kv_type=kv_type)
    best = rows[0] if rows else None
    raise DoesNotFitError(
        f"{quant} at {context} tokens does not fit {target.id}: {said(needed)}, "
        f"it has {format_bytes(target.ram_bytes)}, of which {format_bytes(target.usable_ram_bytes)} can be used",
        hint=f"what would fit: --quant {best.quant} --context {best.context}"
        if best
        else f"no type of this model fits {target.id} at {min(MIN_CONTEXT, context)} tokens; choose a smaller model",
        table=table_lines(rows) if rows else (),
    )


def check(target: Target, memory: Memory, what: str) -> None:
    """Refuse what the target cannot hold.

    Raises:
        DoesNotFitError: all numbers are in the message.
    """
    if memory.total > target.usable_ram_bytes:
        raise DoesNotFitError(
            f"{what} does not fit {target.id}: {said(memory)}, it has {format_bytes(target.ram_bytes)}, "
            f"of which {format_bytes(target.usable_ram_bytes)} can be used",
            hint="a smaller budget, a shorter --context or a smaller model",
        )


def held_to(quant: str) -> str:
    """The named type whose bounds hold for a quantization: its own, or of a mix of ours the best with no more bits."""
    match = _MIX_NAME.fullmatch(quant)
    if match is None:
        return quant
    bpw = float(match[1])
    bases = ((name, ggml_types.BY_NAME[mixture.find(name).base].bpw) for name in LADDER)
    return next((name for name, base_bpw in bases if base_bpw <= bpw), LADDER[-1])


def said(memory: Memory) -> str:
    """The sum in words."""
    cache = f"{format_bytes(memory.kv)} of KV cache + " if memory.kv else ""
    return (
        f"{format_bytes(memory.weights)} of weights + {cache}"
        f"{format_bytes(memory.compute)} of buffers + {format_bytes(memory.program)} for the program = "
        f"{format_bytes(memory.total)}"
    )


def table(
    target: Target, shape: ModelShape, types_of: TypesOf, *, context: int, kv_type: str
) -> list[Choice]:
    """For every type the longest context up to `context` that fits; types that never fit are left out."""
    rows = []
    for quant in LADDER:
        types = types_of(quant)
        for length in _shorter(context):
            memory = shape.memory(types, length, kv_type)
            if memory.total <= target.usable_ram_bytes:
                rows.append(Choice(quant, length, memory))
                break
    return rows


def table_lines(rows: list[Choice]) -> list[str]:
    """The table as text, a heading first."""
    lines = [f"{'type':8} {'context':>8} {'weights':>10} {'KV cache':>10} {'buffers':>10} {'in all':>10}"]
    for quant, context, memory in rows:
        sizes = (memory.weights, memory.kv, memory.compute, memory.total)
        lines.append(f"{quant:8} {context:8d} " + " ".join(f"{format_bytes(n):>10}" for n in sizes))
    return lines


def _attempts(quant: str, context: int, *, quant_open: bool, context_open: bool) -> Iterator[tuple[str, int]]:
    yield quant, context
    smaller = LADDER[LADDER.index(quant) + 1 :] if quant_open and quant in LADDER else ()
    fine = [name for name in smaller if LADDER.index(name) <= _FOUR_BITS]
    contexts = list(_shorter(context))[1:] if context_open else []
    for name in fine:
        yield name, context
    for length in contexts:
        yield (fine or [quant])[-1], length
    for name in smaller:
        if name not in fine:
            for length in (context, *contexts):
                yield name, length


def _shorter(context: int) -> Iterator[int]:
    """The context itself, then halves of it down to MIN_CONTEXT."""
    yield context
    while context // 2 >= MIN_CONTEXT:
        context //= 2
        yield context

"""Which type each tensor gets under a byte budget: the least predicted damage for the bytes.

Pure: sizes and damages in, types and reasons out. Damages of different tensors add up, which holds while they are
small; then a type is worth its bytes where it takes away more damage per byte than any other step still to be bought.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from edgellm.artifact import Reason
from edgellm.errors import SpecError
from edgellm.shape import ModelShape, tensor_bytes
from edgellm.units import format_bytes

ALIGNMENT = 32


class Candidate(NamedTuple):
    """One type that a tensor may have: its bytes in the file, padding included, and the damage it does."""

    type_name: str
    n_bytes: int
    damage: float


@dataclasses.dataclass(frozen=True)
class Allocation:
    """What was chosen.

    Attributes:
        types: tensor -> type, in the order given.
        file_bytes: bytes of the whole file.
        damage: sum of the predicted damages, in the unit of the candidates.
        reasons: for the recipe.
    """

    types: dict[str, str]
    file_bytes: int
    damage: float
    reasons: list[Reason]


def padded_bytes(shape: Sequence[int], type_name: str) -> int:
    """Bytes that a tensor takes in the file."""
    size = tensor_bytes(tuple(shape), type_name)
    return size + -size % ALIGNMENT


def max_file_bytes(shape: ModelShape, *, header_bytes: int, bpw: float) -> int:
    """The file size that `bpw` bits per weight allow: bpw counts tensors, as the manifest does; the header is on top."""
    return header_bytes + int(bpw * shape.n_params / 8)


def allocate(candidates: Mapping[str, Sequence[Candidate]], fixed_bytes: int, max_bytes: int) -> Allocation:
    """Choose one candidate per tensor.

    Args:
        candidates: at least one per tensor.
        fixed_bytes: the header, and the tensors that no choice is made for, padding included.
        max_bytes: bound on the whole file.

    Raises:
        SpecError: even the smallest candidates do not fit; the hint says what would.
    """
    hulls = {name: _hull(options) for name, options in candidates.items()}
    level = dict.fromkeys(hulls, 0)
    size = fixed_bytes + sum(hull[0].n_bytes for hull in hulls.values())
    if size > max_bytes:
        raise _too_small(candidates, fixed_bytes, size, max_bytes)
    steps = [_step(name, hull, 0) for name, hull in hulls.items() if len(hull) > 1]
    heapq.heapify(steps)
    while steps:
        _, name, low = heapq.heappop(steps)
        hull = hulls[name]
        # A step that does not fit is passed over; a smaller one may still fit.
        more = hull[low + 1].n_bytes - hull[low].n_bytes
        if size + more > max_bytes:
            continue
        size += more
        level[name] = low + 1
        if low + 2 < len(hull):
            heapq.heappush(steps, _step(name, hull, low + 1))
    chosen = {name: hulls[name][level[name]] for name in hulls}
    return Allocation(
        types={name: candidate.type_name for name, candidate in chosen.items()},
        file_bytes=size,
        damage=sum(candidate.damage for candidate in chosen.values()),
        reasons=_reasons(candidates, chosen),
    )


def _step(name: str, hull: Sequence[Candidate], low: int) -> tuple[float, str, int]:
    a, b = hull[low], hull[low + 1]
    return (b.damage - a.damage) / (b.n_bytes - a.n_bytes), name, low


def _hull(options: Sequence[Candidate]) -> list[Candidate]:
    """The lower convex hull of (bytes, damage): each further step costs more per damage taken away."""
    if not options:
        raise ValueError("a tensor has no candidate types")
    hull: list[Candidate] = []
    for option in sorted(options, key=lambda c: (c.n_bytes, c.damage, c.type_name)):
        if hull and option.damage >= hull[-1].damage:
            continue
        while len(hull) > 1 and _slope(hull[-2], option) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(option)
    return hull


def _slope(a: Candidate, b: Candidate) -> float:
    return (b.damage - a.damage) / (b.n_bytes - a.n_bytes)


def _too_small(
    candidates: Mapping[str, Sequence[Candidate]], fixed_bytes: int, smallest: int, max_bytes: int
) -> SpecError:
    names = {option.type_name for options in candidates.values() for option in options}
    sizes = []
    for type_name in names:
        size = fixed_bytes
        for options in candidates.values():
            fitting = [o for o in options if o.type_name == type_name]
            size += (fitting or sorted(options, key=lambda o: o.n_bytes))[0].n_bytes
        sizes.append((size, type_name))
    listed = ", ".join(f"{type_name} {format_bytes(size)}" for size, type_name in sorted(sizes))
    return SpecError(
        f"a budget of {format_bytes(max_bytes)} is below the smallest file, {format_bytes(smallest)} ({smallest} bytes)",
        hint=f"allow at least that; with one type for all tensors that can have it: {listed}",
    )


def _part(name: str) -> str:
    """What tensors of all layers have in common: ffn_down of blk.3.ffn_down.weight."""
    words = name.removesuffix(".weight").split(".")
    return ".".join(words[2:]) if words[0] == "blk" and len(words) > 2 else ".".join(words)


def _reasons(candidates: Mapping[str, Sequence[Candidate]], chosen: Mapping[str, Candidate]) -> list[Reason]:
    """Per kind of tensor: the types, their share of the bytes, and what one more byte at the smallest type would buy."""
    total_bytes = sum(c.n_bytes for c in chosen.values())
    total_damage = sum(c.damage for c in chosen.values())
    kinds: dict[str, list[str]] = {}
    for name in chosen:
        kinds.setdefault(_part(name), []).append(name)
    reasons = []
    for kind, names in sorted(kinds.items(), key=lambda row: -sum(chosen[n].n_bytes for n in row[1])):
        counts: dict[str, int] = {}
        for name in names:
            counts[chosen[name].type_name] = counts.get(chosen[name].type_name, 0) + 1
        types = ", ".join(
            f"{n} x {t}" if len(names) > 1 else t for t, n in sorted(counts.items(), key=lambda row: -row[1])
        )
        size = sum(chosen[name].n_bytes for name in names)
        damage = sum(chosen[name].damage for name in names)
        worst = sum(max(o.damage for o in candidates[name]) for name in names)
        because = f"{100 * size / total_bytes:.0f} % of the bytes"
        if total_damage > 0:
            because += f", {100 * damage / total_damage:.0f} % of the predicted damage"
        if damage > 0:
            because += f"; the coarsest candidate would do {worst / damage:.1f} times as much there"
        reasons.append(Reason(choice=f"{kind} {types}", because=because))
    return reasons

"""Which ggml types have fast kernels on which instruction sets.

A fast kernel is one that works on repacked weights (several rows at a time); the others have a plain dot product,
which decodes at the speed of memory at best and reads prompts at a third of it or less. Read from ggml's CPU
sources (repack.cpp and the architecture files) of the version that llama-cpp-python 0.3.36 carries.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgellm.targets import Target

_FLOATS = frozenset({"F32", "F16", "BF16"})
_DOTPROD = frozenset({"Q4_0", "Q8_0", "IQ4_NL", "MXFP4", "Q4_K", "Q5_K", "Q6_K"})
_AVX2 = frozenset({"Q4_0", "Q8_0", "IQ4_NL", "MXFP4", "Q4_K"})
_BY_ISA: tuple[tuple[str, frozenset[str]], ...] = (
    ("I8MM", _DOTPROD), ("DOTPROD", _DOTPROD), ("AVX512F", _AVX2 | {"Q2_K"}), ("AVX2", _AVX2),
)  # fmt: skip


def fast_types(target: Target) -> tuple[str, frozenset[str]]:
    """The instruction set that decides and the types it has fast kernels for; none where nothing is known of it."""
    return next(((isa, types) for isa, types in _BY_ISA if isa in target.isa), ("", frozenset()))


def said_of(target: Target, bytes_by_type: Mapping[str, int]) -> str:
    """How much of a model has fast kernels on the target, in words.

    Args:
        bytes_by_type: ggml type -> bytes of the tensors in it.
    """
    isa, fast = fast_types(target)
    packed = {kind: n for kind, n in bytes_by_type.items() if kind not in _FLOATS}
    if not packed:
        return "float weights: no type to choose a kernel for"
    if not isa:
        have = ", ".join(target.isa) or "unknown instruction sets"
        return f"{target.id} has {have}: no repacked kernels, every type runs by its plain dot product"
    total = sum(packed.values())
    slow = {kind: n for kind, n in packed.items() if kind not in fast}
    share = 1 - sum(slow.values()) / total
    listed = ", ".join(sorted(packed.keys() & fast)) or "none"
    said = f"{share:.0%} of the quantized bytes are in types with repacked kernels for {isa} ({listed})"
    return f"{said}; plain dot products: {', '.join(sorted(slow))}" if slow else said

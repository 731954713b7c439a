"""Whether a context fits into the memory that is free, before anything is allocated: rather refused than swapped."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgellm import machine
from edgellm.errors import ResourceError
from edgellm.formats.gguf import GGUFFile
from edgellm.native.llama_options import KV_TYPES
from edgellm.shape import ModelShape, shape_of_gguf
from edgellm.units import format_bytes

LEAST_CONTEXT = 256


def check_context(file: GGUFFile, *, context: int, parallel: int, kv_type: str, taken_bytes: int = 0) -> int:
    """Refuse a context whose KV cache and buffers take more memory than is free.

    Of the weights only what cannot be otherwise is counted: they are mapped and may be read again from the disk. With them
    too the whole must not exceed the machine's memory, unless the weights alone do.

    Args:
        context: tokens of each generation.  parallel: generations at once.
        taken_bytes: of the free memory, for caches of another model.

    Returns:
        Bytes that cache and buffers take; 0 where that is unknown.

    Raises:
        ResourceError: it does; with both sizes, and in the hint the longest context that fits.
        BadInputError: hyper-parameters out of bounds.
    """
    shape = shape_of_gguf(file)
    share = _cached_share(file, shape)
    if share is None or kv_type not in KV_TYPES:
        return 0

    def needed_bytes(tokens: int) -> int:
        cache = int(share * shape.kv_bytes(tokens, kv_type))
        return parallel * cache + shape.compute_bytes(tokens)

    free_bytes, bound = _free_bytes(sum(tensor.n_bytes for tensor in file.tensors.values()))
    if free_bytes is not None:
        free_bytes = max(0, free_bytes - taken_bytes)
    if free_bytes is None or needed_bytes(context) <= free_bytes:
        return needed_bytes(context)
    most = _longest(needed_bytes, context, free_bytes)
    times = f" for each of {parallel} generations" if parallel > 1 else ""
    hint = f"use --context {most} or less" + (
        ", a smaller kv_type, or fewer in parallel" if parallel > 1 else ""
    )
    raise ResourceError(
        f"{file.path.name}: a context of {context} tokens{times} needs {format_bytes(needed_bytes(context))} of KV cache "
        f"and buffers, {format_bytes(free_bytes)} are left ({bound})",
        hint=hint if most else "not even a short context fits: free some memory, or choose a smaller model",
    )


def _free_bytes(weight_bytes: int) -> tuple[int | None, str]:
    """What cache and buffers may take, and what says so; None where the system does not tell."""
    bounds = []
    available = machine.available_memory_bytes()
    if available is not None:
        bounds.append((available, "free memory"))
    ram_bytes = machine.ram_bytes()
    if weight_bytes < ram_bytes:
        bounds.append((ram_bytes - weight_bytes, "memory of the machine, beside the weights"))
    mapped = machine.address_space_left_bytes()
    if mapped is not None:
        bounds.append((max(0, mapped - weight_bytes), "limit of the address space, beside the weights"))
    return min(bounds, default=(None, ""))


def _longest(needed_bytes: Callable[[int], int], context: int, free_bytes: int) -> int:
    """The longest context that fits, in steps of LEAST_CONTEXT; 0 where none does."""
    low, high = 0, context // LEAST_CONTEXT
    while low < high:
        middle = (low + high + 1) // 2
        if needed_bytes(middle * LEAST_CONTEXT) <= free_bytes:
            low = middle
        else:
            high = middle - 1
    return low * LEAST_CONTEXT


def _cached_share(file: GGUFFile, shape: ModelShape) -> float | None:
    """The cache as a share of one in which every layer keeps as many heads as the largest; None where that is unknown."""
    prefix = f"{shape.architecture}.attention."
    if f"{prefix}kv_lora_rank" in file.metadata:  # what is kept is compressed
        return None
    entry = file.metadata.get(f"{prefix}head_count_kv")
    if entry is None or not isinstance(entry.value, np.ndarray):
        return 1.0
    return float(entry.value.sum()) / (shape.n_kv_heads * shape.n_layers)

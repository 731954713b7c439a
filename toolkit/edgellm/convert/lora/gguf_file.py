"""A PEFT adapter as a GGUF adapter, which llama.cpp adds to a model while it runs.

The format is that of llama.cpp's convert_lora_to_gguf.py: for a weight NAME the tensors NAME.lora_a (rank, n_in) and
NAME.lora_b (n_out, rank), the rows of lora_b in GGUF's order. llama.cpp's scale is alpha / rank with one alpha for all,
so where PEFT's differs (rsLoRA, alpha_pattern) lora_b is multiplied by the rest. Its converter leaves that out, and
does not transpose back the adapters of GPT-2.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np

from edgellm import artifact
from edgellm.checkpoint import SourceTensor
from edgellm.convert import rows, writer
from edgellm.convert.lora.adapter import Adapter, Pair
from edgellm.convert.lora.merge import TABLES, fit
from edgellm.convert.source import HeaderValue, Part, PlannedTensor, Source, in_file_order
from edgellm.errors import UnsupportedError

QUANTIZATION_VERSION = 2
_MERGE = "leave the adapter out of a file of its own: merge it into the model"


def write_adapter(
    path: Path, base: Source, adapter: Adapter, *, type_name: str = "F32", n_workers: int = 1
) -> writer.Written:
    """Write the adapter to a new GGUF file.

    Args:
        base: the model it belongs to, read from its Hugging Face directory; no weight is read, except where PEFT saved
            a copy of one.
        type_name: F32, F16 or BF16.

    Raises:
        UnsupportedError: llama.cpp cannot add this adapter while it runs, and merging it would work.
        BadInputError: the adapter is for another base.
        OSError: the file cannot be written.
    """
    alpha = _common_alpha(adapter)
    tensors = in_file_order(_planned(base, adapter, alpha))
    header = {
        "general.architecture": HeaderValue("STRING", base.shape.architecture),
        "general.type": HeaderValue("STRING", "adapter"),
        "adapter.type": HeaderValue("STRING", "lora"),
        "general.name": HeaderValue("STRING", adapter.name),
        "general.base_model.count": HeaderValue("UINT32", 1),
        "general.base_model.0.name": HeaderValue("STRING", base.checkpoint.name),
        "adapter.lora.alpha": HeaderValue("FLOAT32", alpha),
        "general.quantization_version": HeaderValue("UINT32", QUANTIZATION_VERSION),
    }
    for file in adapter.files:
        header[f"edgellm.parent.{file.name}.sha256"] = HeaderValue("STRING", artifact.sha256_file(file))
    planned = dataclasses.replace(base, tensors=tensors, header=header)
    types = {tensor.name: type_name for tensor in tensors}
    return writer.write_gguf(path, planned, types, header, n_workers=n_workers)


def _common_alpha(adapter: Adapter) -> float:
    """What llama.cpp divides by a module's rank to get its scale, for the most usual module."""
    config = adapter.config
    return config.alpha * math.sqrt(config.rank) if config.rank_stabilized else config.alpha


def _planned(base: Source, adapter: Adapter, alpha: float) -> list[PlannedTensor]:
    pairs = {id(tensor): pair for pair, tensor in fit(base, adapter)}
    planned = []
    for tensor in base.tensors:
        found = [pairs.get(id(part.origin)) for part in tensor.parts]
        used = [pair for pair in found if pair is not None]
        if not used:
            continue
        where = f"{adapter.path}: module {used[0].module!r}"
        stacked = len(tensor.shape) == 3
        if (
            len(used) < len(found)
            or len({pair.rank for pair in used}) > 1
            or (len(found) > 1 and not stacked)
        ):
            raise UnsupportedError(
                f"{where} becomes a part of {tensor.name!r}, of which llama.cpp takes all parts with one rank",
                hint=_MERGE,
            )
        if tensor.name in TABLES[1:] or len(tensor.shape) < 2:
            raise UnsupportedError(
                f"{where} changes {tensor.name!r}, to which llama.cpp adds nothing", hint=_MERGE
            )
        planned += _halves(tensor, used, alpha)
    return planned


def _halves(tensor: PlannedTensor, pairs: list[Pair], alpha: float) -> list[PlannedTensor]:
    """NAME.lora_a and NAME.lora_b."""
    rank, lead = pairs[0].rank, tensor.shape[:-2]
    if pairs[0].embedding:
        n_tokens, n_out = tensor.shape
        a = Part(pairs[0].a, n_tokens, transposed=True)
        b = Part(_scaled(pairs[0], alpha), n_out)
        return [
            PlannedTensor(f"{tensor.name}.lora_a", (n_tokens, rank), (a,)),
            PlannedTensor(f"{tensor.name}.lora_b", (n_out, rank), (b,)),
        ]
    of_a = tuple(Part(pair.a, rank) for pair in pairs)
    of_b = tuple(
        part._replace(origin=_scaled(pair, alpha), transposed=False, low_rank=None)
        for part, pair in zip(tensor.parts, pairs, strict=True)
    )
    return [
        PlannedTensor(f"{tensor.name}.lora_a", (*lead, rank, tensor.shape[-1]), of_a),
        PlannedTensor(f"{tensor.name}.lora_b", (*tensor.shape[:-1], rank), of_b),
    ]


def _scaled(pair: Pair, alpha: float) -> SourceTensor | np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """B as it is where llama.cpp's scale is the pair's, else multiplied by what is missing."""
    factor = pair.scale * pair.rank / alpha
    if math.isclose(factor, 1.0, rel_tol=1e-12):
        return pair.b
    n_out, rank = pair.b.shape
    with rows.Readers() as readers:
        values = rows.float_rows(Part(pair.b, n_out), rank, 0, n_out, readers)
    return np.multiply(values, np.float32(factor))

"""GGUF files of any size that take no disk: a header, then a hole where the weights would be."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

VECTOR_TYPE, MATRIX_TYPE = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16


def write_sparse(
    path: Path, architecture: str, metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> Path:
    """A model without vocabulary: vectors in F32, everything else in F16, all zeros.

    Args:
        metadata: keys without the architecture's prefix; an int becomes UINT32, a float FLOAT32.
        shapes: tensor name -> shape, rows first.
    """
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        kind = gguf.GGUFValueType.get_type(value)
        sub_type = None
        if kind == gguf.GGUFValueType.INT32:
            kind = gguf.GGUFValueType.UINT32
        elif kind == gguf.GGUFValueType.ARRAY:
            sub_type = gguf.GGUFValueType.UINT32
        writer.add_key_value(f"{architecture}.{key}", value, kind, sub_type=sub_type)
    data_bytes = 0
    for name, shape in shapes.items():
        stored, size = (VECTOR_TYPE, 4) if len(shape) == 1 else (MATRIX_TYPE, 2)
        n_bytes = size * int(np.prod(shape, dtype=np.int64))
        writer.add_tensor_info(name, list(shape), np.dtype(np.float16), n_bytes, raw_dtype=stored)
        data_bytes += n_bytes + -n_bytes % 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    header_bytes = path.stat().st_size
    os.truncate(path, header_bytes + -header_bytes % 32 + data_bytes)
    return path


def write_imatrix(
    path: Path, entries: Mapping[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]], n_chunks: int = 1
) -> Path:
    """An importance matrix as llama-imatrix writes it.

    Args:
        entries: weight -> sums of squares (n_experts, n_columns) and counts (n_experts, 1), float32.
    """
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["test.txt"])
    writer.add_uint32("imatrix.chunk_count", n_chunks)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, (sums, counts) in entries.items():
        writer.add_tensor(f"{name}.in_sum2", sums)
        writer.add_tensor(f"{name}.counts", counts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

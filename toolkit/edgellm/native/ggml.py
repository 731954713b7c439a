"""ggml's own quantizers and dequantizers on rows of weights.

`quantize_rows` calls ggml_quantize_chunk. Rows are independent, so any split into chunks and threads gives the same
bytes as llama-quantize built with the same compiler flags. ctypes releases the GIL during the call.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from edgellm.errors import BadInputError, UnsupportedError
from edgellm.formats import ggml_types
from edgellm.native import library

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
_PLAIN = {"F32", "F16", "BF16"}
# The bits of the exponent, which are all ones in NaN and infinity.
_EXPONENTS: dict[str, np.unsignedinteger[Any]] = {
    "F32": np.uint32(0x7F800000),
    "F16": np.uint16(0x7C00),
    "BF16": np.uint16(0x7F80),
}


def can_quantize(type_name: str) -> bool:
    """Whether rows can be written in this type."""
    return type_name in _PLAIN or hasattr(_base(), f"quantize_{_symbol(type_name)}")


def requires_importance(type_name: str) -> bool:
    """Whether this type cannot be quantized without an importance matrix."""
    return bool(_base().ggml_quantize_requires_imatrix(ggml_types.BY_NAME[type_name].number))


def quantize_rows(rows: Floats, type_name: str, importance: Floats | None = None) -> Bytes:
    """Quantize rows of weights.

    Args:
        rows: (n_rows, n_per_row) float32, C-contiguous.
        importance: (n_per_row,) float32 weights of the squared error per column, or None.

    Returns:
        (n_rows, row_bytes) uint8.

    Raises:
        ValueError: n_per_row is not a multiple of the type's block.
        BadInputError: the rows hold NaN or infinity, or values that the type cannot hold.
        UnsupportedError: the type cannot be quantized to, or not without an importance matrix.
    """
    n_rows, n_per_row = rows.shape
    row_bytes = ggml_types.BY_NAME[type_name].row_bytes(n_per_row)
    _check_finite(rows)
    if type_name == "F32":
        return np.ascontiguousarray(rows).view(np.uint8).reshape(n_rows, row_bytes)
    if type_name == "F16":
        return _to_f16(rows).view(np.uint8).reshape(n_rows, row_bytes)
    if type_name == "BF16":
        return _to_bf16(rows).view(np.uint8).reshape(n_rows, row_bytes)
    if not can_quantize(type_name):
        raise UnsupportedError(f"the native library cannot quantize to {type_name}")
    if importance is None and requires_importance(type_name):
        raise UnsupportedError(f"{type_name} cannot be quantized without an importance matrix")
    _initialise(type_name)
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    out = np.empty((n_rows, row_bytes), dtype=np.uint8)
    number = ggml_types.BY_NAME[type_name].number
    importance_pointer = None
    if importance is not None:
        importance = np.ascontiguousarray(importance, dtype=np.float32)
        if importance.shape != (n_per_row,):
            raise ValueError(f"importance has shape {importance.shape}, rows have {n_per_row} columns")
        importance_pointer = importance.ctypes.data
    written = _base().ggml_quantize_chunk(
        number, rows.ctypes.data, out.ctypes.data, 0, n_rows, n_per_row, importance_pointer
    )
    if written != out.nbytes or not _base().ggml_validate_row_data(number, out.ctypes.data, out.nbytes):
        raise BadInputError(f"weights are too large for {type_name}: the scales of its blocks overflow")
    return out


def check_rows(packed: Bytes, type_name: str, where: str) -> None:
    """Refuse packed rows that hold NaN, infinity or invalid blocks.

    Raises:
        BadInputError: they do; `where` says which rows these are.
    """
    packed = np.ascontiguousarray(packed)
    if type_name in _EXPONENTS:  # looked at here, since the native check writes to stderr
        exponent = _EXPONENTS[type_name]
        bad = packed.view(exponent.dtype) & exponent == exponent
        if bad.any():
            raise BadInputError(f"{where}: {_counted(bad)}")
        return
    sound = _base().ggml_validate_row_data(
        ggml_types.BY_NAME[type_name].number, packed.ctypes.data, packed.nbytes
    )
    if not sound:
        raise BadInputError(f"{where}: NaN, infinity or invalid {type_name} blocks")


def dequantize_rows(packed: Bytes, type_name: str, n_per_row: int) -> Floats:
    """Rows of any readable type as float32.

    Args:
        packed: (n_rows, row_bytes) uint8.

    Returns:
        (n_rows, n_per_row) float32.

    Raises:
        UnsupportedError: the native library cannot read this type.
    """
    n_rows = packed.shape[0]
    packed = np.ascontiguousarray(packed)
    if type_name == "F32":
        return packed.view(np.float32).reshape(n_rows, n_per_row)
    if type_name == "F16":
        return packed.view(np.float16).reshape(n_rows, n_per_row).astype(np.float32)
    if type_name == "BF16":
        wide = packed.view(np.uint16).reshape(n_rows, n_per_row).astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    out = np.empty((n_rows, n_per_row), dtype=np.float32)
    _dequantizer(type_name)(packed.ctypes.data, out.ctypes.data, out.size)
    return out


def _symbol(type_name: str) -> str:
    """The type as it stands in C symbols: q4_0, q4_K, iq2_xxs."""
    return type_name.lower().replace("_k", "_K")


def _check_finite(rows: Floats) -> None:
    """One pass in the usual case: only where the sum is not finite (it may overflow) is every weight looked at."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = rows.sum()
    if not np.isfinite(total) and not np.isfinite(rows).all():
        raise BadInputError(_counted(~np.isfinite(rows)))


def _counted(bad: npt.NDArray[np.bool_]) -> str:
    """How many weights of these rows are bad, and where the first one is."""
    row, column = np.argwhere(bad)[0]
    return (
        f"{np.count_nonzero(bad)} of {bad.size} weights are NaN or infinity, the first in row {row}, column {column} "
        "of these"
    )


def all_zero(packed: Bytes, type_name: str, n_per_row: int) -> bool:
    """Whether rows hold nothing but zeros; usually one row tells.

    Args:
        packed: (n_rows, row_bytes) uint8.
    """
    try:
        first = dequantize_rows(packed[:1], type_name, n_per_row)
    except UnsupportedError:  # of a type that is only ever copied
        return not packed.any()
    return not first.any() and not dequantize_rows(packed, type_name, n_per_row).any()


def _to_f16(rows: Floats) -> npt.NDArray[np.float16]:
    with np.errstate(over="ignore"):
        narrow = rows.astype(np.float16)
    if np.isinf(narrow).any():
        raise BadInputError("weights beyond 65504 do not fit F16; use BF16 or Q8_0")
    return narrow


def _to_bf16(rows: Floats) -> npt.NDArray[np.uint16]:
    """Round to nearest even, as ggml does."""
    bits = np.ascontiguousarray(rows, dtype=np.float32).view(np.uint32)
    rounded = bits + (0x7FFF + ((bits >> 16) & 1))
    narrow: npt.NDArray[np.uint16] = (rounded >> 16).astype(np.uint16)
    if ((narrow & 0x7FFF) == 0x7F80).any():
        raise BadInputError("weights beyond 3.39e38 do not fit BF16; use F32")
    return narrow


@functools.cache
def _base() -> ctypes.CDLL:
    base = library.load("ggml-base")
    base.ggml_quantize_chunk.restype = ctypes.c_size_t
    base.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    base.ggml_validate_row_data.restype = ctypes.c_bool
    base.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    base.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    base.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
    base.ggml_quantize_init.restype = None
    base.ggml_quantize_init.argtypes = [ctypes.c_int]
    return base


@functools.cache
def _initialise(type_name: str) -> None:
    _base().ggml_quantize_init(ggml_types.BY_NAME[type_name].number)


@functools.cache
def _dequantizer(type_name: str) -> Callable[[int, int, int], None]:
    name = f"dequantize_row_{_symbol(type_name)}"
    try:
        function = getattr(_base(), name)
    except AttributeError:
        raise UnsupportedError(f"the native library cannot read {type_name} weights") from None
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    return function  # type: ignore[no-any-return]

"""The tensor types of ggml that edgellm knows: number in the file, block length, bytes per block.

Source: ggml.h and ggml-common.h; a test compares this table with the PyPI package `gguf` and with
the native library. Types that ggml has removed are absent, so a file that uses one is refused.
"""

from __future__ import annotations

from typing import NamedTuple


class GGMLType(NamedTuple):
    """One tensor type: `block` weights are stored in `block_bytes` bytes."""

    name: str
    number: int
    block: int
    block_bytes: int

    @property
    def bpw(self) -> float:
        """Bits per weight inside a tensor of this type."""
        return 8 * self.block_bytes / self.block

    @property
    def quantized(self) -> bool:
        """True where weights are stored in blocks with a shared scale."""
        return self.block > 1

    def row_bytes(self, n_weights: int) -> int:
        """Bytes of a row of `n_weights` weights, a multiple of `block`."""
        if n_weights % self.block:
            raise ValueError(
                f"row of {n_weights} weights is not a multiple of {self.name}'s block of {self.block}"
            )
        return n_weights // self.block * self.block_bytes


_TABLE = (
    ("F32", 0, 1, 4), ("F16", 1, 1, 2), ("BF16", 30, 1, 2), ("F64", 28, 1, 8),
    ("I8", 24, 1, 1), ("I16", 25, 1, 2), ("I32", 26, 1, 4), ("I64", 27, 1, 8),
    ("Q4_0", 2, 32, 18), ("Q4_1", 3, 32, 20), ("Q5_0", 6, 32, 22), ("Q5_1", 7, 32, 24),
    ("Q8_0", 8, 32, 34), ("Q8_1", 9, 32, 36),
    ("Q2_K", 10, 256, 84), ("Q3_K", 11, 256, 110), ("Q4_K", 12, 256, 144), ("Q5_K", 13, 256, 176),
    ("Q6_K", 14, 256, 210), ("Q8_K", 15, 256, 292),
    ("IQ2_XXS", 16, 256, 66), ("IQ2_XS", 17, 256, 74), ("IQ3_XXS", 18, 256, 98), ("IQ1_S", 19, 256, 50),
    ("IQ4_NL", 20, 32, 18), ("IQ3_S", 21, 256, 110), ("IQ2_S", 22, 256, 82), ("IQ4_XS", 23, 256, 136),
    ("IQ1_M", 29, 256, 56), ("TQ1_0", 34, 256, 54), ("TQ2_0", 35, 256, 66), ("MXFP4", 39, 32, 17),
    ("NVFP4", 40, 64, 36), ("Q1_0", 41, 128, 18),
)  # fmt: skip

BY_NAME = {row[0]: GGMLType(*row) for row in _TABLE}
BY_NUMBER = {kind.number: kind for kind in BY_NAME.values()}

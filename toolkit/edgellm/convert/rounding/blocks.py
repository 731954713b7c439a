"""How ggml lays out the codes and scales of a block: packing into bytes that its own dequantizers read.

Everything stands in lanes: axis 0 runs over the weights of one block, axis 1 over many blocks side by side. A weight
is `scale * code + offset`, in float32 exactly as ggml computes it: products of its scales and codes fit 24 bits.

Source: ggml-common.h and the dequantize_row_* functions of ggml-quants.c (MIT).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from edgellm.native.ggml import Bytes, Floats

FOUR, TWO, SIX, LOW = np.uint8(4), np.uint8(2), np.uint8(6), np.uint8(15)
Codes = npt.NDArray[np.int16]
# Level of each code of IQ4_NL and IQ4_XS.
NL_LEVELS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.int16
)


@dataclasses.dataclass(frozen=True)
class Scales:
    """Scales of n blocks, each with n_sub sub-blocks that have their own.

    Attributes:
        scale: (n_sub, n) float32, what a code is multiplied with.
        offset: (n_sub, n) float32, what is added; None for types without one.
        d, m: (n,) float16 as stored: the block's scale, and its offset (or scale of offsets).
        sub_d, sub_m: (n_sub, n) int as stored, for types with two levels of scales.
    """

    scale: Floats
    offset: Floats | None
    d: npt.NDArray[np.float16]
    m: npt.NDArray[np.float16] | None = None
    sub_d: npt.NDArray[np.int16] | None = None
    sub_m: npt.NDArray[np.int16] | None = None


def pack(type_name: str, codes: Codes, scales: Scales) -> Bytes:
    """Blocks as ggml stores them.

    Args:
        codes: (block, n) what is multiplied with the scale: -8 to 7 for Q4_0, a level for IQ4_NL.

    Returns:
        (n, block_bytes) uint8.
    """
    parts = _PACKERS[type_name](codes, scales)
    return np.concatenate([np.ascontiguousarray(part.T) for part in parts], axis=1)


def _half(values: npt.NDArray[np.float16] | None) -> Bytes:
    assert values is not None
    return np.ascontiguousarray(values).view(np.uint8).reshape(-1, 2).T


def _unsigned(codes: Codes, shift: int) -> Bytes:
    return (codes + shift).astype(np.uint8)


def _nibbles(q: Bytes, span: int) -> Bytes:
    """Low and high halves of each stretch of `span` codes in one byte: (block / 2, n)."""
    stretched = q.reshape(-1, 2, span // 2, q.shape[1]) & LOW
    return (stretched[:, 0] | stretched[:, 1] << FOUR).reshape(-1, q.shape[1])


def _planes(q: Bytes, span: int, bits: int) -> Bytes:
    """8 / bits codes that stand `span` apart in one byte, the first in the lowest bits."""
    per_byte = 8 // bits
    stretched = q.reshape(-1, per_byte, span, q.shape[1])
    packed = stretched[:, 0].copy()
    for i in range(1, per_byte):
        packed |= stretched[:, i] << np.uint8(bits * i)
    return packed.reshape(-1, q.shape[1])


def _fifth_bits(q: Bytes) -> Bytes:
    return np.packbits(q >> FOUR, axis=0, bitorder="little")


def _q4_0(codes: Codes, scales: Scales) -> list[Bytes]:
    return [_half(scales.d), _nibbles(_unsigned(codes, 8), 32)]


def _q4_1(codes: Codes, scales: Scales) -> list[Bytes]:
    return [_half(scales.d), _half(scales.m), _nibbles(_unsigned(codes, 0), 32)]


def _q5_0(codes: Codes, scales: Scales) -> list[Bytes]:
    q = _unsigned(codes, 16)
    return [_half(scales.d), _fifth_bits(q), _nibbles(q, 32)]


def _q5_1(codes: Codes, scales: Scales) -> list[Bytes]:
    q = _unsigned(codes, 0)
    return [_half(scales.d), _half(scales.m), _fifth_bits(q), _nibbles(q, 32)]


def _q8_0(codes: Codes, scales: Scales) -> list[Bytes]:
    return [_half(scales.d), codes.astype(np.int8).view(np.uint8)]


def _iq4_nl(codes: Codes, scales: Scales) -> list[Bytes]:
    return [_half(scales.d), _nibbles(_level_index(codes), 32)]


def _iq4_xs(codes: Codes, scales: Scales) -> list[Bytes]:
    assert scales.sub_d is not None
    sub = _unsigned(scales.sub_d, 32)
    high = _planes(sub >> FOUR, 1, 2)
    low = (sub[0::2] & LOW) | (sub[1::2] & LOW) << FOUR
    return [_half(scales.d), high, low, _nibbles(_level_index(codes), 32)]


def _level_index(codes: Codes) -> Bytes:
    index = np.zeros(256, dtype=np.uint8)
    index[NL_LEVELS + 128] = np.arange(16)
    return index[codes + 128]


def _q2_k(codes: Codes, scales: Scales) -> list[Bytes]:
    assert scales.sub_d is not None
    assert scales.sub_m is not None
    sub = (scales.sub_d | scales.sub_m << 4).astype(np.uint8)
    return [sub, _planes(_unsigned(codes, 0), 32, 2), _half(scales.d), _half(scales.m)]


def _q3_k(codes: Codes, scales: Scales) -> list[Bytes]:
    assert scales.sub_d is not None
    q = _unsigned(codes, 4)
    sub = _unsigned(scales.sub_d, 32)
    low = (sub[:8] & LOW) | (sub[8:] & LOW) << FOUR
    high = _planes(sub >> FOUR, 4, 2)
    return [_planes(q >> TWO, 32, 1), _planes(q & np.uint8(3), 32, 2), low, high, _half(scales.d)]


def _six_bit_pairs(scales: Scales) -> Bytes:
    """Eight scales and eight offsets of 6 bits in 12 bytes."""
    assert scales.sub_d is not None
    assert scales.sub_m is not None
    sub, low = scales.sub_d.astype(np.uint8), scales.sub_m.astype(np.uint8)
    return np.concatenate(
        [
            sub[:4] | (sub[4:] >> FOUR) << SIX,
            low[:4] | (low[4:] >> FOUR) << SIX,
            (sub[4:] & LOW) | (low[4:] & LOW) << FOUR,
        ]
    )


def _q4_k(codes: Codes, scales: Scales) -> list[Bytes]:
    return [_half(scales.d), _half(scales.m), _six_bit_pairs(scales), _nibbles(_unsigned(codes, 0), 64)]


def _q5_k(codes: Codes, scales: Scales) -> list[Bytes]:
    q = _unsigned(codes, 0)
    return [
        _half(scales.d),
        _half(scales.m),
        _six_bit_pairs(scales),
        _planes(q >> FOUR, 32, 1),
        _nibbles(q, 64),
    ]


def _q6_k(codes: Codes, scales: Scales) -> list[Bytes]:
    assert scales.sub_d is not None
    q = _unsigned(codes, 32)
    sub = scales.sub_d.astype(np.int8).view(np.uint8)
    return [_nibbles(q, 128), _planes(q >> FOUR, 32, 2), sub, _half(scales.d)]


_PACKERS: dict[str, Any] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs,
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
}  # fmt: skip

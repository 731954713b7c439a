"""Scales of blocks that minimise the weighted squared error; everything in lanes, see `blocks`.

A few trial scales per block are tried; for the codes that each gives, the best scale (and offset) follows in closed
form, and the one with the smallest error is kept. ggml's own quantizers take the largest weight of a block instead
(Q4_0, Q4_1, Q5_0, Q5_1, Q8_0) or search less.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from edgellm.convert.rounding.blocks import NL_LEVELS, Scales
from edgellm.native.ggml import Floats

MAX_HALF = 65504.0
TINY = 1e-30
N_REFINED = 2  # rounds more, from the codes that the best pair so far gives
Half = npt.NDArray[np.float16]


@dataclasses.dataclass(frozen=True)
class Format:
    """How one type rounds.

    Attributes:
        low, high: range of the codes.
        block: weights in a block;  sub_block: weights that share a scale.
        levels: True where codes are the uneven levels of IQ4.
        has_offset: value = scale * code + offset.
        sub_low, sub_high: range of stored sub-block scales; both 0 where a block has one scale.
        trials: codes that a block's largest weight is tried at (with an offset: its largest distance from the
            smallest); beyond the range it is clipped.
    """

    name: str
    low: int
    high: int
    block: int
    sub_block: int
    trials: tuple[float, ...]
    levels: bool = False
    has_offset: bool = False
    sub_low: int = 0
    sub_high: int = 0

    @property
    def largest(self) -> float:
        """The largest weight that fits without the block's scale passing what a half holds."""
        return MAX_HALF * max(self.high, 1) * max(self.sub_high, 1) / 2

    def fit(self, x: Floats, importance: Floats) -> Scales:
        """Scales for weights x (block, n) with importance (block, 1 or n)."""
        if self.has_offset:
            return _fit_pairs(self, x, importance) if self.sub_high else _fit_affine(self, x, importance)
        return _fit_sub_scales(self, x, importance) if self.sub_high else _fit_single(self, x, importance)

    def nearest(self, x: Floats, scale: Floats, offset: Floats | None) -> Floats:
        """Codes nearest to x as floats; x (..., n), scale and offset broadcast against it."""
        return self.round((x if offset is None else x - offset) * inverse_of(scale))

    def round(self, y: Floats) -> Floats:
        """Codes nearest to y, which is changed; the result may be y itself."""
        if self.levels:
            np.clip(y, -127, 127, out=y)
            y *= 2
            np.floor(y, out=y)
            y += 256
            levels: Floats = _NEAREST_LEVEL[y.astype(np.int16)]
            return levels
        np.rint(y, out=y)
        np.maximum(y, self.low, out=y)
        np.minimum(y, self.high, out=y)
        return y


def inverse_of(scale: Floats) -> Floats:
    """1 / scale, and 0 where the scale is 0."""
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(scale == 0, np.float32(0), np.float32(1) / scale)


def _both_ways(low: int, high: int, *beyond: float) -> tuple[float, ...]:
    return (*(low - step for step in beyond), *(high + step for step in beyond))


_COARSE = (-0.6, -0.2, 0.2, 0.6, 1.0, 1.6, 2.2)
_FINE = (-0.6, -0.1, 0.4, 0.9, 1.5)
_LEVELS = (-145, -136, -127, -118, -109, -100, 96, 104, 113, 122, 131)
_OFFSET_4 = (14.1, 14.5, 14.85, 15.2, 15.6, 16.0)
_OFFSET_5 = (30.1, 30.6, 31.1, 31.6, 32.2)
FORMATS = {
    kind.name: kind
    for kind in (
        Format("Q4_0", -8, 7, 32, 32, _both_ways(-8, 7, *_COARSE)),
        Format("Q4_1", 0, 15, 32, 32, _OFFSET_4, has_offset=True),
        Format("Q5_0", -16, 15, 32, 32, _both_ways(-16, 15, *_FINE)),
        Format("Q5_1", 0, 31, 32, 32, _OFFSET_5, has_offset=True),
        Format("Q8_0", -127, 127, 32, 32, (-127.6, -127.2, -126.7, -126.2, -125.6)),
        Format("IQ4_NL", -127, 113, 32, 32, _LEVELS, levels=True),
        Format("IQ4_XS", -127, 113, 256, 32, _LEVELS, levels=True, sub_low=-32, sub_high=31),
        Format("Q2_K", 0, 3, 256, 16, (2.3, 2.6, 2.85, 3.1, 3.35, 3.6), has_offset=True, sub_high=15),
        Format("Q3_K", -4, 3, 256, 16, _both_ways(-4, 3, *_COARSE[:6]), sub_low=-32, sub_high=31),
        Format("Q4_K", 0, 15, 256, 32, _OFFSET_4, has_offset=True, sub_high=63),
        Format("Q5_K", 0, 31, 256, 32, _OFFSET_5, has_offset=True, sub_high=63),
        Format("Q6_K", -32, 31, 256, 16, _both_ways(-32, 31, *_FINE), sub_low=-128, sub_high=127),
    )
}

_HALVES = np.arange(-256, 258) / 2
_NEAREST_LEVEL = NL_LEVELS[np.abs(_HALVES[:, None] + 0.25 - NL_LEVELS).argmin(axis=1)].astype(np.float32)


def best_scale(kind: Format, x: Floats, importance: Floats) -> Floats:
    """(n,) scales for x (sub_block, n) without offset; 0 where a block is all zero."""
    n = x.shape[1]
    peak = _at_least(np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0])
    best = np.zeros(n, dtype=np.float32)
    best_gain = np.full(n, -1, dtype=np.float32)
    weighted = x * importance
    for trial in kind.trials:
        q = kind.round(x * (np.float32(trial) / peak))
        scale, gain = _least_squares(q, weighted, importance)
        better = gain > best_gain
        best = np.where(better, scale, best)
        best_gain = np.where(better, gain, best_gain)
    scale, gain = _least_squares(kind.nearest(x, best, None), weighted, importance)
    return np.where(gain >= best_gain, scale, best)


def _at_least(values: Floats) -> Floats:
    """Values that one can divide by: those next to 0 become 1, and what they divide is rounded to 0."""
    return np.where(np.abs(values) < TINY, np.float32(1), values)


def _least_squares(q: Floats, weighted: Floats, importance: Floats) -> tuple[Floats, Floats]:
    """Best scale for codes q, and how much squared error it takes away."""
    qx = np.einsum("ij,ij->j", q, weighted)
    q *= q
    q *= importance
    qq = q.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = qx / qq
    good = np.isfinite(scale)
    return np.where(good, scale, 0).astype(np.float32), np.where(good, scale * qx, 0).astype(np.float32)


def best_pair(kind: Format, x: Floats, importance: Floats, *, below_zero: bool) -> tuple[Floats, Floats]:
    """(n,) scales and offsets for x (sub_block, n); `below_zero`: the offset may not be positive."""
    low, high = x.min(axis=0), x.max(axis=0)
    if below_zero:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    shifted = x - low
    weighted = x * importance
    sum_w = np.broadcast_to(importance, x.shape).sum(axis=0)
    sum_x = weighted.sum(axis=0)
    scale = np.zeros_like(low)
    offset = sum_x / sum_w
    if below_zero:
        offset = np.minimum(offset, 0)
    best_gain = offset * (2 * sum_x - offset * sum_w)
    reach = _at_least(high - low)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        for trial in (*kind.trials, *[None] * N_REFINED):
            near = shifted * (np.float32(trial) / reach) if trial else None
            q = kind.nearest(x, scale, offset) if near is None else kind.round(near)
            scale, offset, best_gain = _better_pair(
                q, weighted, importance, sum_w, sum_x, below_zero, scale, offset, best_gain
            )
    return scale, offset


def _better_pair(
    q: Floats, weighted: Floats, importance: Floats, sum_w: Floats, sum_x: Floats, below_zero: bool,
    scale: Floats, offset: Floats, best_gain: Floats,
) -> tuple[Floats, Floats, Floats]:  # fmt: skip
    """The pair that is best for codes q, where it beats the pair so far."""
    qx = np.einsum("ij,ij->j", q, weighted)
    qw = q * importance
    sum_q = qw.sum(axis=0)
    qq = np.einsum("ij,ij->j", q, qw)
    determinant = sum_w * qq - sum_q * sum_q
    new_scale = (sum_w * qx - sum_x * sum_q) / determinant
    new_offset = (qq * sum_x - sum_q * qx) / determinant
    if below_zero:
        alone = qx / qq
        positive = new_offset > 0
        new_scale = np.where(positive, alone, new_scale)
        new_offset = np.where(positive, 0, new_offset)
    gain = (
        2 * (new_scale * qx + new_offset * sum_x)
        - new_scale * new_scale * qq
        - 2 * new_scale * new_offset * sum_q
        - new_offset * new_offset * sum_w
    )
    better = (gain > best_gain) & (new_scale > 0)
    return (
        np.where(better, new_scale, scale),
        np.where(better, new_offset, offset),
        np.where(better, gain, best_gain),
    )


def _to_half(values: Floats) -> Half:
    return np.clip(values, -MAX_HALF, MAX_HALF).astype(np.float16)


def _fit_single(kind: Format, x: Floats, importance: Floats) -> Scales:
    d = _to_half(best_scale(kind, x, importance))
    return Scales(d.astype(np.float32)[None], None, d)


def _fit_affine(kind: Format, x: Floats, importance: Floats) -> Scales:
    scale, offset = best_pair(kind, x, importance, below_zero=False)
    d = _to_half(scale)
    wide = d.astype(np.float32)
    m = _to_half(_best_offset(kind, x, importance, wide, offset))
    return Scales(wide[None], m.astype(np.float32)[None], d, m)


def _best_offset(kind: Format, x: Floats, importance: Floats, scale: Floats, offset: Floats) -> Floats:
    """The best offset for a given scale and the codes that an offset near it gives."""
    rest = x - kind.nearest(x, scale, offset) * scale
    rest *= importance
    best: Floats = rest.sum(axis=0) / np.broadcast_to(importance, x.shape).sum(axis=0)
    return best


def _sub_blocks(kind: Format, x: Floats, importance: Floats) -> tuple[Floats, Floats]:
    """(sub_block, n_sub * n) views side by side, and the importance likewise."""
    n_sub, n = kind.block // kind.sub_block, x.shape[1]

    def aside(values: Floats) -> Floats:
        wide = np.broadcast_to(values, x.shape).reshape(n_sub, kind.sub_block, n)
        return np.ascontiguousarray(wide.transpose(1, 0, 2)).reshape(kind.sub_block, n_sub * n)

    return aside(x), aside(importance)


def _fit_sub_scales(kind: Format, x: Floats, importance: Floats) -> Scales:
    n = x.shape[1]
    side, weights = _sub_blocks(kind, x, importance)
    scale = best_scale(kind, side, weights).reshape(-1, n)
    peak = np.take_along_axis(scale, np.abs(scale).argmax(axis=0)[None], axis=0)[0]
    d = _to_half(peak / np.float32(kind.sub_low))
    wide = d.astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        sub = np.rint(np.where(wide == 0, 0, scale / wide))
    sub = np.clip(sub, kind.sub_low, kind.sub_high)
    return Scales((wide * sub).astype(np.float32), None, d, sub_d=sub.astype(np.int16))


def _fit_pairs(kind: Format, x: Floats, importance: Floats) -> Scales:
    n = x.shape[1]
    side, weights = _sub_blocks(kind, x, importance)
    scale, offset = best_pair(kind, side, weights, below_zero=True)
    d, sub_d = _shared(scale.reshape(-1, n), kind.sub_high)
    effective = (d.astype(np.float32) * sub_d).astype(np.float32)
    offset = _best_offset(kind, side, weights, effective.reshape(-1), offset)
    m, sub_m = _shared(np.maximum(-offset, 0).reshape(-1, n), kind.sub_high)
    low = -(m.astype(np.float32) * sub_m)
    return Scales(effective, low.astype(np.float32), d, m, sub_d, sub_m)


def _shared(values: Floats, top: int) -> tuple[Half, npt.NDArray[np.int16]]:
    """Values >= 0 of the sub-blocks (n_sub, n) as one half per block times small integers."""
    d = _to_half(values.max(axis=0) / np.float32(top))
    wide = d.astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        sub = np.rint(np.where(wide == 0, 0, values / wide))
    return d, np.clip(sub, 0, top).astype(np.int16)

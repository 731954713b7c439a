"""ggml's search for the scale and the minimum of sub-blocks of 32 weights, over many of them side by side.

Every lane goes through the operations of make_qkx2_quants of ggml-quants.c (MIT) in their order, each rounded to
float32: sums run over axis 0, one row after the other. What comes out is bit for bit what C gives where no
multiplication is fused with an addition; `k_quants` makes sure of it. The arrays are few and stay in the cache of a
core: the time goes into reading and writing them.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from edgellm.native.ggml import Floats

Bools = npt.NDArray[np.bool_]
SUB_BLOCK = 32
_SIGN_BIT = np.int32(31)
# Within these nothing overflows, vanishes or leaves the range in which ggml's nearest_int rounds. What is smaller gets
# a scale of 0 from the rest of its block, what is larger overflows.
_LEAST_SPAN, _LARGEST, _MOST_SPANS_BELOW = np.float32(1e-12), np.float32(1e9), np.float32(1e5)
_SUM_OF_PRODUCTS = "ij,ij->j"


@dataclasses.dataclass(frozen=True)
class Trials:
    """Codes run from 0 to `n_max`; trial i divides the span of the weights into `first + step * i + n_max` steps."""

    n_max: int
    first: float
    step: float
    n_trials: int

    def steps(self) -> list[np.float32]:
        """Steps in the span, trial by trial, rounded as in C."""
        first, step, n_max = np.float32(self.first), np.float32(self.step), np.float32(self.n_max)
        return [first + step * np.float32(i) + n_max for i in range(self.n_trials)]


@dataclasses.dataclass(frozen=True)
class Found:
    """(n,) each: a weight is about `scale * code + minimum`. Where `is_beyond`, ggml may find something else."""

    scale: Floats
    minimum: Floats
    is_constant: Bools
    is_beyond: Bools


class Lanes:
    """Room for n sub-blocks, used again and again by one thread.

    Attributes:
        weights: (32, n) float32, to be filled: a sub-block in each column, finite.
        scratch: (32, n) float32, written by each search.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.weights, self._importance, self.scratch, self._product = _arrays(4, (SUB_BLOCK, n))
        self._smallest, self._largest, self._highest, self._row, self._better, self._zero, self._top = (
            _arrays(7, (n,))
        )
        # Rows: w, w, ll, xl, x, l: sums over a sub-block of what is multiplied.
        (self._sums,) = _arrays(1, (6, n))
        self._first, self._second, self._third = self._sums[:3], self._sums[2:5], self._sums[:2:-1]
        self._sum_ll, self._sum_xl, self._sum_x, self._sum_l = self._sums[2:]
        # Rows: minus the determinant; then scale, minimum and error, as of the best trial so far.
        (self._fit,) = _arrays(1, (4, n))
        self._solved, self._divided = self._fit[:3], self._fit[1:3]
        self._determinant, self._scale, self._minimum, self._error = self._fit
        self._best, self._other = _arrays(2, (3, n))
        self._best_scale, self._best_minimum, self._best_error = self._best
        self._fit_bits, self._best_bits, self._other_bits, self._better_bits = (
            each.view(np.int32) for each in (self._fit, self._best, self._other, self._better)
        )
        self._sign_bits, self._trial_bits = self._fit_bits[0], self._fit_bits[1:]

    def search(self, trials: Trials) -> Found:
        """The scales and minima with the least error, weighed by the size of the weights."""
        self._zero[...], self._top[...] = 0, trials.n_max
        self._weigh()
        is_constant, is_beyond = self._begin(trials.n_max)
        for steps in trials.steps():
            self._round(steps, clips_above=float(steps) * 1.000001 >= trials.n_max + 0.5)
            self._solve()
            self._keep_better()
            np.maximum(self._highest, self._best_minimum, out=self._highest)
        span = self._largest - self._highest
        is_beyond |= ~(span >= _LEAST_SPAN)
        is_beyond |= ~(self._smallest - self._highest >= -_MOST_SPANS_BELOW * span)
        return Found(
            self._best_scale.copy(), self._best_minimum.copy(), is_constant, is_beyond & ~is_constant
        )

    def _weigh(self) -> None:
        """Squared errors count more for large weights, as in quantize_row_q4_K_ref."""
        x, w, row = self.weights, self._importance, self._row
        np.multiply(x, x, out=self._product)
        np.add.reduce(self._product, axis=0, out=row)
        np.divide(row, np.float32(SUB_BLOCK), out=row)
        np.sqrt(row, out=row)
        np.abs(x, out=w)
        np.add(w, row, out=w)
        np.add.reduce(w, axis=0, out=self._sums[0])
        self._sums[1] = self._sums[0]
        np.einsum(_SUM_OF_PRODUCTS, w, x, out=self._sum_x)

    def _begin(self, n_max: int) -> tuple[Bools, Bools]:
        """Start with `n_max` steps in the span, which the trials have to beat; tell what is constant, or too large."""
        codes, scale, minimum = self.scratch, self._best_scale, self._best_minimum
        np.minimum.reduce(self.weights, axis=0, out=self._smallest)
        np.maximum.reduce(self.weights, axis=0, out=self._largest)
        is_beyond = (self._smallest < -_LARGEST) | (self._largest > _LARGEST)
        np.minimum(self._smallest, self._zero, out=minimum)
        np.copyto(self._highest, minimum)
        is_constant = self._largest == minimum
        # All codes are 0 then, with a determinant of 0, and no trial is better.
        self._largest[is_constant] = 1
        per_step = np.float32(n_max) / (self._largest - minimum)
        np.divide(np.float32(1), per_step, out=scale)
        scale[is_constant] = 0
        np.subtract(self.weights, minimum, out=codes)
        np.multiply(codes, per_step, out=codes)
        np.rint(codes, out=codes)
        self._square_error(scale, minimum, self._best_error)
        return is_constant, is_beyond

    def _round(self, steps: np.float32, *, clips_above: bool) -> None:
        """Codes of a trial, from the span above the best minimum so far."""
        codes, row, minimum = self.scratch, self._row, self._best_minimum
        np.subtract(self._largest, minimum, out=row)
        np.divide(steps, row, out=row)
        np.subtract(self.weights, minimum, out=codes)
        np.multiply(codes, row, out=codes)
        np.rint(codes, out=codes)
        # Rows of one value: numpy has no fast loop for a scalar here.
        np.maximum(codes, self._zero, out=codes)
        if clips_above:
            np.minimum(codes, self._top, out=codes)

    def _solve(self) -> None:
        """Scale and minimum by least squares for these codes, and their error."""
        codes, product, minimum = self.scratch, self._product, self._minimum
        np.multiply(self._importance, codes, out=product)
        np.add.reduce(product, axis=0, out=self._sum_l)
        np.einsum(_SUM_OF_PRODUCTS, product, codes, out=self._sum_ll)
        np.einsum(_SUM_OF_PRODUCTS, product, self.weights, out=self._sum_xl)
        # w ll - l l, w xl - x l and ll x - xl l, all with the other sign
        np.multiply(self._first, self._second, out=self._other)
        np.multiply(self._third, self._sum_l, out=self._solved)
        np.subtract(self._solved, self._other, out=self._solved)
        np.divide(self._divided, self._determinant, out=self._divided)
        if np.fmax.reduce(minimum) > 0:
            np.divide(self._sum_xl, self._sum_ll, out=self._scale, where=minimum > self._zero)
            np.minimum(minimum, self._zero, out=minimum)
        self._square_error(self._scale, minimum, self._error)

    def _square_error(self, scale: Floats, minimum: Floats, out: Floats) -> None:
        codes = self.scratch
        np.multiply(codes, scale, out=codes)
        np.add(codes, minimum, out=codes)
        np.subtract(codes, self.weights, out=codes)
        np.multiply(codes, codes, out=codes)
        np.einsum(_SUM_OF_PRODUCTS, self._importance, codes, out=out)

    def _keep_better(self) -> None:
        """Where the error is less than the best and the determinant above 0, by masks: branches are slow here.

        Bits of floats from 0 up, taken as integers, are in the order of the floats; errors are NaN only with a
        determinant of 0.
        """
        better, other = self._better_bits, self._other_bits
        np.subtract(self._trial_bits[2], self._best_bits[2], out=better)
        np.bitwise_and(better, self._sign_bits, out=better)
        np.right_shift(better, _SIGN_BIT, out=better)
        np.bitwise_xor(self._best_bits, self._trial_bits, out=other)
        np.bitwise_and(other, better, out=other)
        np.bitwise_xor(self._best_bits, other, out=self._best_bits)


def _arrays(count: int, shape: tuple[int, ...]) -> list[Floats]:
    """Float32 arrays that do not start at the same place of a page: reading one would wait for writing another."""
    n_bytes = 4 * int(np.prod(shape))
    each = n_bytes + 704
    room = np.empty(count * each + 64, dtype=np.uint8)
    start = -room.ctypes.data % 64
    starts = range(start, start + count * each, each)
    return [room[at : at + n_bytes].view(np.float32).reshape(shape) for at in starts]

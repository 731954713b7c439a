"""Rounding of our own: what we believe a block holds is what ggml's own dequantizers read from it."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.convert import rounding
from edgellm.convert.rounding import blocks
from edgellm.convert.rounding.scales import FORMATS
from edgellm.errors import BadInputError
from edgellm.formats import ggml_types
from edgellm.native import ggml

NAMES = sorted(FORMATS)
N_COLUMNS = 512
Floats = npt.NDArray[np.float32]


def normal_rows(n_rows: int = 64, n_columns: int = N_COLUMNS, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((n_rows, n_columns)).astype(np.float32) * np.float32(
        0.03
    )


@functools.cache
def second_moment(n: int = N_COLUMNS, seed: int = 1) -> npt.NDArray[np.float32]:
    """Of inputs that lie near a quarter of the dimensions, with a few large columns, as in real models."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((1024, n // 4)) @ rng.standard_normal((n // 4, n)) / 8
    inputs += 0.3 * rng.standard_normal((1024, n))
    inputs[:, rng.integers(0, n, 4)] *= 10
    return (inputs.T @ inputs / len(inputs)).astype(np.float32)


@functools.cache
def factor_of_moment() -> rounding.Feedback:
    return rounding.feedback(second_moment())


def decoded(packed: ggml.Bytes, name: str) -> Floats:
    ggml.check_rows(packed, name, name)
    return ggml.dequantize_rows(packed, name, N_COLUMNS)


def output_error(rows: Floats, name: str, packed: ggml.Bytes, h: npt.NDArray[np.float32]) -> float:
    lost = rows - decoded(packed, name)
    return float(np.einsum("ij,ij->", lost @ h, lost))


@pytest.mark.parametrize("name", NAMES)
def test_a_format_is_ggmls(name: str) -> None:
    kind, theirs = FORMATS[name], ggml_types.BY_NAME[name]
    assert kind.block == theirs.block
    packed = rounding.encode_plain(normal_rows(), name)
    assert packed.shape == (64, theirs.row_bytes(N_COLUMNS))
    assert packed.dtype == np.uint8


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    magnitude=st.integers(-9, 2),
    shape=st.sampled_from(["normal", "heavy", "few"]),
)
def test_ggml_reads_what_we_believe(name: str, seed: int, magnitude: int, shape: str) -> None:
    kind = FORMATS[name]
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((kind.block, 8)).astype(np.float32)
    if shape == "heavy":
        x = x**5
    if shape == "few":
        x[rng.random(x.shape) < 0.9] = 0
    x *= np.float32(10.0**magnitude)
    scales = kind.fit(x, rng.random((kind.block, 1), dtype=np.float32))
    each = kind.block // kind.sub_block
    aside = x.reshape(each, kind.sub_block, -1)
    offset = None if scales.offset is None else scales.offset[:, None]
    codes = kind.nearest(aside, scales.scale[:, None], offset)
    believed = codes * scales.scale[:, None] + (0 if offset is None else offset)
    packed = blocks.pack(name, codes.reshape(kind.block, -1).astype(np.int16), scales)
    ggml.check_rows(packed, name, name)
    read = ggml.dequantize_rows(packed, name, kind.block)
    assert np.array_equal(read, believed.reshape(kind.block, -1).T)


@pytest.mark.parametrize("name", NAMES)
def test_every_code_is_written_where_ggml_looks_for_it(name: str) -> None:
    """Random codes and scales, not only those that a search would choose."""
    kind = FORMATS[name]
    rng = np.random.default_rng(3)
    n, n_sub = 16, kind.block // kind.sub_block
    codes = rng.integers(kind.low, kind.high + 1, (kind.block, n)).astype(np.int16)
    if kind.levels:
        codes = blocks.NL_LEVELS[rng.integers(0, 16, (kind.block, n))]
    d, m = (rng.standard_normal(n).astype(np.float16) for _ in range(2))
    sub_d, sub_m = (
        rng.integers(kind.sub_low, kind.sub_high + 1, (n_sub, n)).astype(np.int16) for _ in range(2)
    )
    if not kind.sub_high:
        sub_d = np.ones_like(sub_d)
        sub_m = -sub_d
    scale = d.astype(np.float32) * sub_d
    offset = -(m.astype(np.float32) * sub_m) if kind.has_offset else None
    packed = blocks.pack(name, codes, blocks.Scales(scale, offset, d, m, sub_d, sub_m))
    read = ggml.dequantize_rows(packed, name, kind.block).T.reshape(n_sub, -1, n)
    believed = codes.reshape(n_sub, -1, n) * scale[:, None] + (0 if offset is None else offset[:, None])
    assert np.array_equal(read, believed)


@pytest.mark.parametrize("name", NAMES)
def test_scales_lose_no_more_than_ggmls(name: str) -> None:
    rows = normal_rows()
    even = np.ones(N_COLUMNS, dtype=np.float32)
    ours = np.square(rows - decoded(rounding.encode_plain(rows, name), name)).sum()
    searched = np.square(rows - decoded(ggml.quantize_rows(rows, name, even), name)).sum()
    assert ours < 1.03 * searched
    if name != "IQ4_XS":
        assert ours < 1.01 * np.square(rows - decoded(ggml.quantize_rows(rows, name), name)).sum()


@pytest.mark.parametrize("name", NAMES)
def test_importance_moves_the_error_to_columns_that_matter_less(name: str) -> None:
    rows = normal_rows()
    importance = np.where(np.arange(N_COLUMNS) % 4 == 0, np.float32(50), np.float32(1))
    plain, weighted = (
        np.square(rows - decoded(rounding.encode_plain(rows, name, w), name)).sum(axis=0)[::4].sum()
        for w in (None, importance)
    )
    assert weighted < plain


@pytest.mark.parametrize("name", NAMES)
def test_columns_that_are_never_used_may_weigh_nothing(name: str) -> None:
    rows = normal_rows(4)
    importance = np.where(np.arange(N_COLUMNS) < 256, np.float32(0), np.float32(3))
    for weights in (importance, np.zeros(N_COLUMNS, dtype=np.float32)):
        read = decoded(rounding.encode_plain(rows, name, weights), name)
        assert np.square(rows - read).sum() < 0.2 * np.square(rows).sum()


@pytest.mark.parametrize("name", NAMES)
def test_compensation_lessens_the_output_error(name: str) -> None:
    rows, h = normal_rows(), second_moment()
    plain = output_error(rows, name, rounding.encode_plain(rows, name), h)
    compensated = output_error(rows, name, rounding.encode_compensated(rows, name, factor_of_moment()), h)
    assert compensated < 0.5 * plain


@pytest.mark.parametrize("name", NAMES)
def test_without_correlation_there_is_nothing_to_compensate(name: str) -> None:
    rows = normal_rows()
    factor = rounding.feedback(np.eye(N_COLUMNS, dtype=np.float32))
    assert np.array_equal(rounding.encode_compensated(rows, name, factor), rounding.encode_plain(rows, name))


def test_the_factor_gives_back_the_matrix() -> None:
    h = second_moment()
    factor = rounding.feedback(h, damping=0.01)
    damped = h + np.eye(N_COLUMNS) * 0.01 * h.diagonal().mean()
    rebuilt = (factor.upper.astype(np.float64) * factor.weights) @ factor.upper.T
    wanted = damped[np.ix_(factor.order, factor.order)]
    assert np.allclose(rebuilt, wanted, atol=1e-5 * wanted.max())
    assert np.array_equal(np.tril(factor.upper, -1), np.zeros_like(factor.upper))
    assert sorted(factor.order) == list(range(N_COLUMNS))


def test_the_heaviest_block_is_rounded_first() -> None:
    h = np.eye(N_COLUMNS, dtype=np.float32)
    h[300, 300] = 100
    assert rounding.feedback(h).order[0] == 256


@pytest.mark.parametrize("h", [np.zeros((64, 64)), np.ones((64, 64)), -np.eye(64)])
def test_a_matrix_that_is_not_positive_definite_is_damped_until_it_is(h: npt.NDArray[np.float64]) -> None:
    factor = rounding.feedback(h.astype(np.float32), damping=1e-12)
    assert np.isfinite(factor.upper).all()
    assert (factor.weights > 0).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-12, -3e-8, 1e-5])
def test_constant_rows(name: str, value: float) -> None:
    rows = np.full((3, N_COLUMNS), value, dtype=np.float32)
    half_step = 3e-8 * FORMATS[name].high * max(FORMATS[name].sub_high, 1)  # of the smallest half
    nearest = decoded(rounding.encode_plain(rows, name), name)
    assert np.abs(nearest - rows).max() <= max(abs(value) / 8, half_step)
    compensated = decoded(rounding.encode_compensated(rows, name, factor_of_moment()), name)
    assert np.abs(compensated - rows).max() <= 8 * max(abs(value), half_step)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_values_that_no_block_holds_are_refused(name: str, value: float) -> None:
    rows = normal_rows(4)
    rows[2, 77] = value
    with pytest.raises(BadInputError, match=r"NaN or infinity|too large for"):
        rounding.encode_plain(rows, name)
    with pytest.raises(BadInputError, match=r"NaN or infinity|too large for"):
        rounding.encode_compensated(rows, name, factor_of_moment())


@pytest.mark.parametrize("name", NAMES)
def test_large_values_that_fit_are_kept(name: str) -> None:
    rows = normal_rows(4) * np.float32(1e6)
    read = decoded(rounding.encode_plain(rows, name), name)
    assert np.square(rows - read).sum() < 0.2 * np.square(rows).sum()


class Inputs:
    """Inputs known for some weights."""

    def __init__(self) -> None:
        self.owner = {
            "blk.0.attn_q.weight": "blk.0.attn_q.weight",
            "blk.0.attn_k.weight": "blk.0.attn_q.weight",
        }
        importance = np.random.default_rng(5).random((3, N_COLUMNS), dtype=np.float32)
        importance[1] = 0
        self.importance = {"blk.0.ffn_down_exps.weight": importance}
        self.reads: list[str] = []

    def feedback(self, weight: str) -> rounding.Feedback | None:
        self.reads.append(weight)
        return factor_of_moment() if weight in self.owner else None


SHAPES = {
    "blk.0.attn_q.weight": (64, N_COLUMNS), "blk.0.attn_k.weight": (64, N_COLUMNS),
    "blk.0.ffn_down_exps.weight": (3, 10, N_COLUMNS), "token_embd.weight": (64, N_COLUMNS),
}  # fmt: skip


def test_an_encoder_compensates_where_inputs_are_known_and_reads_each_factor_once() -> None:
    inputs = Inputs()
    encode = rounding.make_encoder(inputs, SHAPES)
    rows = normal_rows()
    packed = encode("blk.0.attn_q.weight", 0, rows, "Q4_0")
    wanted = rounding.encode_compensated(rows, "Q4_0", factor_of_moment())
    assert np.array_equal(packed, wanted)
    encode("blk.0.attn_k.weight", 0, rows, "Q5_1")
    assert len(inputs.reads) == 1
    assert np.array_equal(encode("token_embd.weight", 0, rows, "Q4_0"), ggml.quantize_rows(rows, "Q4_0"))
    assert np.array_equal(encode("blk.0.attn_q.weight", 0, rows, "F16"), ggml.quantize_rows(rows, "F16"))


def test_an_encoder_weighs_the_columns_of_each_expert() -> None:
    inputs = Inputs()
    encode = rounding.make_encoder(inputs, SHAPES)
    rows = normal_rows(30)
    name = "blk.0.ffn_down_exps.weight"
    whole = encode(name, 0, rows, "Q4_0")
    pieces = np.concatenate([encode(name, low, rows[low : low + 7], "Q4_0") for low in range(0, 30, 7)])
    assert np.array_equal(whole, pieces)
    weighted = ggml.quantize_rows(rows[20:], "Q4_0", inputs.importance[name][2])
    assert np.array_equal(whole[20:], weighted)
    assert np.array_equal(whole[10:20], ggml.quantize_rows(rows[10:20], "Q4_0"))

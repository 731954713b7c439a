"""Q4_K and Q5_K side by side: the bytes of ggml's own quantizer, whatever the weights are."""

from __future__ import annotations

from concurrent import futures

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.convert import k_quants
from edgellm.errors import BadInputError
from edgellm.native import ggml

NAMES = ("Q4_K", "Q5_K")
N_COLUMNS = 512
N_ROWS = 64
Floats = npt.NDArray[np.float32]
by_name = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def are_ours() -> None:
    """Without this, ggml would be compared with itself."""
    if not all(map(k_quants.has_ggml_bytes, NAMES)):
        pytest.skip("this library rounds in another way: its own quantizer is used")


def weights(seed: int = 0, scale: float = 0.02) -> Floats:
    return (np.random.default_rng(seed).standard_normal((N_ROWS, N_COLUMNS)) * scale).astype(np.float32)


def packed_alike(rows: Floats, name: str) -> bool:
    return np.array_equal(k_quants.quantize_rows(rows, name), ggml.quantize_rows(rows, name))


def few_values(rng: np.random.Generator, n_values: int) -> Floats:
    """Sub-blocks of few values, which many scales meet exactly: rounding alone chooses one."""
    n = N_ROWS * N_COLUMNS // 32
    values = rng.standard_normal((n_values, n, 1))
    rows: Floats = np.choose(rng.integers(0, n_values, (n, 32)), values).astype(np.float32)
    return rows.reshape(N_ROWS, N_COLUMNS)


@by_name
@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e-6, 1e-4, 0.02, 1.0, 1e4])
def test_normal_weights_of_every_size(name: str, scale: float) -> None:
    assert packed_alike(weights(1, scale), name)


@by_name
@pytest.mark.parametrize("n_values", [2, 3, 4, 8])
def test_weights_of_few_values(name: str, n_values: int) -> None:
    assert packed_alike(few_values(np.random.default_rng(n_values), n_values), name)


@by_name
def test_hard_blocks_among_usual_ones(name: str) -> None:
    rows = weights(2, 1.0)
    rows[0] = 0
    rows[1] = -0.0
    rows[2], rows[3] = 0.3, -0.3
    rows[4, :32] = 0
    rows[5, 32:64] *= 1e-6
    rows[6], rows[7] = np.abs(rows[6]), -np.abs(rows[7])
    rows[8] = -1000 + rows[8] * 1e-2
    rows[9] = 1e-45
    rows[10, ::2] = 1e-40
    rows[11, 5] = 60000
    rows[12, 7] = -60000
    rows[13] = np.round(rows[13] * 4)
    rows[14] = np.where(rows[14] > 2, rows[14], 0)
    rows[15, :40] = rows[15, 40]
    rows[16, 32:64] = -30000 + rows[16, 32:64] * 1e-2
    rows[17, :64] = 1e-20
    assert packed_alike(rows, name)


@st.composite
def hard_rows(draw: st.DrawFn) -> Floats:
    """Sub-blocks of drawn values among those of drawn scales."""
    rows = weights(draw(st.integers(0, 1000)), draw(st.sampled_from([1e-6, 1e-3, 1.0, 1e5])))
    special = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, 1e-38, -1e-7, 1e-3, 15.5, -100.0, 65504.0, 1e7])
    small = st.floats(-10, 10, width=32)
    for row in range(draw(st.integers(1, 3))):
        values = draw(st.lists(special | small, min_size=1, max_size=32))
        first = draw(st.integers(0, N_COLUMNS // 32 - 1))
        end = draw(st.integers(first + 1, N_COLUMNS // 32))
        rows[row, 32 * first : 32 * end] = np.resize(np.array(values, dtype=np.float32), 32 * (end - first))
    return rows


@by_name
@settings(max_examples=60, deadline=None)
@given(rows=hard_rows())
def test_any_weights(name: str, rows: Floats) -> None:
    try:
        theirs = ggml.quantize_rows(rows, name)
    except BadInputError:
        with pytest.raises(BadInputError):
            k_quants.quantize_rows(rows, name)
    else:
        assert np.array_equal(k_quants.quantize_rows(rows, name), theirs)


@by_name
@pytest.mark.parametrize("n_rows", [1, 31, 32, 33, 191, 193, 300])
def test_rows_are_independent_of_how_many_there_are(name: str, n_rows: int) -> None:
    rows = np.resize(weights(3), (300, N_COLUMNS))
    whole = k_quants.quantize_rows(rows, name)
    assert np.array_equal(k_quants.quantize_rows(rows[:n_rows], name), whole[:n_rows])


@by_name
def test_rows_need_not_lie_one_after_the_other(name: str) -> None:
    rows = weights(4)
    assert packed_alike(np.asfortranarray(rows), name)
    assert packed_alike(rows[::-1, :256], name)


@by_name
def test_threads_do_not_share_scratch(name: str) -> None:
    slabs = [weights(seed) for seed in range(8)]
    with futures.ThreadPoolExecutor(4) as pool:
        packed = list(pool.map(lambda rows: k_quants.quantize_rows(rows, name), slabs))
    for rows, ours in zip(slabs, packed, strict=True):
        assert np.array_equal(ours, ggml.quantize_rows(rows, name))


def test_the_state_of_numpy_is_left_as_it_was() -> None:
    before = np.getbufsize(), np.geterr()
    k_quants.quantize_rows(weights(), "Q4_K")
    assert (np.getbufsize(), np.geterr()) == before


@by_name
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(name: str, value: float) -> None:
    rows = weights()
    rows[3, 100] = value
    with pytest.raises(BadInputError, match="NaN or infinity"):
        k_quants.quantize_rows(rows, name)


@by_name
def test_what_overflows_is_refused_as_by_ggml(name: str) -> None:
    for value in (1e9, 3e38, -3e38):
        rows = weights()
        rows[3, 100] = value
        with pytest.raises(BadInputError, match="too large"):
            k_quants.quantize_rows(rows, name)
    with pytest.raises(ValueError, match="multiple"):
        k_quants.quantize_rows(np.zeros((N_ROWS, 500), np.float32), name)


@by_name
def test_blocks_without_surprises_are_packed_here(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = weights(5)
    theirs = ggml.quantize_rows(rows, name)
    monkeypatch.setattr(ggml, "quantize_rows", lambda *_: pytest.fail("ggml was asked"))
    assert np.array_equal(k_quants.quantize_rows(rows, name), theirs)


@by_name
def test_sub_blocks_of_very_different_sizes(name: str) -> None:
    """The small ones get a scale of 0; their codes are those of ggml's search, which it has to do again."""
    rng = np.random.default_rng(8)
    rows = np.resize(weights(8, 1.0), (400, N_COLUMNS))
    sizes = np.exp(2 * rng.standard_normal((400, N_COLUMNS // 32))).astype(np.float32)
    assert packed_alike(rows * np.repeat(sizes, 32, axis=1), name)


@by_name
def test_a_library_with_other_bytes_packs_everything_itself(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a compiler fuses multiplications with additions."""
    quantize = ggml.quantize_rows

    def other(rows: Floats, type_name: str) -> ggml.Bytes:
        packed = quantize(rows, type_name)
        packed[-1, -1] ^= 1
        return packed

    monkeypatch.setattr(ggml, "quantize_rows", other)
    k_quants.has_ggml_bytes.cache_clear()
    try:
        rows = weights(6)
        assert not k_quants.has_ggml_bytes(name)
        assert np.array_equal(k_quants.quantize_rows(rows, name), other(rows, name))
    finally:
        k_quants.has_ggml_bytes.cache_clear()


def test_other_types_are_left_to_ggml() -> None:
    for name in ("Q6_K", "Q8_0", "F16"):
        assert packed_alike(weights(7), name)


def test_the_check_tells_fused_from_rounded_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums of products as a fused multiplication gives them, by way of float64, are not ggml's here."""

    def fused(_: str, a: Floats, b: Floats, *, out: Floats) -> None:
        total = np.zeros(a.shape[1], dtype=np.float32)
        for x, y in zip(a, b, strict=True):
            total = (x.astype(np.float64) * y + total).astype(np.float32)
        out[...] = total

    k_quants.has_ggml_bytes.cache_clear()
    try:
        with monkeypatch.context() as patched:
            patched.setattr(np, "einsum", fused)
            assert not k_quants.has_ggml_bytes("Q4_K")
            k_quants.has_ggml_bytes.cache_clear()
            assert not k_quants.has_ggml_bytes("Q5_K")
    finally:
        k_quants.has_ggml_bytes.cache_clear()

"""ggml's quantizers through our binding: bit for bit what the numpy code of the package `gguf` computes."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from edgellm.errors import BadInputError, UnsupportedError
from edgellm.formats import ggml_types
from edgellm.native import ggml

N_COLUMNS = 512
NUMPY_QUANTIZES = ("BF16", "F16", "F32", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4")
NUMPY_DEQUANTIZES = (
    "BF16", "F16", "F32", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0",
    "MXFP4", "NVFP4", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M", "IQ4_NL", "IQ4_XS",
)  # fmt: skip
# Their lattices take up to 26 seconds to build: written in tests/convert/test_imatrix_against_llama_cpp.py, only read here.
SLOW_TO_WRITE = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_S", "IQ1_M")
WRITABLE = tuple(name for name in (*NUMPY_DEQUANTIZES, "Q1_0") if name not in SLOW_TO_WRITE)
NEED_IMPORTANCE = ("IQ2_XXS", "IQ2_XS", "IQ1_S")
NOT_WRITABLE = ("Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64")


def rows_of_weights(n_rows: int = 6) -> npt.NDArray[np.float32]:
    """Rows as models have them: small and large scales, zeros, a row of one value."""
    rng = np.random.default_rng(11)
    rows = rng.standard_normal((n_rows, N_COLUMNS), dtype=np.float32)
    rows *= np.array([1.0, 0.02, 30.0, 1e-4, 1.0, 1.0], dtype=np.float32)[:n_rows, np.newaxis]
    rows[4] = 0.25
    rows[5, ::3] = 0
    return rows


def quantized(type_name: str) -> ggml.Bytes:
    return ggml.quantize_rows(rows_of_weights(), type_name, np.ones(N_COLUMNS, dtype=np.float32))


def random_blocks(type_name: str) -> ggml.Bytes:
    """Rows of random bytes: every block is valid in these types, but for scales that are no numbers."""
    row_bytes = ggml_types.BY_NAME[type_name].row_bytes(N_COLUMNS)
    packed = np.random.default_rng(5).integers(0, 256, (200, row_bytes), dtype=np.uint8)
    kept = packed[np.isfinite(ggml.dequantize_rows(packed, type_name, N_COLUMNS)).all(axis=1)][:6]
    assert len(kept) == 6
    return kept


def number_of(type_name: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[type_name]


@pytest.mark.parametrize("type_name", NUMPY_QUANTIZES)
def test_quantizing_equals_numpy_bit_for_bit(type_name: str) -> None:
    rows = rows_of_weights()
    theirs: Any = gguf.quantize(rows, number_of(type_name))
    assert ggml.quantize_rows(rows, type_name).tobytes() == theirs.tobytes()


@pytest.mark.parametrize("type_name", NUMPY_DEQUANTIZES)
def test_dequantizing_equals_numpy_bit_for_bit(type_name: str) -> None:
    packed = random_blocks(type_name) if type_name in SLOW_TO_WRITE else quantized(type_name)
    theirs: Any = gguf.dequantize(packed, number_of(type_name))
    ours = ggml.dequantize_rows(packed, type_name, N_COLUMNS)
    assert ours.shape == (6, N_COLUMNS)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, theirs.reshape(ours.shape))


@pytest.mark.parametrize("type_name", WRITABLE)
def test_every_type_has_the_size_of_the_table_and_is_near_the_weights(type_name: str) -> None:
    rows, packed = rows_of_weights()[:2], quantized(type_name)[:2]
    assert ggml.can_quantize(type_name)
    assert packed.shape[1] == ggml_types.BY_NAME[type_name].row_bytes(N_COLUMNS)
    back = ggml.dequantize_rows(packed, type_name, N_COLUMNS)
    correlation = np.corrcoef(rows.ravel(), back.ravel())[0, 1]
    assert correlation > 0.6, correlation


@pytest.mark.parametrize("type_name", WRITABLE)
def test_rows_are_independent(type_name: str) -> None:
    rows, importance = rows_of_weights(), np.ones(N_COLUMNS, dtype=np.float32)
    one_by_one = [ggml.quantize_rows(rows[i : i + 1], type_name, importance) for i in range(len(rows))]
    assert np.concatenate(one_by_one).tobytes() == quantized(type_name).tobytes()


@pytest.mark.parametrize("type_name", NEED_IMPORTANCE)
def test_types_that_need_an_importance_matrix_are_refused_without_one(type_name: str) -> None:
    """In a child, since llama.cpp itself aborts the process here."""
    assert ggml.requires_importance(type_name)
    code = (
        "import numpy as np\nfrom edgellm.errors import UnsupportedError\nfrom edgellm.native import ggml\n"
        f"try:\n    ggml.quantize_rows(np.ones((1, 256), np.float32), {type_name!r})\n"
        "except UnsupportedError as err:\n    print(err)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{type_name} cannot be quantized without an importance matrix" in done.stdout


def test_only_those_types_need_one() -> None:
    names = [name for name in (*WRITABLE, *SLOW_TO_WRITE) if ggml.requires_importance(name)]
    assert sorted(names) == sorted(NEED_IMPORTANCE)


@pytest.mark.parametrize("type_name", NOT_WRITABLE)
def test_types_without_a_quantizer_are_refused(type_name: str) -> None:
    assert not ggml.can_quantize(type_name)
    with pytest.raises(UnsupportedError, match=type_name):
        ggml.quantize_rows(rows_of_weights(), type_name)


@pytest.mark.parametrize("type_name", ["Q8_1", "I32"])
def test_types_without_a_dequantizer_are_refused(type_name: str) -> None:
    packed = np.zeros((1, ggml_types.BY_NAME[type_name].row_bytes(256)), dtype=np.uint8)
    with pytest.raises(UnsupportedError, match=type_name):
        ggml.dequantize_rows(packed, type_name, 256)


def test_importance_changes_the_bytes_and_must_have_one_weight_per_column() -> None:
    rows = rows_of_weights()
    importance = np.linspace(0.01, 100, N_COLUMNS, dtype=np.float32)
    assert (
        ggml.quantize_rows(rows, "Q4_K", importance).tobytes() != ggml.quantize_rows(rows, "Q4_K").tobytes()
    )
    with pytest.raises(ValueError, match="512 columns"):
        ggml.quantize_rows(rows, "Q4_K", importance[:-1])


def test_a_row_that_is_no_multiple_of_the_block_is_refused() -> None:
    with pytest.raises(ValueError, match="not a multiple"):
        ggml.quantize_rows(np.ones((1, 100), dtype=np.float32), "Q4_0")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16", "Q8_0", "Q4_K", "IQ4_NL"])
def test_nan_and_infinity_are_refused_in_every_type(type_name: str, value: float) -> None:
    rows = rows_of_weights()
    rows[3, 7] = value
    message = f"1 of {rows.size} weights are NaN or infinity, the first in row 3, column 7 of these"
    with pytest.raises(BadInputError, match=message):
        ggml.quantize_rows(rows, type_name)


def test_both_infinities_together_are_refused_without_a_warning() -> None:
    rows = rows_of_weights()
    rows[0, :2] = np.inf, -np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BadInputError, match="NaN or infinity"):
            ggml.quantize_rows(rows, "Q8_0")


def test_large_finite_weights_are_kept_where_the_type_can_and_refused_where_it_cannot() -> None:
    rows = np.full((2, 256), 3e38, dtype=np.float32)
    for type_name in ("F32", "BF16"):
        back = ggml.dequantize_rows(ggml.quantize_rows(rows, type_name), type_name, 256)
        np.testing.assert_allclose(back, rows, rtol=0.004)
    with pytest.raises(BadInputError, match="65504"):
        ggml.quantize_rows(rows, "F16")
    with pytest.raises(BadInputError, match="too large for Q4_0"):
        ggml.quantize_rows(rows, "Q4_0")
    with pytest.raises(BadInputError, match="BF16"):
        ggml.quantize_rows(np.full((1, 32), np.finfo(np.float32).max, dtype=np.float32), "BF16")


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q6_K"])
def test_packed_rows_are_checked(type_name: str) -> None:
    packed = quantized(type_name)
    ggml.check_rows(packed, type_name, "some.weight")
    spoiled = packed.copy()
    spoiled[:, :] = 0xFF
    with pytest.raises(BadInputError, match=r"some\.weight"):
        ggml.check_rows(spoiled, type_name, "some.weight")


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16"])
def test_what_is_not_finite_in_packed_rows_is_counted(type_name: str) -> None:
    packed = quantized(type_name).copy()
    packed[1:, -4:] = 0xFF
    message = r"blk\.0, rows 0 to 9: \d+ of \d+ weights are NaN or infinity, the first in row 1, column \d+"
    with pytest.raises(BadInputError, match=message):
        ggml.check_rows(packed, type_name, "blk.0, rows 0 to 9")


@pytest.mark.parametrize(
    "type_name", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q2_K", "Q4_K", "Q6_K", "IQ4_NL"]
)
def test_rows_of_zeros_are_seen_in_every_type(type_name: str) -> None:
    rows = np.zeros((3, 256), dtype=np.float32)
    assert ggml.all_zero(ggml.quantize_rows(rows, type_name), type_name, 256)
    rows[2, 255] = 1.0
    assert not ggml.all_zero(ggml.quantize_rows(rows, type_name), type_name, 256)


def test_zeros_of_a_type_that_cannot_be_read_are_bytes() -> None:
    packed = np.zeros((2, ggml_types.BY_NAME["Q8_1"].row_bytes(256)), dtype=np.uint8)
    assert ggml.all_zero(packed, "Q8_1", 256)
    packed[1, 3] = 1
    assert not ggml.all_zero(packed, "Q8_1", 256)

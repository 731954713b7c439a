"""The table of tensor types agrees with the `gguf` package."""

from __future__ import annotations

import gguf
import pytest

from edgellm.formats import ggml_types

# gguf counts Q8_1's two scales as float32; ggml-common.h has them as half precision: 2 + 2 + 32.
NATIVE_BLOCK_BYTES = {"Q8_1": 36}


@pytest.mark.parametrize("kind", ggml_types.BY_NAME.values(), ids=lambda kind: kind.name)
def test_type_agrees_with_gguf(kind: ggml_types.GGMLType) -> None:
    number = gguf.GGMLQuantizationType[kind.name]
    block, block_bytes = gguf.GGML_QUANT_SIZES[number]
    assert kind.number == number.value
    assert kind.block == block
    assert kind.block_bytes == NATIVE_BLOCK_BYTES.get(kind.name, block_bytes)


def test_numbers_are_unique() -> None:
    assert len(ggml_types.BY_NUMBER) == len(ggml_types.BY_NAME)


def test_bits_per_weight_and_rows() -> None:
    q4_k = ggml_types.BY_NAME["Q4_K"]
    assert q4_k.bpw == 4.5
    assert q4_k.quantized
    assert q4_k.row_bytes(512) == 288
    assert not ggml_types.BY_NAME["BF16"].quantized
    with pytest.raises(ValueError, match="row of 257 weights is not a multiple of Q4_K's block of 256"):
        q4_k.row_bytes(257)

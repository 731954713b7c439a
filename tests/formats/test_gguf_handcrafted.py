"""Every case of llama.cpp's tests/test-gguf.cpp (as in llama-cpp-python 0.3.36), with its names.

Three cases differ here, on purpose: a tensor without elements is refused; so is a file whose tensors are
described but not there (ggml reads such a header when it is not asked for the data); and the padding after
the last tensor may be missing (llama.cpp loads such a model), so DATA_NOT_ENOUGH_DATA takes away more.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from edgellm.errors import BadInputError
from edgellm.formats.ggml_types import BY_NAME, BY_NUMBER, GGMLType
from edgellm.formats.gguf import read_gguf
from tests.support.gguf_files import TYPES, gguf_bytes, key, string

WriteBytes = Callable[[bytes], Path]
Config = tuple[GGMLType, list[int]]

REFUSED = [
    "HEADER_BAD_MAGIC", "HEADER_BAD_VERSION_0", "HEADER_BAD_VERSION_1", "HEADER_BAD_VERSION_FUTURE",
    "HEADER_BAD_N_TENSORS", "HEADER_BAD_N_KV",
    "KV_BAD_KEY_SIZE", "KV_EMPTY_KEY", "KV_BAD_TYPE", "KV_DUPLICATE_KEY", "KV_BAD_ALIGN",
    "KV_WRONG_TYPE_ALIGN",
    "TENSORS_BAD_NAME_SIZE", "TENSORS_BAD_N_DIMS", "TENSORS_BAD_SHAPE", "TENSORS_ZERO_DIM",
    "TENSORS_NE_TOO_BIG", "TENSORS_NBYTES_TOO_BIG", "TENSORS_NBYTES_PAD_WRAP", "TENSORS_BAD_TYPE",
    "TENSORS_BAD_OFFSET",
    "TENSORS_DUPLICATE_NAME", "TENSORS_BAD_ALIGN", "TENSORS_INCONSISTENT_ALIGN", "TENSORS_SUCCESS",
    "TENSORS_CUSTOM_ALIGN",
    "DATA_NOT_ENOUGH_DATA", "DATA_BAD_ALIGN", "DATA_INCONSISTENT_ALIGN", "DATA_MEM_SIZE_OVERFLOW",
]  # fmt: skip
READ = ["HEADER_EMPTY", "KV_SUCCESS", "DATA_SUCCESS", "DATA_CUSTOM_ALIGN"]


def handcrafted(case: str, seed: int) -> bytes:
    """The bytes that get_handcrafted_file writes for a case."""
    rng = random.Random(seed)
    stage = case.partition("_")[0]
    version = {"HEADER_BAD_VERSION_0": 0, "HEADER_BAD_VERSION_1": 1, "HEADER_BAD_VERSION_FUTURE": 4}.get(
        case, 3
    )
    alignment = 32
    entries = kv_entries(case, rng) if stage != "HEADER" else []
    if case.endswith(("BAD_ALIGN", "WRONG_TYPE_ALIGN", "CUSTOM_ALIGN")):
        alignment = 1 if case.endswith("CUSTOM_ALIGN") else 13
        alignment_type = "INT32" if case == "KV_WRONG_TYPE_ALIGN" else "UINT32"
        entries.append(key("general.alignment", alignment_type, alignment))
    tensors, n_data = [], 0
    if stage in ("TENSORS", "DATA"):
        padding = 1 if case.endswith("INCONSISTENT_ALIGN") else alignment
        tensors, n_data = tensor_infos(case, tensor_configs(case, rng), padding)
    if case == "DATA_NOT_ENOUGH_DATA":
        n_data -= alignment
    return gguf_bytes(
        entries,
        tensors,
        bytes(n_data if stage == "DATA" and n_data < 1 << 30 else 32 * (stage == "DATA")),
        magic=b"FUGG" if case == "HEADER_BAD_MAGIC" else b"GGUF",
        version=version,
        n_keys=2**64 - 1 if case == "HEADER_BAD_N_KV" else None,
        n_tensors=2**64 - 1 if case == "HEADER_BAD_N_TENSORS" else None,
        alignment=alignment,
    )


def kv_entries(case: str, rng: random.Random) -> list[bytes]:
    entries = []
    for index in range(100):
        name = (
            "" if case == "KV_EMPTY_KEY" else f"my_key_{index // 2 if case == 'KV_DUPLICATE_KEY' else index}"
        )
        head = struct.pack("<Q", 2**64 - 1) + name.encode() if case == "KV_BAD_KEY_SIZE" else string(name)
        type_name = rng.choice(sorted(TYPES))
        raw = bytes(rng.randrange(1, 127) for _ in range(64))
        if case == "KV_BAD_TYPE":
            entries.append(head + struct.pack("<I", 13) + raw[:1])
        elif type_name == "STRING":
            entries.append(head + struct.pack("<I", 8) + string(raw[: rng.randrange(64)]))
        elif type_name == "ARRAY":
            element = rng.choice(sorted(set(TYPES) - {"ARRAY"}))
            if element == "STRING":
                items = [string(raw[: rng.randrange(5)]) for _ in range(rng.randrange(17))]
                values, count = b"".join(items), len(items)
            else:
                size = struct.calcsize(TYPES[element][1])
                count = rng.randrange(64) // size
                values = raw[: count * size]
            entries.append(head + struct.pack("<IIQ", 9, TYPES[element][0], count) + values)
        else:
            number, code = TYPES[type_name]
            entries.append(head + struct.pack("<I", number) + raw[: struct.calcsize(code)])
    return entries


def tensor_configs(case: str, rng: random.Random) -> list[Config]:
    if case == "DATA_MEM_SIZE_OVERFLOW":
        return [(BY_NAME["I8"], [0x7FFFFFFFFFFFFFC0])] * 2
    if case == "TENSORS_NBYTES_PAD_WRAP":
        return [(BY_NAME["F32"], [4, 1073741823, 1073741825])]
    configs = []
    for _ in range(100):
        kind = BY_NUMBER[rng.choice(sorted(BY_NUMBER))]
        shape = [rng.randint(1, 10) for _ in range(rng.randint(1, 4))]
        configs.append((kind, [shape[0] * kind.block, *shape[1:]]))
    return configs


def tensor_infos(case: str, configs: list[Config], alignment: int) -> tuple[list[bytes], int]:
    """Descriptions of the tensors, and the bytes of data that they describe."""
    infos, offset = [], 0
    for index, (config_kind, ne) in enumerate(configs):
        kind = BY_NAME["I64"] if case == "TENSORS_NBYTES_TOO_BIG" else config_kind
        name = "my_tensor" if case == "TENSORS_DUPLICATE_NAME" else f"my_tensor_{index}"
        if case == "TENSORS_BAD_NAME_SIZE":
            name += "_with_a_very_long_name_which_is_longer_than_what_is_allowed_for_ggml_tensors"
        shape = {
            "TENSORS_BAD_SHAPE": [-1] * len(ne),
            "TENSORS_ZERO_DIM": [ne[0], 0],
            "TENSORS_NE_TOO_BIG": [4 * (2**31 - 1)] * max(2, len(ne)),
            "TENSORS_NBYTES_TOO_BIG": [int(1.01 * (2**61) ** 0.5) + 1] * 2,
        }.get(case, ne)
        n_dims = 5 if case == "TENSORS_BAD_N_DIMS" else len(shape)
        number = 43 if case == "TENSORS_BAD_TYPE" else kind.number
        at = 2**64 - 1 if case == "TENSORS_BAD_OFFSET" else offset % 2**64
        lengths = struct.pack(f"<{len(shape)}q", *shape)
        infos.append(string(name) + struct.pack("<I", n_dims) + lengths + struct.pack("<IQ", number, at))
        n_rows = 1
        for length in ne[1:]:
            n_rows *= length
        n_bytes = 0 if case == "TENSORS_ZERO_DIM" else config_kind.row_bytes(ne[0]) * n_rows
        offset += n_bytes + -n_bytes % alignment
    return infos, offset


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("case", REFUSED)
def test_refused(write_gguf: WriteBytes, case: str, seed: int) -> None:
    with pytest.raises(BadInputError) as caught:
        read_gguf(write_gguf(handcrafted(case, seed)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n_extra", [0, 1, 1000])
@pytest.mark.parametrize("case", READ)
def test_read(write_gguf: WriteBytes, case: str, seed: int, n_extra: int) -> None:
    file = read_gguf(write_gguf(handcrafted(case, seed) + bytes(n_extra)))
    assert len(file.tensors) == (100 if case.startswith("DATA") else 0)
    assert len(file.metadata) == (0 if case == "HEADER_EMPTY" else 100 + case.endswith("ALIGN"))

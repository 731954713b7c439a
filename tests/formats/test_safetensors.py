"""Safetensors headers are read as the reference implementation reads them, and refused where it refuses."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from edgellm.errors import BadInputError, MissingInputError, UnsafeInputError
from edgellm.formats.safetensors import DTYPE_BITS, read_index, read_safetensors
from tests.support.refusals import refusal

Writer = Callable[[Any, bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """Writes a file from a header (an object, or ready bytes) and data."""

    def write_file(header: Any, data: bytes) -> Path:
        raw = header if isinstance(header, bytes) else json.dumps(header).encode()
        path = tmp_path / "model.safetensors"
        path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
        return path

    return write_file


def entry(dtype: str = "F32", shape: Any = (1,), begin: Any = 0, end: Any = 4, **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **more}


ENTRY = json.dumps(entry()).encode()


def refused(path: Path) -> str:
    with pytest.raises(BadInputError) as caught:
        read_safetensors(path)
    assert str(caught.value).startswith("model.safetensors: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def reference_reads(path: Path) -> bool:
    try:
        with safetensors.safe_open(path, "np"):
            return True
    except safetensors.SafetensorError:
        return False


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.arange(4, dtype=np.int8),
        "scalar": np.array(3.5, dtype=np.float64),
        "empty": np.zeros((0, 3), np.float16),
    }
    path = tmp_path / "model.safetensors"
    save_file(arrays, path, metadata={"format": "np"})
    file = read_safetensors(path)
    assert file.metadata == {"format": "np"}
    assert set(file.tensors) == set(arrays)
    content = path.read_bytes()
    for name, array in arrays.items():
        view = file.tensors[name]
        assert view.name == name
        assert view.path == path
        assert view.shape == array.shape
        assert content[view.offset : view.offset + view.n_bytes] == array.tobytes()
    offsets = [view.offset for view in file.tensors.values()]
    assert offsets == sorted(offsets)


def test_tensors_are_in_the_order_of_the_file(write: Writer) -> None:
    header = {"second": entry(begin=4, end=8), "first": entry(), "__metadata__": None}
    assert list(read_safetensors(write(header, b"12345678")).tensors) == ["first", "second"]


@pytest.mark.parametrize("dtype", sorted(DTYPE_BITS))
def test_every_dtype_of_the_reference_is_known(write: Writer, dtype: str) -> None:
    path = write({"a": entry(dtype, [8], 0, DTYPE_BITS[dtype])}, bytes(DTYPE_BITS[dtype]))
    assert reference_reads(path)
    assert read_safetensors(path).tensors["a"].n_bytes == DTYPE_BITS[dtype]


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"a": entry("F31")}, "unknown dtype 'F31'"),
        ({"a": entry(dtype=None)}, "unknown dtype None"),
        ({"a": entry(shape=[2])}, "F32 of shape [2] takes 8 bytes, its data_offsets give 4"),
        ({"a": entry("F4", [9])}, "takes 36 bits"),
        ({"a": entry(shape=[-1])}, "shape [-1]"),
        ({"a": entry(shape=[True])}, "shape [True]"),
        ({"a": entry(shape=[1.0])}, "shape [1.0]"),
        ({"a": entry(shape="1")}, "shape '1'"),
        ({"a": entry(shape=[1] * 33)}, "expected at most 32 lengths"),
        ({"a": entry(shape=[2**63])}, "expected at most 32 lengths"),
        ({"a": entry(shape=[2**40] * 32)}, "more bytes than any file has"),
        ({"a": entry(shape=[2**31, 2**31, 4, 1])}, "more bytes than any file has"),
        ({"a": entry(begin=-4, end=0)}, "data_offsets [-4, 0]"),
        ({"a": entry(begin=4, end=0)}, "its data_offsets give -4"),
        ({"a": entry(begin=0, end=4.0)}, "data_offsets [0, 4.0]"),
        ({"a": {"dtype": "F32", "shape": [1]}}, "data_offsets None"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2, 4]}}, "data_offsets [0, 2, 4]"),
        ({"a": [1]}, "expected an object"),
        ({"a": entry(begin=4, end=8)}, "leaves a hole before it: it starts at 4, expected 0"),
        ({"a": entry(), "b": entry()}, "overlaps the tensor before it: it starts at 0, expected 4"),
        ({"a": entry(), "b": entry(begin=8, end=12)}, "leaves a hole before it"),
        ({"a": entry(end=8, shape=[2]), "b": entry(begin=4, end=8)}, "overlaps the tensor before it"),
        ({"a": entry(), "__metadata__": {"x": 1}}, "__metadata__"),
        ({"a": entry(), "__metadata__": []}, "__metadata__"),
        (b'{"a":' + ENTRY + b',"a":' + ENTRY + b"}", "duplicate key 'a'"),
        (b"[]", "header begins with b'[]'"),
        (b" {}", "header begins with b' {}'"),
        (b"", "header begins with b''"),
        (b"{", "not JSON"),
        (b'{"a": \xff}', "not UTF-8"),
        (b'{"a":' + b"[" * 10_000, "nested deeper"),
    ],
)  # fmt: skip
def test_refuses(write: Writer, header: Any, words: str) -> None:
    assert words in refused(write(header, b"1234"))


def test_one_missing_byte_is_named_with_both_sizes(write: Writer) -> None:
    header = {"a": entry()}
    size = write(header, b"1234").stat().st_size
    message = refused(write(header, b"123"))
    assert message.endswith(f"truncated: the file has {size - 1} bytes, its header describes {size}")


def test_trailing_bytes_are_refused(write: Writer) -> None:
    assert "belong to no tensor" in refused(write({"a": entry()}, b"12345"))
    assert "belong to no tensor" in refused(write({}, b"1"))


def test_spaces_after_the_header_are_allowed(write: Writer) -> None:
    assert list(read_safetensors(write(json.dumps({"a": entry()}).encode() + b"   ", b"1234")).tensors) == [
        "a"
    ]


@pytest.mark.parametrize("content", [b"", b"1234567", struct.pack("<Q", 10) + b"{}"])
def test_a_file_smaller_than_its_header_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    refused(path)


@pytest.mark.parametrize("n_header", [100_000_001, 2**31, 2**63, 2**64 - 1])
def test_a_huge_header_is_refused_before_it_is_read(tmp_path: Path, n_header: int) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", n_header) + b"{")
        file.truncate(1 << 40)
    assert "more than 100000000" in refused(path)


def test_a_missing_file_is_missing_input(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError):
        read_safetensors(tmp_path / "model.safetensors")


small_arrays = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__" and name.isprintable()),
    st.builds(
        np.zeros, st.lists(st.integers(0, 4), max_size=3), st.sampled_from(["f4", "f2", "i8", "u1", "?"])
    ),
    max_size=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(small_arrays)
def test_round_trip(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(save(arrays))
    tensors = read_safetensors(path).tensors
    assert {name: view.shape for name, view in tensors.items()} == {k: v.shape for k, v in arrays.items()}


@pytest.mark.parametrize("seed", range(300))
def test_damaged_files_are_read_or_refused_and_never_more_kindly_than_by_the_reference(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    arrays = {"w": np.ones((3, 2), np.float32), "b": np.ones(5, np.float16)}
    content = bytearray(save(arrays, {"format": "np"}))
    n_header = int.from_bytes(content[:8], "little")
    for _ in range(rng.randint(1, 3)):
        content[rng.randrange(8 + n_header)] = rng.randrange(256)
    if rng.random() < 0.2:
        del content[rng.randrange(len(content)) :]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    if refusal(lambda: read_safetensors(path)) is None:
        assert reference_reads(path)


def write_index(directory: Path, weight_map: Any) -> Path:
    path = directory / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return path


def test_index_maps_tensors_to_shards(tmp_path: Path) -> None:
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    assert read_index(write_index(tmp_path, weight_map)) == weight_map


@pytest.mark.parametrize("weight_map", [None, {}, [], {"a": 1}, {"a": None}])
def test_an_index_that_is_none_is_refused(tmp_path: Path, weight_map: Any) -> None:
    with pytest.raises(BadInputError, match=r"^model\.safetensors\.index\.json: weight_map"):
        read_index(write_index(tmp_path, weight_map))


@pytest.mark.parametrize("shard", ["../../etc/passwd", "/etc/passwd", "C:\\x", "\\\\srv\\x", "a\0b", ""])
def test_a_shard_outside_the_directory_is_refused(tmp_path: Path, shard: str) -> None:
    with pytest.raises(UnsafeInputError, match="escapes the model directory"):
        read_index(write_index(tmp_path, {"a": "model.safetensors", "b": shard}))

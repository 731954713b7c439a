"""GGUF headers are read whole, bounded, and refused where ggml refuses them or would not survive them."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.errors import BadInputError, MissingInputError
from edgellm.formats import gguf as gguf_format
from edgellm.formats.gguf import GGUFFile, read_gguf
from edgellm.formats.gguf_model import read_hyperparameters
from edgellm.formats.gguf_vocab import validate_vocab
from tests.support import gguf_files
from tests.support.gguf_files import array, gguf_bytes, key, scalar, string, tensor, write_model
from tests.support.refusals import refusal

WriteBytes = Callable[[bytes], Path]
F32_DATA = bytes(32)


@pytest.fixture
def model(tmp_path: Path) -> GGUFFile:
    return read_gguf(write_model(tmp_path / "model.gguf"))


def refused(path: Path) -> str:
    with pytest.raises(BadInputError) as caught:
        read_gguf(path)
    assert type(caught.value) is BadInputError
    assert str(caught.value).startswith("model.gguf: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_reads_what_the_gguf_package_writes(model: GGUFFile) -> None:
    reader = gguf.GGUFReader(model.path)
    assert (model.version, model.alignment) == (3, 32)
    assert model.data_offset == reader.data_offset
    assert model.file_bytes == model.path.stat().st_size
    assert [tensor.name for tensor in reader.tensors] == list(model.tensors)
    for theirs in reader.tensors:
        ours = model.tensors[theirs.name]
        assert ours.shape == tuple(theirs.shape.tolist()[::-1])
        assert ours.type_name == theirs.tensor_type.name
        assert (ours.offset, ours.n_bytes) == (theirs.data_offset, theirs.n_bytes)
    assert list(model.metadata) == [name for name in reader.fields if not name.startswith("GGUF.")]
    assert model.metadata["tokenizer.ggml.tokens"].value == gguf_files.GPT2_TOKENS


def test_typed_access(model: GGUFFile) -> None:
    assert model.get("general.architecture", str, None) == "llama"
    assert model.get("llama.block_count", int, None) == 2
    assert model.get("absent", int, 7) == 7
    assert model.fields.integer("llama.block_count", 1, 512) == 2
    assert model.get("tokenizer.ggml.token_type", np.ndarray, None).dtype == np.int32
    with pytest.raises(
        BadInputError, match=r"^model\.gguf: llama\.block_count has type UINT32, expected str$"
    ):
        model.get("llama.block_count", str, None)
    with pytest.raises(BadInputError, match="tokens has type ARRAY of STRING, expected int"):
        model.get("tokenizer.ggml.tokens", int, None)


def test_a_missing_file_is_missing_input(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError):
        read_gguf(tmp_path / "model.gguf")


def test_version_2_is_read(write_gguf: WriteBytes) -> None:
    assert read_gguf(write_gguf(gguf_bytes(version=2))).version == 2


def test_each_wrong_beginning_has_its_own_message(write_gguf: WriteBytes) -> None:
    big_endian = b"GGUF" + struct.pack(">IQQ", 3, 0, 0)
    contents = {
        b"": "empty file",
        b"GG": "not a GGUF file: magic b'GG'",
        b"GGUF": "truncated: 4 bytes",
        b"FUGG" + bytes(20): "not a GGUF file: magic b'FUGG'",
        b"lmgg" + bytes(20): "not a GGUF file",
        b"GGML" + bytes(20): "magic GGML: a format from before GGUF",
        b"tjgg"[::-1].upper() + bytes(20): "magic GGJT: a format from before GGUF",
        b"TJGG" + bytes(20): "magic TJGG: a format from before GGUF",
        gguf_bytes(version=0): "GGUF version 0",
        gguf_bytes(version=1): "GGUF version 1",
        gguf_bytes(version=4): "GGUF version 4 is newer",
        gguf_bytes(version=99): "GGUF version 99 is newer",
        big_endian: "big-endian",
        b"PK\x03\x04" + bytes(20): "not a GGUF file",
    }
    messages = [refused(write_gguf(content)) for content in contents]
    for message, words in zip(messages, contents.values(), strict=True):
        assert words in message
    assert len(set(messages)) == len(messages)


@pytest.mark.parametrize("count", [2**17 + 1, 2**31, 2**63, 2**64 - 1])
def test_huge_counts_are_refused(write_gguf: WriteBytes, count: int) -> None:
    assert f"number of metadata keys is {count}" in refused(write_gguf(gguf_bytes(n_keys=count)))
    assert f"number of tensors is {count}" in refused(write_gguf(gguf_bytes(n_tensors=count)))


@pytest.mark.parametrize(
    "entry",
    [
        string("k") + struct.pack("<IQ", 8, 2**63),
        string("k") + struct.pack("<IQ", 8, 2**24 + 1),
        string("k") + struct.pack("<IIQ", 9, 8, 2**40),
        string("k") + struct.pack("<IIQ", 9, 8, 2**22 + 1),
        string("k") + struct.pack("<IIQ", 9, 8, 2**22),
        string("k") + struct.pack("<IIQ", 9, 12, 2**61),
        string("k") + struct.pack("<IIQ", 9, 12, 2**26 + 1),
        string("k") + struct.pack("<IIQ", 9, 0, 2**20),
        string("k") + struct.pack("<IIQQ", 9, 8, 1, 2**62),
        string("k") + struct.pack("<IIQQ", 9, 8, 1, 2**24 + 1),
    ],
)
def test_huge_lengths_are_refused_without_allocating(write_gguf: WriteBytes, entry: bytes) -> None:
    path = write_gguf(gguf_bytes([entry]))
    tracemalloc.start()
    try:
        refused(path)
        assert tracemalloc.get_traced_memory()[1] < 8 * 1024**2
    finally:
        tracemalloc.stop()


def test_a_header_of_a_sparse_file_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    entries = [string(f"k{n}") + struct.pack("<IIQ", 9, 12, 2**24) for n in range(2)]
    with path.open("wb") as file:
        file.write(gguf_bytes([entries[0]], n_keys=2))
        file.seek(2**27, 1)
        file.write(entries[1])
        file.truncate(1 << 40)
    assert "header larger than" in refused(path)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([key("a", "UINT8", 1), key("a", "UINT8", 1)], "duplicate metadata key 'a'"),
        ([key("", "UINT8", 1)], "key 0 is empty"),
        ([key("a\0b", "UINT8", 1)], "holds a NUL"),
        ([key(b"\xff", "UINT8", 1)], "key 0 is not UTF-8"),
        ([key("a" * 65_536, "UINT8", 1)], "length of key 0 is 65536, more than 65535"),
        ([key("a", "STRING", b"x\xff")], "metadata 'a' is not UTF-8 at byte 1"),
        ([array("a", "STRING", ["x", b"\xff"])], "element 1 of metadata 'a' is not UTF-8"),
        ([string("a") + struct.pack("<IB", 13, 0)], "metadata 'a' has unknown type 13"),
        ([string("a") + struct.pack("<IIQB", 9, 13, 1, 0)], "metadata 'a' has unknown type 13"),
        ([string("a") + struct.pack("<IIQIQ", 9, 9, 1, 0, 0)], "array of arrays"),
        ([key("general.alignment", "UINT32", 0)], "general.alignment is 0"),
        ([key("general.alignment", "UINT32", 3)], "general.alignment is 3"),
        ([key("general.alignment", "UINT32", 2**31)], "general.alignment is 2147483648"),
        ([key("general.alignment", "UINT32", 2**21)], "general.alignment is 2097152"),
        ([key("general.alignment", "INT32", 32)], "general.alignment has type INT32"),
        ([key("general.alignment", "STRING", "32")], "general.alignment has type STRING"),
        ([array("general.alignment", "UINT32", [32])], "general.alignment has type ARRAY"),
        ([key("split.count", "UINT16", 2)], "one part of a model split"),
        ([key("split.count", "STRING", "2")], "one part of a model split"),
        ([key("a", "UINT64", 1)[:-1]], "truncated: metadata 'a' takes 8 bytes, 7 of"),
        ([key("a", "STRING", "xyz")[:-1]], "truncated: metadata 'a' takes 3 bytes, 2 of"),
        ([array("a", "STRING", ["xyz", "u"])[:-9]], "truncated"),
        ([array("a", "STRING", ["xyz", "uvwxyz12"])[:-1]], "truncated"),
        ([array("a", "INT16", [1, 2])[:-1]], "truncated"),
    ],
)
def test_refuses_metadata(write_gguf: WriteBytes, entries: list[bytes], words: str) -> None:
    assert words in refused(write_gguf(gguf_bytes(entries)))


def test_a_split_file_says_how_to_merge(write_gguf: WriteBytes) -> None:
    with pytest.raises(BadInputError) as caught:
        read_gguf(write_gguf(gguf_bytes([key("split.count", "UINT16", 3)])))
    assert "llama-gguf-split --merge" in str(caught.value.hint)
    first = [
        key("split.no", "UINT16", 0),
        key("split.count", "UINT16", 2),
        key("split.tensors.count", "INT32", 9),
    ]
    later = [key("split.no", "UINT16", 7), key("split.count", "UINT16", 2)]
    for entries in (
        first,
        later,
        [key("split.count", "UINT64", 2**64 - 1)],
        [key("split.count", "INT32", -1)],
    ):
        assert "one part of a model split" in refused(write_gguf(gguf_bytes(entries)))
    assert read_gguf(write_gguf(gguf_bytes([key("split.count", "UINT16", 1)]))).metadata


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ([tensor("a", [8], n_dims=0)], "0 dimensions"),
        ([tensor("a", [1] * 5)], "5 dimensions"),
        ([tensor("a", [8, 0])], "shape (8, 0), expected lengths of at least 1"),
        ([tensor("a", [-1])], "shape (-1,)"),
        ([tensor("a", [2**42 + 1, 2**22])], "truncated?"),
        ([tensor("a", [2**62, 4])], "truncated?"),
        ([tensor("a", [2**63 - 1] * 4)], "truncated?"),
        ([tensor("a", [8], 43)], "unknown type 43"),
        ([tensor("a", [8], 2**32 - 1)], "unknown type 4294967295"),
        ([tensor("a", [32], 4)], "type 4 (Q4_2), which ggml has removed"),
        ([tensor("a", [32], 31)], "type 31 (Q4_0_4_4), which ggml has removed"),
        ([tensor("a", [33], 2)], "rows of 33, not a multiple of Q4_0's block of 32"),
        ([tensor("a", [9])], "ends at byte"),
        ([tensor("a", [4], offset=4)], "not a multiple of the alignment 32"),
        ([tensor("a", [4], offset=32)], "leaves a hole before it: its offset is 32, expected 0"),
        ([tensor("a", [4]), tensor("b", [4])], "overlaps the tensor before it: its offset is 0, expected 32"),
        ([tensor("a", [4]), tensor("b", [4], offset=64)], "leaves a hole before it"),
        ([tensor("a", [4], offset=2**64 - 32)], "leaves a hole"),
        ([tensor("a", [4]), tensor("a", [4], offset=32)], "duplicate tensor name 'a'"),
        ([tensor("a" * 64, [8])], "length of name of tensor 0 is 64, more than 63"),
        ([tensor("a\0b", [8])], "holds a NUL"),
        ([tensor(b"\xff", [8])], "not UTF-8"),
    ],
)  # fmt: skip
def test_refuses_tensors(write_gguf: WriteBytes, tensors: list[bytes], words: str) -> None:
    assert words in refused(write_gguf(gguf_bytes([], tensors, F32_DATA)))


def test_the_end_of_the_last_tensor_needs_no_padding_and_bytes_may_follow(write_gguf: WriteBytes) -> None:
    for n_bytes in (20, 32, 1000):
        file = read_gguf(write_gguf(gguf_bytes([], [tensor("a", [5])], bytes(n_bytes))))
        assert file.tensors["a"].n_bytes == 20
    assert "truncated" in refused(write_gguf(gguf_bytes([], [tensor("a", [5])], bytes(19))))


def test_bytes_behind_the_last_tensor_are_counted(write_gguf: WriteBytes) -> None:
    for n_bytes, n_behind in ((20, 0), (32, 0), (33, 1), (1032, 1000)):
        file = read_gguf(write_gguf(gguf_bytes([], [tensor("a", [5])], bytes(n_bytes))))
        assert file.trailing_bytes == n_behind
    assert read_gguf(write_gguf(gguf_bytes() + b"x")).trailing_bytes == 1


def test_shapes_are_rows_first_and_offsets_absolute(write_gguf: WriteBytes) -> None:
    content = gguf_bytes([], [tensor("a", [4, 3, 2]), tensor("b", [2], 1, 96)], bytes(128))
    file = read_gguf(write_gguf(content))
    assert file.tensors["a"].shape == (2, 3, 4)
    assert file.tensors["b"].offset == file.data_offset + 96 == len(content) - 32


def test_alignment_1_is_read(write_gguf: WriteBytes) -> None:
    entries = [key("general.alignment", "UINT32", 1)]
    tensors = [tensor("a", [3], 24), tensor("b", [2], 24, 3)]
    file = read_gguf(write_gguf(gguf_bytes(entries, tensors, bytes(5), alignment=1)))
    assert file.tensors["b"].offset == file.data_offset + 3


def test_tokens_that_are_not_utf8_survive(write_gguf: WriteBytes) -> None:
    tokens = [b"\xff\xfe", b"caf\xc3", b"ok", b"\xed\xa0\x80", b"\0", b""]
    file = read_gguf(write_gguf(gguf_bytes([array("tokenizer.ggml.tokens", "STRING", tokens)])))
    read = file.metadata["tokenizer.ggml.tokens"].value
    assert [text.encode("utf-8", "surrogateescape") for text in read] == tokens


def test_strings_across_reads_are_whole(write_gguf: WriteBytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_format, "_READ_BYTES", 1)
    texts = ["", "a", "bc" * 50, "", "é" * 7, "z" * 1000, ""]
    entries = [array("a", "STRING", texts), key("b", "UINT64", 5), array("c", "STRING", texts[::-1])]
    file = read_gguf(write_gguf(gguf_bytes(entries)))
    assert file.metadata["a"].value == texts
    assert file.metadata["b"].value == 5
    assert file.metadata["c"].value == texts[::-1]


text_values = st.text(max_size=20).filter(lambda text: "\0" not in text)
scalar_values = {
    "UINT8": st.integers(0, 2**8 - 1), "INT8": st.integers(-(2**7), 2**7 - 1),
    "UINT16": st.integers(0, 2**16 - 1), "INT16": st.integers(-(2**15), 2**15 - 1),
    "UINT32": st.integers(0, 2**32 - 1),
    "INT32": st.integers(-(2**31), 2**31 - 1), "UINT64": st.integers(0, 2**64 - 1),
    "INT64": st.integers(-(2**63), 2**63 - 1), "FLOAT32": st.floats(width=32, allow_nan=False),
    "FLOAT64": st.floats(allow_nan=False), "BOOL": st.booleans(), "STRING": text_values,
}  # fmt: skip
scalars = st.one_of([st.tuples(st.just(name), values) for name, values in scalar_values.items()])
arrays = st.one_of(
    [
        st.tuples(st.just("ARRAY:" + name), st.lists(v, min_size=1, max_size=5))
        for name, v in scalar_values.items()
    ]
)
keys = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(keys.map("x.".__add__), scalars | arrays, max_size=6))
def test_random_metadata_of_the_gguf_package_reads_back(
    tmp_path: Path, metadata: dict[str, tuple[str, Any]]
) -> None:
    file = read_gguf(write_model(tmp_path / "model.gguf", metadata=metadata, vocab=None))
    for name, (type_name, value) in metadata.items():
        read = file.metadata[name]
        if type_name.startswith("ARRAY:"):
            assert (read.type, "ARRAY:" + str(read.element_type)) == ("ARRAY", type_name)
            assert list(read.value) == value
        else:
            assert (read.type, read.element_type, read.value) == (type_name, None, value)
            assert type(read.value) is type(value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(scalar_values)), st.binary(min_size=16, max_size=64)), max_size=5
    )
)
def test_values_can_be_written_back_unchanged(write_gguf: WriteBytes, draws: list[tuple[str, bytes]]) -> None:
    entries = []
    for index, (name, raw) in enumerate(draws):
        if name == "STRING":
            entries.append(array(f"tokenizer.{index}", name, [raw, raw[:3]]))
        elif name != "BOOL":
            code = gguf_files.TYPES[name][1]
            count = len(raw) // struct.calcsize(code)
            values = struct.unpack(f"<{count}{code}", raw[: count * struct.calcsize(code)])
            entries.append(array(f"x.{index}", name, values))
    content = gguf_bytes(entries)
    file = read_gguf(write_gguf(content))
    again = []
    for name, value in file.metadata.items():
        if value.element_type == "STRING":
            items = [text.encode("utf-8", "surrogateescape") for text in value.value]
            again.append(array(name, "STRING", items))
        else:
            number = gguf_files.TYPES[str(value.element_type)][0]
            head = struct.pack("<IIQ", 9, number, len(value.value))
            again.append(string(name) + head + value.value.tobytes())
    assert gguf_bytes(again) == content


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_model(tmp_path_factory.mktemp("small") / "model.gguf", n_layers=1).read_bytes()


@pytest.mark.parametrize("seed", range(300))
def test_damaged_files_are_read_or_refused(write_gguf: WriteBytes, small_file: bytes, seed: int) -> None:
    rng = random.Random(seed)
    content = bytearray(small_file)
    n_header = len(content) - 9000 if seed % 2 else 700
    for _ in range(rng.randint(1, 4)):
        content[rng.randrange(n_header)] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    if rng.random() < 0.3:
        del content[rng.randrange(len(content)) :]
    path = write_gguf(bytes(content))
    if refusal(lambda: read_gguf(path)) is None:
        file = read_gguf(path)
        assert all(view.offset + view.n_bytes <= len(content) for view in file.tensors.values())
        refusal(lambda: validate_vocab(file))
        refusal(lambda: read_hyperparameters(file))


def test_every_truncation_of_the_header_is_refused(write_gguf: WriteBytes) -> None:
    entries = [key("a", "STRING", "xyz"), array("b", "STRING", ["x", ""]), array("c", "UINT16", [1, 2])]
    content = gguf_bytes(entries, [tensor("t", [4])], bytes(16))
    assert read_gguf(write_gguf(content)).tensors
    for n_bytes in range(len(content)):
        refused(write_gguf(content[:n_bytes]))


def test_scalar_helper_agrees_with_struct() -> None:
    assert scalar("INT16", -2) == b"\xfe\xff"

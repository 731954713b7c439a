"""A source: the order of tensors, the rotary row order, and a GGUF as the source of another."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from edgellm.checkpoint import open_checkpoint
from edgellm.convert import pipeline
from edgellm.convert.source import PlannedTensor, from_gguf, in_file_order, planned
from edgellm.convert.writer import write_gguf
from edgellm.errors import UnsupportedError
from edgellm.formats.gguf import read_gguf
from tests.support import gguf_files
from tests.support.tiny_llama import read_source, write_f32, write_tiny_llama


def empty(name: str) -> PlannedTensor:
    return planned(name, np.zeros((2, 2), dtype=np.float32))


def test_tensors_stand_in_llama_cpps_order() -> None:
    names = [
        "blk.10.a",
        "blk.2.b",
        "token_embd.weight",
        "blk.2.a",
        "output.weight",
        "blk.0.z",
        "rope_freqs.weight",
    ]
    ordered = [t.name for t in in_file_order([empty(name) for name in names])]
    assert ordered == [
        "output.weight", "rope_freqs.weight", "token_embd.weight", "blk.0.z", "blk.2.a", "blk.2.b", "blk.10.a"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["blk", "blk.", "blk.\u00b2.x", "blk.x.y", "blk.-1.x", "", "blk.\u0663.x"])
def test_odd_names_are_outside_the_blocks(name: str) -> None:
    assert in_file_order([empty("blk.0.a"), empty(name)])[0].name == name


def test_a_gguf_copied_to_its_own_types_is_the_same_file(tmp_path: Path) -> None:
    first = write_f32(read_source(write_tiny_llama(tmp_path / "m")), tmp_path / "first.gguf")
    source = from_gguf(open_checkpoint(first))
    second = tmp_path / "second.gguf"
    write_gguf(second, source, source.base_types(), source.header, n_workers=2)
    assert first.read_bytes() == second.read_bytes()


def test_every_type_of_header_value_is_carried(tmp_path: Path) -> None:
    values = {
        "x.u8": ("UINT8", 200), "x.i8": ("INT8", -3), "x.u16": ("UINT16", 60000), "x.i32": ("INT32", -70000),
        "x.u64": ("UINT64", 1 << 40), "x.i64": ("INT64", -(1 << 40)), "x.f32": ("FLOAT32", 0.5), "x.f64": ("FLOAT64", 0.1),
        "x.yes": ("BOOL", True), "x.text": ("STRING", "\u00e9\U0001f600"), "x.list": ("ARRAY:INT32", [1, -2]),
        "x.words": ("ARRAY:STRING", ["a", ""]), "x.flags": ("ARRAY:BOOL", [True, False]), "x.floats": ("ARRAY:FLOAT32", [0.5]),
    }  # fmt: skip
    first = gguf_files.write_model(tmp_path / "first.gguf", metadata=values)
    source = from_gguf(open_checkpoint(first))
    second = tmp_path / "second.gguf"
    write_gguf(second, source, source.base_types(), source.header, n_workers=1)
    before, after = read_gguf(first).metadata, read_gguf(second).metadata
    assert list(before) == list(after)
    for key, value in before.items():
        assert (value.type, value.element_type) == (after[key].type, after[key].element_type), key
        assert np.array_equal(value.value, after[key].value), key


def test_another_alignment_is_not_promised(tmp_path: Path) -> None:
    """We align to 32 bytes whatever the source did, so its `general.alignment` must not be carried over."""
    plain = read_source(write_tiny_llama(tmp_path / "m"))
    writer = gguf.GGUFWriter(tmp_path / "first.gguf", "llama")
    for key in (
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.attention.head_count",
    ):
        writer.add_uint32(key, plain.header[key].value)
    writer.add_vocab_size(4)
    writer.add_custom_alignment(256)
    tensors = {
        name: np.full((n, 8), i, dtype=np.float32)
        for i, (name, n) in enumerate({"a": 3, "b": 5, "c": 7}.items())
    }
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = from_gguf(open_checkpoint(tmp_path / "first.gguf"))
    second = tmp_path / "second.gguf"
    write_gguf(second, source, source.base_types(), source.header, n_workers=1)
    content, file = second.read_bytes(), read_gguf(second)
    assert "general.alignment" not in file.metadata
    for name, values in tensors.items():
        place = file.tensors[name]
        assert content[place.offset : place.offset + place.n_bytes] == values.tobytes()


@pytest.mark.parametrize("n_bytes", [0, 1, 100])
def test_bytes_behind_the_last_tensor_are_named(tmp_path: Path, n_bytes: int) -> None:
    path = gguf_files.write_model(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes() + bytes(n_bytes))
    notes = from_gguf(open_checkpoint(path)).notes
    assert notes == (
        (f"{n_bytes} bytes behind the last tensor of the source are left out",) if n_bytes else ()
    )


def test_the_parts_of_a_split_leave_no_trace(tmp_path: Path) -> None:
    path = gguf_files.write_model(
        tmp_path / "m.gguf", metadata={"split.count": ("UINT16", 1), "split.no": ("UINT16", 0)}
    )
    assert not [key for key in from_gguf(open_checkpoint(path)).header if key.startswith("split.")]


def test_integer_tensors_cannot_be_converted(tmp_path: Path) -> None:
    data = gguf_files.gguf_bytes(
        [
            gguf_files.key("general.architecture", "STRING", "llama"), gguf_files.key("llama.block_count", "UINT32", 1),
            gguf_files.key("llama.context_length", "UINT32", 8), gguf_files.key("llama.embedding_length", "UINT32", 8),
            gguf_files.key("llama.attention.head_count", "UINT32", 1), gguf_files.key("llama.vocab_size", "UINT32", 4),
        ],
        [gguf_files.tensor("blk.0.table.weight", (8,), 26)],
        bytes(32),
    )  # fmt: skip
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(UnsupportedError, match=r"blk\.0\.table\.weight.*I32"):
        pipeline.read_source(open_checkpoint(tmp_path / "m.gguf"))

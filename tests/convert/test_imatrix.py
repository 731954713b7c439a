"""Importance matrices by themselves: sums and counts, files that lie, rows that meet the right expert."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm.artifact import Provenance
from edgellm.convert import imatrix, imatrix_file, mixture
from edgellm.convert.imatrix import Calibration, Importance, ImportanceMatrix
from edgellm.errors import BadInputError, EdgeLLMError, MissingInputError, UnsupportedError
from edgellm.formats.records import replace
from edgellm.native import ggml
from tests.support import gguf_files, tiny_gguf
from tests.support.fake_backend import BOS, OBSERVED, FakeBackend, input_rows
from tests.support.sparse_gguf import write_imatrix as write_plain

TEXT = Calibration("some text", "Once upon a time there was a converter. " * 30)


def provenance(**changes: Any) -> Provenance:
    fields: dict[str, Any] = {
        "text": "some text", "text_sha256": "0" * 64, "n_tokens": 1024, "chunk_tokens": 512, "model": "tiny",
        "model_sha256": None, "engine": "fake 1",
    }  # fmt: skip
    return Provenance(**{**fields, **changes})


def matrix_of(shapes: dict[str, tuple[int, ...]], seed: int = 3) -> ImportanceMatrix:
    """Random importance for each tensor; the second expert was never chosen."""
    rng = np.random.default_rng(seed)
    entries = {}
    for name, shape in shapes.items():
        n_matrices = math.prod(shape[:-2])
        sums = rng.random((n_matrices, shape[-1]), dtype=np.float32) * 100
        counts = rng.integers(1, 1000, n_matrices)
        if n_matrices > 1:
            counts[1], sums[1] = 0, 0
        entries[name] = Importance(sums, counts)
    return ImportanceMatrix(entries, provenance())


def collect(backend: FakeBackend, text: Calibration = TEXT, **options: Any) -> ImportanceMatrix:
    ids = backend.tokenize(text.text, add_special=True, parse_special=False)
    model: Any = backend
    return imatrix.collect(model, ids, text, model="fake", **options)


def test_sums_are_those_of_the_squares_of_all_rows() -> None:
    backend = FakeBackend()
    seen: list[int] = []
    found = collect(backend, progress=seen.append)
    ids = backend.tokenize(TEXT.text, add_special=True, parse_special=False)
    chunks = [ids[:512], [BOS, *ids[513:1024]]]
    tokens = [token for chunk in chunks for token in chunk]
    assert seen == [512, 512]
    assert sorted(found.entries) == sorted(OBSERVED)
    rows = input_rows(tokens).astype(np.float64)
    for name in OBSERVED[:2]:
        assert found.entries[name].counts.tolist() == [1024]
        np.testing.assert_allclose(found.entries[name].sums, (rows**2).sum(axis=0, keepdims=True), rtol=1e-5)
    routed = found.entries["blk.0.ffn_up_exps.weight"]
    for expert in range(4):
        mine = np.array([expert in (token % 4, (token + 1) % 4) for token in tokens])
        assert routed.counts[expert] == mine.sum()
        np.testing.assert_allclose(routed.sums[expert], (rows[mine] ** 2).sum(axis=0), rtol=1e-5)
    assert found.provenance == provenance(
        text_sha256=TEXT.sha256, model="fake", engine=found.provenance.engine
    )
    assert all(batcher.closed for batcher in backend.batchers)


def test_no_more_than_the_chunks_asked_for_and_no_bos_where_the_model_wants_none() -> None:
    found = collect(FakeBackend(add_bos=False), max_chunks=1)
    ids = FakeBackend(add_bos=False).tokenize(TEXT.text, add_special=True, parse_special=False)[:512]
    assert found.provenance.n_tokens == 512
    rows = input_rows(ids).astype(np.float64)
    np.testing.assert_allclose(found.entries[OBSERVED[0]].sums[0], (rows**2).sum(axis=0), rtol=1e-5)


def test_a_text_shorter_than_a_chunk_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"some text: 6 tokens are too few.*512"):
        collect(FakeBackend(), Calibration("some text", "short"))


def test_a_backend_that_shows_nothing_is_refused() -> None:
    backend = FakeBackend()
    backend.capabilities = replace(backend.capabilities, observer=False)
    with pytest.raises(UnsupportedError, match="does not show"):
        collect(backend)


def test_calibration_texts_are_utf8_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text.txt"
    path.write_text("naïve\n", encoding="utf-8")
    assert imatrix.read_calibration(path) == Calibration("text.txt", "naïve\n")
    path.write_bytes(b"na\xefve")
    with pytest.raises(BadInputError, match="not UTF-8 text at byte 2"):
        imatrix.read_calibration(path)
    monkeypatch.setattr(imatrix, "MAX_TEXT_BYTES", 4)
    with pytest.raises(BadInputError, match="at most 4"):
        imatrix.read_calibration(path)
    with pytest.raises(MissingInputError):
        imatrix.read_calibration(tmp_path / "none.txt")


def test_an_expert_that_no_token_met_weighs_all_columns_alike() -> None:
    entry = Importance(np.array([[2, 6], [0, 0]], dtype=np.float32), np.array([2, 0]))
    np.testing.assert_array_equal(entry.means(2), [[1, 3], [1, 1]])
    assert ImportanceMatrix({"a": entry}, provenance()).unseen_experts() == 1


# Files


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    ours = matrix_of(tiny_gguf.shapes(n_experts=3))
    path = tmp_path / "matrix.gguf"
    imatrix_file.write_imatrix(path, ours)
    assert [p.name for p in tmp_path.iterdir()] == ["matrix.gguf"]
    again = imatrix_file.read_imatrix(path)
    assert again.entries.keys() == ours.entries.keys()
    for name, entry in again.entries.items():
        np.testing.assert_array_equal(entry.sums, ours.entries[name].sums)
        np.testing.assert_array_equal(entry.counts, ours.entries[name].counts)
    assert again.provenance.file_sha256
    assert replace(again.provenance, file_sha256=None) == ours.provenance


def test_a_matrix_of_llama_imatrix_says_what_it_knows(tmp_path: Path) -> None:
    """One count for a weight of several matrices is how llama-imatrix writes weights with one per head."""
    entries = {"blk.0.attn_k_b.weight": (np.ones((1, 8), np.float32), np.full((1, 1), 2, np.float32))}
    found = imatrix_file.read_imatrix(write_plain(tmp_path / "m.gguf", entries, n_chunks=3))
    assert (found.provenance.text, found.provenance.n_tokens) == ("test.txt", 1536)
    assert found.provenance.model is None
    np.testing.assert_array_equal(found.entries["blk.0.attn_k_b.weight"].means(4), np.full((4, 2), 0.5))


def file_of(
    tensors: dict[str, tuple[tuple[int, ...], list[float]]], type_number: int = 0, **keys: bytes | None
) -> bytes:
    """An imatrix file byte by byte; `keys` replace (None: leave out) type, datasets, count and size."""
    entries = {
        "type": gguf_files.key("general.type", "STRING", "imatrix"),
        "datasets": gguf_files.array("imatrix.datasets", "STRING", ["a.txt"]),
        "count": gguf_files.key("imatrix.chunk_count", "UINT32", 2),
        "size": gguf_files.key("imatrix.chunk_size", "UINT32", 512),
        **keys,
    }
    described, data = [], b""
    for name, (ne, values) in tensors.items():
        data += bytes(-len(data) % 32)
        described.append(gguf_files.tensor(name, ne, type_number, len(data)))
        data += struct.pack(f"<{len(values)}f", *values)
    kept = [entry for entry in entries.values() if entry is not None]
    return gguf_files.gguf_bytes(kept, described, data + bytes(-len(data) % 32))


def pair(
    sums: list[float], counts: list[float], ne: tuple[int, ...] = (2, 1)
) -> dict[str, tuple[tuple[int, ...], list[float]]]:
    return {"w.in_sum2": (ne, sums), "w.counts": ((1, len(counts)), counts)}


BAD_FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "not a matrix": (lambda: file_of(pair([1, 2], [1]), type=None), "not an importance matrix"),
    "a model": (
        lambda: file_of(pair([1, 2], [1]), type=gguf_files.key("general.type", "STRING", "model")),
        "not an importance matrix",
    ),
    "type is a number": (
        lambda: file_of(pair([1, 2], [1]), type=gguf_files.key("general.type", "UINT32", 1)), "general.type",
    ),
    "empty": (lambda: file_of({}), "without entries"),
    "NaN": (lambda: file_of(pair([1, math.nan], [1])), "w.in_sum2 holds"),
    "infinite": (lambda: file_of(pair([1, math.inf], [1])), "w.in_sum2 holds"),
    "negative sum": (lambda: file_of(pair([1, -1], [1])), "negative"),
    "negative count": (lambda: file_of(pair([1, 1], [-1])), "negative"),
    "NaN count": (lambda: file_of(pair([1, 1], [math.nan])), "w.counts holds"),
    "half a count": (lambda: file_of(pair([1, 1], [0.5])), "whole number"),
    "huge count": (lambda: file_of(pair([1, 1], [1e30])), "a count of 1e"),
    "sums without rows": (lambda: file_of(pair([1, 1], [0])), "not counted"),
    "no counts": (lambda: file_of({"w.in_sum2": ((2,), [1, 2])}), "w has no counts"),
    "no sums": (lambda: file_of({"w.counts": ((1,), [1])}), "w has no in_sum2"),
    "another tensor": (lambda: file_of({**pair([1, 2], [1]), "w": ((1,), [1])}), "neither sums nor counts"),
    "no name": (lambda: file_of({".counts": ((1,), [1])}), "neither sums nor counts"),
    "counts that do not divide": (lambda: file_of(pair([1, 2, 3], [1, 1], (3, 1))), "do not divide"),
    "more counts than sums": (lambda: file_of(pair([1], [1, 1], (1, 1))), "do not divide"),
    "another type": (
        lambda: file_of({"w.in_sum2": ((2,), [1]), "w.counts": ((2,), [1])}, type_number=1), "is F16, expected F32",
    ),
    "no chunk count": (lambda: file_of(pair([1, 2], [1]), count=None), "chunk_count"),
    "no chunk size": (lambda: file_of(pair([1, 2], [1]), size=None), "chunk_size"),
    "chunks of nothing": (
        lambda: file_of(pair([1, 2], [1]), size=gguf_files.key("imatrix.chunk_size", "UINT32", 0)), "chunk_size",
    ),
    "no datasets": (lambda: file_of(pair([1, 2], [1]), datasets=None), "datasets"),
    "datasets of numbers": (
        lambda: file_of(pair([1, 2], [1]), datasets=gguf_files.array("imatrix.datasets", "UINT32", [1])), "datasets",
    ),
    "provenance that is no record": (
        lambda: file_of(pair([1, 2], [1]), ours=gguf_files.key(imatrix_file.PROVENANCE_KEY, "STRING", "{}")), "provenance",
    ),
    "provenance with a negative number": (
        lambda: file_of(
            pair([1, 2], [1]),
            ours=gguf_files.key(
                imatrix_file.PROVENANCE_KEY,
                "STRING",
                '{"text":"","text_sha256":null,"n_tokens":-1,"chunk_tokens":0,"model":null,"model_sha256":null,"engine":null}',
            ),
        ),
        "provenance",
    ),
    "the older format": (lambda: struct.pack("<ii4sii2f", 1, 4, b"name", 1, 2, 1, 2), "not a GGUF file"),
    "nothing": (lambda: b"", "empty file"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_lies_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    content, match = BAD_FILES[case]
    path = tmp_path / "matrix.gguf"
    path.write_bytes(content())
    with pytest.raises(BadInputError, match=match) as caught:
        imatrix_file.read_imatrix(path)
    assert "\n" not in str(caught.value)
    assert "matrix.gguf" in str(caught.value)


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    content = file_of({"w.in_sum2": ((1,), [1]), "x.in_sum2": ((1,), [1]), "w.counts": ((1,), [1])})
    path = tmp_path / "matrix.gguf"
    path.write_bytes(content.replace(b"x.in_sum2", b"w.in_sum2"))
    with pytest.raises(BadInputError, match="duplicate tensor name"):
        imatrix_file.read_imatrix(path)


def test_the_good_file_of_these_cases_is_read(tmp_path: Path) -> None:
    path = tmp_path / "matrix.gguf"
    path.write_bytes(file_of(pair([1, 2, 3, 4], [1, 2], (2, 2))))
    np.testing.assert_array_equal(imatrix_file.read_imatrix(path).entries["w"].means(2), [[1, 2], [1.5, 2]])


def test_flipped_and_missing_bytes_are_bad_input_or_a_matrix(tmp_path: Path) -> None:
    whole = file_of(pair([1, 2, 3, 4], [1, 2], (2, 2)))
    path = tmp_path / "matrix.gguf"
    rng = random.Random(5)
    n_read = 0
    for _ in range(800):
        content = bytearray(whole)
        if rng.random() < 0.2:
            del content[rng.randrange(len(content)) :]
        else:
            for _ in range(rng.randint(1, 3)):
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        try:
            found = imatrix_file.read_imatrix(path)
        except EdgeLLMError:
            continue
        n_read += 1
        for entry in found.entries.values():
            assert np.isfinite(entry.sums).all()
            assert (entry.counts >= 0).all()
            assert np.isfinite(entry.means(len(entry.counts))).all()
    assert 0 < n_read < 600


def test_a_place_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none"):
        imatrix_file.write_imatrix(tmp_path / "none" / "m.gguf", matrix_of({"blk.0.a.weight": (4, 8)}))
    assert list(tmp_path.iterdir()) == []


# Encoding

SHAPES = {
    "blk.0.ffn_up_exps.weight": (3, 5, 256),
    "blk.0.attn_q.weight": (7, 256),
    "blk.0.attn_k.weight": (4, 256),
}


def rows_of(name: str) -> ggml.Floats:
    shape = SHAPES[name]
    return np.random.default_rng(1).standard_normal((math.prod(shape[:-1]), shape[-1]), dtype=np.float32)


@pytest.mark.parametrize("step", [1, 2, 4, 5, 7, 15])
def test_every_row_meets_the_importance_of_its_expert_however_it_is_cut(step: int) -> None:
    matrix = matrix_of(SHAPES)
    encode = imatrix.encoder(matrix, SHAPES)
    for name in SHAPES:
        rows, means = rows_of(name), matrix.entries[name].means(math.prod(SHAPES[name][:-2]))
        packed = [encode(name, i, rows[i : i + step], "Q4_K") for i in range(0, len(rows), step)]
        expected = [
            ggml.quantize_rows(rows[i : i + 1], "Q4_K", means[i // SHAPES[name][-2]])
            for i in range(len(rows))
        ]
        assert np.concatenate(packed).tobytes() == np.concatenate(expected).tobytes()
        assert np.concatenate(packed).tobytes() != ggml.quantize_rows(rows, "Q4_K").tobytes()


def test_a_tensor_without_an_entry_is_packed_without() -> None:
    encode = imatrix.encoder(matrix_of({"blk.0.attn_q.weight": (7, 256)}), SHAPES)
    rows = rows_of("blk.0.attn_k.weight")
    assert (
        encode("blk.0.attn_k.weight", 0, rows, "Q4_K").tobytes() == ggml.quantize_rows(rows, "Q4_K").tobytes()
    )
    with pytest.raises(UnsupportedError, match="IQ2_XXS cannot be quantized without"):
        encode("blk.0.attn_k.weight", 0, rows, "IQ2_XXS")


def test_a_matrix_of_another_model_is_refused() -> None:
    with pytest.raises(BadInputError, match="another model"):
        imatrix.encoder(matrix_of({"blk.9.attn_q.weight": (7, 256)}), SHAPES)
    with pytest.raises(BadInputError, match=r"512 values for blk\.0\.attn_q\.weight, which has 1 x 256"):
        imatrix.encoder(matrix_of({"blk.0.attn_q.weight": (7, 512)}), SHAPES)
    with pytest.raises(BadInputError, match=r"512 values for .*, which has 3 x 256"):
        imatrix.encoder(matrix_of({"blk.0.ffn_up_exps.weight": (2, 5, 256)}), SHAPES)


def test_importance_of_another_size_for_the_embedding_is_passed_over_as_in_llama_quantize() -> None:
    shapes = {"token_embd.weight": (9, 256), "blk.0.attn_q.weight": (7, 256)}
    matrix = matrix_of({"token_embd.weight": (9, 64), "blk.0.attn_q.weight": (7, 256)})
    rows = np.ones((9, 256), dtype=np.float32)
    packed = imatrix.encoder(matrix, shapes)("token_embd.weight", 0, rows, "Q4_K")
    assert packed.tobytes() == ggml.quantize_rows(rows, "Q4_K").tobytes()


def test_threads_that_start_together_build_the_tables_once_and_agree() -> None:
    """The lattices of IQ2 and IQ3 are made on first use, here by four threads at the same moment."""
    name = "blk.0.attn_q.weight"
    encode = imatrix.encoder(matrix_of(SHAPES), SHAPES)
    rows = rows_of(name)
    for type_name in ("IQ3_XXS", "IQ2_XXS"):
        with ThreadPoolExecutor(4) as pool:
            packed = {p.tobytes() for p in pool.map(lambda t: encode(name, 0, rows, t), [type_name] * 8)}
        assert packed == {encode(name, 0, rows, type_name).tobytes()}


def test_records_of_provenance_keep_their_bounds() -> None:
    for field, value in (("n_tokens", -1), ("chunk_tokens", 0), ("n_tokens", 1 << 60)):
        with pytest.raises(ValueError, match=field):
            provenance(**{field: value})


@pytest.mark.parametrize("type_name", mixture.TENSOR_TYPES)
def test_the_types_that_importance_weighs_are_those_of_ggml(type_name: str) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((8, 512)).astype(np.float32)
    uneven = np.exp(3 * rng.standard_normal(512)).astype(np.float32)
    packed = [ggml.quantize_rows(rows, type_name, weights) for weights in (uneven, np.ones_like(uneven))]
    assert bool((packed[0] != packed[1]).any()) == (type_name in mixture.WEIGHED)

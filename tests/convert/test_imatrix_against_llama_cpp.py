"""Importance matrices are those of llama-imatrix, and what is quantized with them is what llama-quantize writes."""

from __future__ import annotations

import concurrent.futures as futures
import functools
from pathlib import Path

import numpy as np
import pytest

from edgellm.api import launch, models
from edgellm.checkpoint import open_checkpoint
from edgellm.convert import imatrix, mixture, pipeline, writer
from edgellm.convert.imatrix import Calibration, ImportanceMatrix
from edgellm.convert.imatrix_file import read_imatrix, write_imatrix
from edgellm.native.llama import LlamaOptions
from tests.convert.conftest import OfType
from tests.convert.test_against_llama_cpp import tensor_differences
from tests.support import oracle, tiny_bert, tiny_gguf

N_EXPERTS = 4
TEXT = (Path(imatrix.__file__).parent / "check_text.txt").read_text(encoding="utf-8")
# One tensor each, so that one run of llama-quantize covers them all: building its tables of IQ2 and IQ1 takes seconds.
TYPE_OF = {
    "blk.0.attn_q": "IQ2_XXS", "blk.0.attn_k": "IQ2_XS", "blk.0.attn_v": "IQ2_S", "blk.0.attn_output": "IQ1_S",
    "blk.0.ffn_gate_exps": "IQ3_XXS", "blk.0.ffn_up_exps": "IQ3_S", "blk.0.ffn_down_exps": "IQ1_M",
    "blk.1.attn_q": "IQ4_NL", "blk.1.attn_k": "IQ4_XS", "blk.1.attn_v": "MXFP4", "blk.1.attn_output": "TQ1_0",
    "blk.1.ffn_gate_exps": "Q2_K", "blk.1.ffn_up_exps": "Q3_K", "blk.1.ffn_down_exps": "Q4_K",
    "blk.2.attn_q": "TQ2_0", "blk.2.attn_k": "Q4_0", "blk.2.attn_v": "Q4_1", "blk.2.attn_output": "Q5_0",
    "blk.2.ffn_gate_exps": "Q5_K", "blk.2.ffn_up_exps": "Q6_K", "blk.2.ffn_down_exps": "Q5_1",
    "blk.3.attn_q": "Q8_0", "blk.3.attn_k": "F16", "blk.3.attn_v": "BF16", "blk.3.attn_output": "Q2_K",
    "blk.3.ffn_gate_exps": "IQ2_XXS", "blk.3.ffn_up_exps": "IQ4_NL", "blk.3.ffn_down_exps": "IQ2_S",
    "^output": "IQ3_S", "token_embd": "Q4_K",
}  # fmt: skip
NEED_IMPORTANCE = {"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"}


@pytest.fixture(scope="module")
def experts_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of four experts with four layers, in F32."""
    path = tmp_path_factory.mktemp("tiny") / "experts.gguf"
    return tiny_gguf.write_tiny_gguf(path, n_experts=N_EXPERTS, n_layers=4)


@functools.cache
def collected(
    path: Path, n_characters: int, *, with_head: bool = False, is_encoder: bool = False
) -> ImportanceMatrix:
    model = models.open_backend(path, LlamaOptions(n_threads=1))
    text = TEXT[:n_characters]
    ids = model.tokenize(text, add_special=True, parse_special=False)
    try:
        return imatrix.collect(
            model,
            ids,
            Calibration("text.txt", text),
            model=path.stem,
            with_head=with_head,
            is_encoder=is_encoder,
        )
    finally:
        model.close()


def by_llama_imatrix(path: Path, folder: Path, n_characters: int, *options: str) -> Path:
    """One sequence in a batch: with several, llama-imatrix leaves out what remains of a batch under 16 tokens."""
    (folder / "text.txt").write_text(TEXT[:n_characters], encoding="utf-8")
    out = folder / "theirs.gguf"
    text = folder / "text.txt"
    oracle.tool(
        "llama-imatrix", "-m", path, "-f", text, "-o", out, "-t", "1", "-b", "512", "--no-ppl", *options, timeout_s=600
    )  # fmt: skip
    return out


def assert_same_matrix(ours: ImportanceMatrix, theirs: ImportanceMatrix) -> None:
    """Counts exactly, sums within float noise: llama-imatrix adds in float32, row by row."""
    assert ours.entries.keys() == theirs.entries.keys()
    for name, entry in ours.entries.items():
        other = theirs.entries[name]
        np.testing.assert_array_equal(entry.counts, other.counts, err_msg=name)
        assert entry.sums.shape == other.sums.shape
        np.testing.assert_allclose(
            entry.sums, other.sums, rtol=1e-4, atol=1e-6 * other.sums.mean(), err_msg=name
        )
    assert ours.provenance.n_tokens == theirs.provenance.n_tokens
    assert ours.provenance.text == theirs.provenance.text


def test_a_mixture_of_experts_gives_the_matrix_of_llama_imatrix(experts_path: Path, tmp_path: Path) -> None:
    theirs = read_imatrix(by_llama_imatrix(experts_path, tmp_path, 2100, "--process-output"))
    ours = collected(experts_path, 2100, with_head=True)
    assert_same_matrix(ours, theirs)
    assert "output.weight" in ours.entries
    routed = ours.entries["blk.1.ffn_down_exps.weight"].counts
    assert routed.shape == (N_EXPERTS,)
    assert len(set(routed)) > 1, "the text sends as much to each expert: this test could not tell them apart"
    assert routed.sum() == 2 * ours.entries["blk.1.attn_q.weight"].counts[0]


def test_an_encoder_gives_the_matrix_of_llama_imatrix(tmp_path: Path) -> None:
    directory = tiny_bert.write_readable_bert(tmp_path / "encoder", context=512)
    source, _ = pipeline.add_vocabulary(pipeline.read_source(open_checkpoint(directory)), launch.TOKENIZERS)
    path = tmp_path / "encoder.gguf"
    writer.write_gguf(path, source, source.base_types(), source.header, n_workers=1)
    theirs = read_imatrix(by_llama_imatrix(path, tmp_path, 3500, "-ub", "512"))
    assert_same_matrix(collected(path, 3500, is_encoder=True), theirs)


@pytest.fixture(scope="module")
def smollm2_matrix(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return by_llama_imatrix(smollm2_gguf, tmp_path_factory.mktemp("smollm2"), 4500, "--chunks", "1")


def test_smollm2_gives_the_matrix_of_llama_imatrix(smollm2_gguf: Path, smollm2_matrix: Path) -> None:
    theirs = read_imatrix(smollm2_matrix)
    model = models.open_backend(smollm2_gguf, LlamaOptions(n_threads=1))
    ids = model.tokenize(TEXT[:4500], add_special=True, parse_special=False)
    ours = imatrix.collect(
        model, ids, Calibration("text.txt", TEXT[:4500]), model="smollm2", max_chunks=1, with_head=True
    )
    model.close()
    head = ours.entries.pop("token_embd.weight")
    assert head.counts.tolist() == [512]
    assert_same_matrix(ours, theirs)


def test_llama_imatrix_reads_our_file_and_writes_it_again(experts_path: Path, tmp_path: Path) -> None:
    ours = collected(experts_path, 2100)
    write_imatrix(tmp_path / "ours.gguf", ours)
    again_path = tmp_path / "again.gguf"
    oracle.tool("llama-imatrix", "-m", experts_path, "--in-file", tmp_path / "ours.gguf", "-o", again_path)
    again = read_imatrix(again_path)
    assert again.entries.keys() == ours.entries.keys()
    for name, entry in again.entries.items():
        np.testing.assert_array_equal(entry.sums, ours.entries[name].sums)
        np.testing.assert_array_equal(entry.counts, ours.entries[name].counts)


def quantize(
    source_path: Path, out: Path, quant: str, matrix: ImportanceMatrix | None, overrides: mixture.Overrides
) -> None:
    """What a conversion writes, without its vocabulary and its manifest."""
    source = pipeline.read_source(open_checkpoint(source_path))
    types, _ = mixture.named_mix(
        mixture.find(quant),
        source.shape,
        source.base_types(),
        has_imatrix=matrix is not None,
        overrides=overrides,
    )
    encode = imatrix.encoder(matrix, source.shape.tensors) if matrix else None
    writer.write_gguf(out, source, types, source.header, n_workers=2, encode=encode)


@pytest.mark.parametrize(
    ("with_matrix", "type_name"), [(True, "F32"), (False, "F32"), (True, "BF16"), (True, "F16")]
)
def test_every_type_has_the_bytes_of_llama_quantize(
    with_matrix: bool, type_name: str, experts_path: Path, tmp_path: Path
) -> None:
    """Slabs of 2,000 rows span experts of 256 and 512 rows. From 16-bit sources, without the types that start slowly."""
    matrix = collected(experts_path, 2100, with_head=True) if with_matrix else None
    source = experts_path
    if type_name != "F32":
        source = tiny_gguf.write_tiny_gguf(
            tmp_path / "source.gguf", n_experts=N_EXPERTS, n_layers=4, type_name=type_name
        )
    slow = NEED_IMPORTANCE if type_name != "F32" or not with_matrix else set()
    chosen = {name: "Q4_K" if kind in slow else kind for name, kind in TYPE_OF.items()}
    options: list[str | Path] = []
    for name, kind in chosen.items():
        options += ["--tensor-type", f"{name}={kind}"]
    if matrix:
        write_imatrix(tmp_path / "matrix.gguf", matrix)
        options += ["--imatrix", tmp_path / "matrix.gguf"]
    arguments = [*options, source, tmp_path / "theirs.gguf", "Q4_0", "1"]
    overrides = mixture.Overrides(patterns=tuple(chosen.items()))
    with futures.ThreadPoolExecutor(1) as pool:  # both build their tables for seconds: at the same time
        theirs = pool.submit(oracle.tool, "llama-quantize", *arguments, timeout_s=800)
        quantize(source, tmp_path / "ours.gguf", "Q4_0", matrix, overrides)
        theirs.result()
    assert tensor_differences(tmp_path / "ours.gguf", tmp_path / "theirs.gguf") == []


@pytest.mark.timeout(900)
def test_smollm2_with_llama_imatrix_has_the_bytes_of_llama_quantize(
    smollm2_matrix: Path, by_llama_cpp: OfType, tmp_path: Path
) -> None:
    """Their matrix, read by both; rows of 576 take the types that stand in for Q4_K and Q6_K."""
    source, matrix = by_llama_cpp("bf16"), read_imatrix(smollm2_matrix)
    theirs = tmp_path / "theirs.gguf"
    oracle.tool("llama-quantize", "--imatrix", smollm2_matrix, source, theirs, "Q4_K_M", "2", timeout_s=800)
    quantize(source, tmp_path / "ours.gguf", "Q4_K_M", matrix, mixture.Overrides())
    assert tensor_differences(tmp_path / "ours.gguf", theirs) == []
    for path in tmp_path.glob("*.gguf"):
        path.unlink()

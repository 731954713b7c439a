"""Our own mixes against llama.cpp's named ones at their file sizes: KL divergence from BF16, on SmolLM2-135M.

Calibration sees the first half of a text, the measurement the second. Without a text neither side has one.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tests.conftest import USER_CACHE
from tests.support import oracle, smollm2
from tokenizers import Tokenizer

from edgellm import api
from edgellm.checkpoint import open_checkpoint
from edgellm.convert import pipeline, quality, search, writer
from edgellm.convert.chunks import CHUNK_TOKENS
from edgellm.machine import default_threads
from edgellm.native.llama import LlamaModel, LlamaOptions

SIZES = ("Q4_K_M", "Q4_0")
WANTED = {("Q4_K_M", True): "<= 0.8", ("Q4_K_M", False): "<= 0.9"}


class _Setting(NamedTuple):
    """What both sides work on; ids are of the second half of the text."""

    folder: Path
    reference: Path
    calibration: Path
    calibration_ids: list[int]
    ids: list[int]
    n_chunks: int
    n_calibration_chunks: int


def bench_quality(text: Path, n_chunks: int, n_calibration_chunks: int, imatrix: Path | None) -> None:
    """One row per size, with and without calibration text; llama-imatrix sees all of the first half.

    Args:
        imatrix: what it made before of the same text, since it takes minutes.
    """
    source = smollm2.cached_checkpoint(api.resolve("builtin:smollm2").path, USER_CACHE)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        api.convert(source, quant="BF16", output=folder / "bf16")
        words = text.read_text(encoding="utf-8")
        middle = words.index("\n", len(words) // 2) + 1
        (folder / "first.txt").write_text(words[:middle], encoding="utf-8")
        tokenizer = Tokenizer.from_file(str(folder / "bf16" / "tokenizer.json"))

        def encode(part: str) -> list[int]:
            ids: list[int] = tokenizer.encode(part, add_special_tokens=False).ids
            return ids

        setting = _Setting(
            folder, folder / "bf16" / "model.gguf", folder / "first.txt", encode(words[:middle]),
            _spread(encode(words[middle:]), n_chunks), n_chunks, n_calibration_chunks,
        )  # fmt: skip
        if imatrix is None:
            imatrix = folder / "imatrix.gguf"
            oracle.tool(
                "llama-imatrix", "-m", setting.reference, "-f", setting.calibration, "-o", imatrix,
                "-t", str(default_threads()), timeout_s=7200,
            )  # fmt: skip
        for with_text in (True, False):
            for quant in SIZES:
                _row(setting, quant, imatrix if with_text else None)


def _spread(ids: list[int], n_chunks: int) -> list[int]:
    """n_chunks chunks spread evenly over the text, one after the other."""
    n = CHUNK_TOKENS
    starts = np.linspace(0, len(ids) // n - 1, min(n_chunks, len(ids) // n)).astype(int) * n
    return [token for start in starts for token in ids[start : start + n]]


def _row(setting: _Setting, quant: str, imatrix: Path | None) -> None:
    theirs = setting.folder / "theirs.gguf"
    options: list[str | Path] = [] if imatrix is None else ["--imatrix", imatrix]
    oracle.tool("llama-quantize", *options, setting.reference, theirs, quant, str(default_threads()))
    ours = setting.folder / "ours.gguf"
    # llama-quantize notes its importance matrix in the header; the budget is the smaller file without that.
    max_bytes = _max_bytes(setting, quant)
    started = time.perf_counter()
    types = _make_ours(setting, ours, max_bytes, with_text=imatrix is not None)
    seconds = time.perf_counter() - started
    kl_theirs, kl_ours = (_divergence(setting, path) for path in (theirs, ours))
    text = "with the text" if imatrix else "without text"
    wanted = WANTED.get((quant, imatrix is not None), "as small as may be")
    ratio = kl_ours.kl_mean / kl_theirs.kl_mean
    print(f"{'KL at ' + quant + f's size, {text}: ours / llama.cpp':<58} {ratio:6.3f}  wanted {wanted}")
    for who, found, path in (("ours", kl_ours, ours), ("llama.cpp's", kl_theirs, theirs)):
        print(
            f"{'  ' + who:<58} {found.kl_mean:.5f} +- {found.kl_mean_error:.5f} nats, top-1 {found.top1_agreement:.4f}, "
            f"{path.stat().st_size:,} bytes"
        )
    print(f"{'  our search and writing':<58} {seconds:.0f} s;  {types}")
    sys.stdout.flush()


def _max_bytes(setting: _Setting, quant: str) -> int:
    plain = setting.folder / "size.gguf"
    oracle.tool("llama-quantize", setting.reference, plain, quant, str(default_threads()))
    size = plain.stat().st_size
    plain.unlink()
    return size


def _make_ours(setting: _Setting, path: Path, max_bytes: int, *, with_text: bool) -> str:
    source = pipeline.read_source(open_checkpoint(setting.reference))
    with tempfile.TemporaryDirectory(dir=setting.folder) as scratch:
        header_bytes = writer.header_bytes(source, source.base_types(), source.header, Path(scratch))
        mix = search.search(
            source, _load, Path(scratch), max_bytes=max_bytes, header_bytes=header_bytes, n_workers=default_threads(),
            text_ids=setting.calibration_ids if with_text else None, n_chunks=setting.n_calibration_chunks,
        )  # fmt: skip
        types = {**source.base_types(), **mix.allocation.types}
        written = writer.write_gguf(
            path, source, types, source.header, n_workers=default_threads(), encode=mix.encode
        )
    if written.file_bytes > max_bytes:
        sys.exit(f"error: {written.file_bytes} bytes written, {max_bytes} allowed")
    return "; ".join(reason.choice for reason in mix.allocation.reasons)


def _load(path: Path) -> LlamaModel:
    return LlamaModel(path, LlamaOptions(n_threads=default_threads()))


def _divergence(setting: _Setting, path: Path) -> quality.Divergence:
    reference, candidate = _load(setting.reference), _load(path)
    try:
        return quality.compare(reference, candidate, setting.ids, max_tokens=setting.n_chunks * CHUNK_TOKENS)
    finally:
        reference.close()
        candidate.close()

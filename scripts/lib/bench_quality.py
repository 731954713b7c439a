"""Our own mixes against llama.cpp's named ones at their file sizes: KL divergence from BF16, on SmolLM2-135M.

Calibration sees the first half of a text, the measurement the second. Without a text neither side has one.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from collections.abc import Sequence
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
from edgellm.convert.source import Source
from edgellm.machine import default_threads
from edgellm.native.llama import LlamaModel, LlamaOptions
from edgellm.protocols import Batcher, Feed, Sampled

SIZES = ("Q4_K_M", "Q4_0")
_NOTES_BYTES = 4096
WANTED = {("Q4_K_M", True): "<= 0.8", ("Q4_K_M", False): "<= 0.9"}


class _Setting(NamedTuple):
    """What both sides work on; ids are of the second half of the text."""

    folder: Path
    reference: Path
    source: Source
    calibration: Path
    calibration_ids: list[int]
    ids: list[int]
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
            folder, folder / "bf16" / "model.gguf", pipeline.read_source(open_checkpoint(folder / "bf16" / "model.gguf")),
            folder / "first.txt", encode(words[:middle]),
            _spread(encode(words[middle:]), n_chunks), n_calibration_chunks,
        )  # fmt: skip
        if imatrix is None:
            imatrix = folder / "imatrix.gguf"
            oracle.tool(
                "llama-imatrix", "-m", setting.reference, "-f", setting.calibration, "-o", imatrix,
                "-t", str(default_threads()), timeout_s=7200,
            )  # fmt: skip
        reference = _Remembered(setting.reference, folder)
        for with_text in (True, False):
            with tempfile.TemporaryDirectory(dir=folder) as place:
                measured = _measure(setting, Path(place), with_text=with_text)
                for quant in SIZES:
                    _row(setting, quant, imatrix if with_text else None, measured, reference)


def _spread(ids: list[int], n_chunks: int) -> list[int]:
    """n_chunks chunks spread evenly over the text, one after the other."""
    n = CHUNK_TOKENS
    starts = np.linspace(0, len(ids) // n - 1, min(n_chunks, len(ids) // n)).astype(int) * n
    return [token for start in starts for token in ids[start : start + n]]


def _measure(setting: _Setting, place: Path, *, with_text: bool) -> search.Measured:
    started = time.perf_counter(), time.process_time()
    source = setting.source
    measured = search.measure(
        source, _load, place, n_workers=default_threads(), n_chunks=setting.n_calibration_chunks,
        header_bytes=writer.header_bytes(source, source.header),
        text_ids=setting.calibration_ids if with_text else None,
    )  # fmt: skip
    seconds, cpu_seconds = time.perf_counter() - started[0], time.process_time() - started[1]
    text = "with the text" if with_text else "without text"
    print(
        f"{'measuring ' + text + ', for any budget':<58} {seconds:.0f} s, {cpu_seconds:.0f} s of processor time"
    )
    return measured


def _row(
    setting: _Setting, quant: str, imatrix: Path | None, measured: search.Measured, reference: _Remembered
) -> None:
    theirs = setting.folder / "theirs.gguf"
    options: list[str | Path] = [] if imatrix is None else ["--imatrix", imatrix]
    oracle.tool("llama-quantize", *options, setting.reference, theirs, quant, str(default_threads()))
    # With an importance matrix llama-quantize writes a few names more into the header; that is no room for us.
    max_bytes = theirs.stat().st_size - (0 if imatrix is None else _NOTES_BYTES)
    ours = setting.folder / "ours.gguf"
    started = time.process_time()
    types = _write_ours(setting, ours, measured.mix(max_bytes), max_bytes)
    cpu_seconds = time.process_time() - started
    found = {path: _divergence(setting, reference, path) for path in (ours, theirs)}
    text = "with the text" if imatrix else "without text"
    wanted = WANTED.get((quant, imatrix is not None), "as small as may be")
    ratio = found[ours].kl_mean / found[theirs].kl_mean
    print(f"{'KL at ' + quant + ' size, ' + text + ': ours / llama.cpp':<58} {ratio:6.3f}  wanted {wanted}")
    for who, path in (("ours", ours), ("llama.cpp's", theirs)):
        figures = found[path]
        print(
            f"{'  ' + who:<58} {figures.kl_mean:.5f} +- {figures.kl_mean_error:.5f} nats, "
            f"top-1 {figures.top1_agreement:.4f}, {path.stat().st_size:,} bytes"
        )
    print(f"{'  writing ours':<58} {cpu_seconds:.0f} s of processor time;  {types}")
    sys.stdout.flush()


def _write_ours(setting: _Setting, path: Path, mix: search.Mix, max_bytes: int) -> str:
    source = setting.source
    types = {**source.base_types(), **mix.allocation.types}
    written = writer.write_gguf(
        path, source, types, source.header, n_workers=default_threads(), encode=mix.encode,
        slab_weights=search.SLAB_WEIGHTS,
    )  # fmt: skip
    if written.file_bytes > max_bytes:
        sys.exit(f"error: {written.file_bytes} bytes written, {max_bytes} allowed")
    return "; ".join(reason.choice for reason in mix.allocation.reasons)


def _load(path: Path) -> LlamaModel:
    return LlamaModel(path, LlamaOptions(n_threads=default_threads()))


def _divergence(setting: _Setting, reference: _Remembered, path: Path) -> quality.Divergence:
    candidate = _load(path)
    try:
        return quality.compare(reference, candidate, setting.ids, max_tokens=len(setting.ids))
    finally:
        candidate.close()


class _Remembered:
    """The reference model, run once: a second question with the same tokens is answered from files."""

    def __init__(self, path: Path, folder: Path) -> None:
        self._backend = _load(path)
        self._folder = folder
        self.vocab_size = self._backend.vocab_size
        self.add_bos, self.bos_id = self._backend.add_bos, self._backend.bos_id

    def open(self, *, n_sequences: int, context: int) -> _Remembering:
        return _Remembering(self._backend.open(n_sequences=n_sequences, context=context), self._folder)


class _Remembering:
    """One sequence; what was fed is run only when an answer is not in the files."""

    def __init__(self, batcher: Batcher, folder: Path) -> None:
        self._batcher, self._folder = batcher, folder
        self._fed: list[int] = []

    def step(self, feeds: Sequence[Feed]) -> list[Sampled]:
        (feed,) = feeds
        self._fed += feed.tokens
        if feed.want == "none":
            return [Sampled(tokens=[])]
        name = hashlib.sha256(repr((self._fed, len(feed.tokens))).encode()).hexdigest()
        path = self._folder / f"{name}.npy"
        if path.exists():
            return [Sampled(tokens=[], logits=np.load(path))]
        behind = self._fed[self._batcher.length(0) : -len(feed.tokens)]
        if behind:
            self._batcher.step([Feed(sequence=0, tokens=behind)])
        found = self._batcher.step([feed])
        logits = found[0].logits
        assert logits is not None
        np.save(path, logits)
        return found

    def free(self, sequence: int) -> None:
        self._fed = []
        self._batcher.free(sequence)

    def close(self) -> None:
        self._batcher.close()

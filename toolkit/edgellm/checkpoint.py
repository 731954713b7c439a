"""Checkpoint: a source model as lazily read data, from a Hugging Face directory or a GGUF file.

Nothing here runs code from a repository: config.json is plain JSON, tensors are safetensors or GGUF, and every name
in a file goes through one `safe_join`. Pickled weights are refused, with no flag to allow them.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

from edgellm.errors import BadInputError, MissingInputError, UnsafeInputError
from edgellm.formats import ggml_types, gguf, plain_json, safetensors
from edgellm.formats.gguf_checked import read_checked
from edgellm.formats.paths import open_regular, safe_join
from edgellm.formats.records import read_bounded

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
MAX_TEMPLATE_BYTES = 1 << 20
INDEX = "model.safetensors.index.json"
_OF_A_SET = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.safetensors")
# Older forms of a tokenizer, read where there is no tokenizer.json; one line of these is one form.
TOKENIZER_FORMS = (
    ("tokenizer.model",), ("spiece.model",), ("sentencepiece.bpe.model",), ("vocab.json", "merges.txt"), ("vocab.txt",),
)  # fmt: skip


class SourceTensor(NamedTuple):
    """A tensor that can be read: its type, its shape (rows first) and where its bytes are.

    The type is ggml's name. Old repositories hold masks of other types (BOOL), which a family skips or refuses.
    """

    name: str
    type_name: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    n_bytes: int


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A source model.

    Attributes:
        kind: `hf` for a Hugging Face directory, `gguf` for one file.
        path: the directory or the file.
        config: config.json as plain data; empty for a GGUF.
        tensors: by the source's own names, in file order.
        files: every file the conversion reads, for provenance.
        tokenizer_path: tokenizer.json, where there is one.
        tokenizer_files: the files of an older form of tokenizer by name, where there is no tokenizer.json.
        special_tokens_map, generation_config, added_tokens: those JSON files; empty where absent.
        tokenizer_json: what an artifact carries as tokenizer.json where that is not the file at `tokenizer_path`.
        gguf: the parsed header, for a GGUF.
        revision: the commit on the hub, where it came from there.
        has_weights: False for a plan of a model that is still on the hub: its tensors have shapes and no values.
    """

    kind: Literal["hf", "gguf"]
    name: str
    path: Path
    config: dict[str, Any]
    tensors: dict[str, SourceTensor]
    files: tuple[Path, ...]
    tokenizer_path: Path | None
    tokenizer_config: dict[str, Any]
    chat_template: str | None
    licence: str | None
    gguf: gguf.GGUFFile | None = None
    revision: str | None = None
    has_weights: bool = True
    tokenizer_files: dict[str, Path] = dataclasses.field(default_factory=dict)
    special_tokens_map: dict[str, Any] = dataclasses.field(default_factory=dict)
    generation_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    added_tokens: dict[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer_json: bytes | None = None

    def name_of(self, file: Path) -> str:
        """The name of one of its files: relative to its directory, with `/` between folders."""
        directory = self.path if self.kind == "hf" else self.path.parent
        return file.relative_to(directory).as_posix() if file.is_relative_to(directory) else file.name


def open_checkpoint(path: Path, *, name: str | None = None) -> Checkpoint:
    """Open a Hugging Face directory or a GGUF file.

    Args:
        name: what to call the model; by default from the path.

    Raises:
        MissingInputError: nothing there, or no weights in it.
        BadInputError: malformed files.  UnsafeInputError: only pickled weights, or a name that leaves the directory.
    """
    if path.is_dir():
        return _open_directory(path, name or path.resolve().name)
    if path.is_file():
        return _open_gguf(path, name or path.stem)
    raise MissingInputError(
        f"no model at {str(path)!r}",
        hint="give a Hugging Face directory, a .gguf file, a model on the hub (org/name), or builtin:smollm2",
    )


def _open_directory(directory: Path, name: str) -> Checkpoint:
    config_path = _optional(directory, "config.json")
    if config_path is None:
        raise MissingInputError(
            f"{directory}: no config.json, so not a Hugging Face model directory",
            hint="give the directory that holds config.json and *.safetensors, or a .gguf file",
        )
    config = plain_json.read_json(config_path)
    shards, weight_map = _shards(directory)
    tensors = _tensors(directory, shards, weight_map)
    tokenizer_path = _optional(directory, "tokenizer.json")
    older = {} if tokenizer_path else _older_tokenizer(directory)
    names = (
        "tokenizer_config.json",
        "special_tokens_map.json",
        "generation_config.json",
        "added_tokens.json",
    )
    paths = {name: path for name in names if (path := _optional(directory, name))}
    settings = {name: plain_json.read_json(paths[name]) if name in paths else {} for name in names}
    tokenizer_config = settings["tokenizer_config.json"]
    files = [
        config_path,
        *shards,
        *([tokenizer_path] if tokenizer_path else []),
        *older.values(),
        *paths.values(),
    ]
    return Checkpoint(
        kind="hf",
        name=name,
        path=directory,
        config=config,
        tensors=tensors,
        files=tuple(files),
        tokenizer_path=tokenizer_path,
        tokenizer_config=tokenizer_config,
        chat_template=_chat_template(directory, tokenizer_config),
        licence=_licence(directory),
        tokenizer_files=older,
        special_tokens_map=settings["special_tokens_map.json"],
        generation_config=settings["generation_config.json"],
        added_tokens=settings["added_tokens.json"],
    )


def _older_tokenizer(directory: Path) -> dict[str, Path]:
    """The first of the older forms that is whole."""
    for form in TOKENIZER_FORMS:
        found = {name: path for name in form if (path := _optional(directory, name))}
        if len(found) == len(form):
            return found
    return {}


def _shards(directory: Path) -> tuple[list[Path], dict[str, str]]:
    """The files of weights, and for several of them the index: tensor -> name of its shard.

    As in transformers, an index beside a single file of weights is of no account.
    """
    single = _optional(directory, "model.safetensors")
    if single:
        return [single], {}
    index_path = _optional(directory, INDEX)
    if index_path:
        weight_map = safetensors.read_index(index_path)
        names = sorted(set(weight_map.values()))
        shards = [safe_join(directory, name) for name in names]
        for shard in shards:
            if not shard.is_file():
                raise MissingInputError(f"{shard}: named in {index_path.name} but not there")
        _refuse_unnamed_shards(shards)
        return shards, weight_map
    pickles = sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))
    if pickles:
        raise UnsafeInputError(
            f"{directory}: its only weights are pickles ({', '.join(pickles[:3])}), which can run code when read",
            hint="get the model's safetensors files, or convert it with its own tools first",
        )
    raise MissingInputError(
        f"{directory}: no model.safetensors and no model.safetensors.index.json",
        hint="download the *.safetensors files of the model",
    )


def _refuse_unnamed_shards(shards: list[Path]) -> None:
    """A further file of the same numbered set: either the index or the file is not this model's."""
    named = {(shard.parent, shard.name) for shard in shards}
    sets = {
        (shard.parent, found["stem"], found["count"])
        for shard in shards
        if (found := _OF_A_SET.fullmatch(shard.name))
    }
    for folder in sorted({folder for folder, _, _ in sets}):
        for path in sorted(folder.glob("*.safetensors")):
            found = _OF_A_SET.fullmatch(path.name)
            if found and (folder, found["stem"], found["count"]) in sets and (folder, path.name) not in named:
                raise BadInputError(
                    f"{path}: a shard of {path.lstat().st_size} bytes that {INDEX} does not name",
                    hint="download the index and all shards of one revision again, or remove the file",
                )


def _tensors(directory: Path, shards: list[Path], weight_map: dict[str, str]) -> dict[str, SourceTensor]:
    """The tensors of all shards by name, each where the index says it is."""
    tensors: dict[str, SourceTensor] = {}
    copies: dict[str, str] = {}
    for shard in shards:
        file = safetensors.read_safetensors(shard)
        copies |= {name: kept for name, kept in file.metadata.items() if kept in file.tensors}
        for view in file.tensors.values():
            if view.name in tensors:
                raise BadInputError(
                    f"{shard}: tensor {view.name!r} is also in {tensors[view.name].path.name}"
                )
            tensors[view.name] = SourceTensor(
                view.name, view.dtype, view.shape, shard, view.offset, view.n_bytes
            )
    for name, shard_name in weight_map.items():
        found = tensors.get(name)
        if found is None and name in copies:
            continue  # the Hub's converter keeps one of two equal tensors, and says in the metadata which
        if found is None or found.path != safe_join(directory, shard_name):
            where = f"; it is in {found.path.name}" if found else ""
            raise BadInputError(
                f"{directory / INDEX}: names tensor {name!r} in {shard_name}, which has none of that name{where}",
                hint="download the index and all shards of one revision again",
            )
    return tensors


def _optional(directory: Path, name: str) -> Path | None:
    """A file of the directory if it is there; what is there and is no file, or a link out of the directory, is refused."""
    path = safe_join(directory, name)
    if path.is_file():
        return path
    if os.path.lexists(path):
        raise BadInputError(f"{path}: {'a link to nothing' if path.is_symlink() else 'not a regular file'}")
    return None


def _chat_template(directory: Path, tokenizer_config: dict[str, Any]) -> str | None:
    separate = _optional(directory, "chat_template.jinja")
    if separate is not None:
        try:
            return read_bounded(separate, MAX_TEMPLATE_BYTES).decode("utf-8")
        except UnicodeDecodeError as err:
            raise BadInputError(f"{separate}: not UTF-8 text: {err}") from err
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        rows = [row for row in template if isinstance(row, dict) and row.get("name") == "default"]
        template = rows[0].get("template") if rows else None
    return template if isinstance(template, str) else None


def _licence(directory: Path) -> str | None:
    """The `license:` line of the model card's front matter."""
    try:
        with open_regular(safe_join(directory, "README.md")) as (file, _):
            text = file.read(8192).decode("utf-8", errors="replace")
    except (BadInputError, MissingInputError):
        return None
    if not text.startswith("---"):
        return None
    for line in text.splitlines()[1:]:
        if line.strip() == "---":
            break
        key, _, value = line.partition(":")
        if key.strip() == "license" and value.strip():
            return value.strip()[:100]
    return None


def _open_gguf(path: Path, name: str) -> Checkpoint:
    file = read_checked(path, keep=True)
    tensors = {
        t.name: SourceTensor(t.name, t.type_name, t.shape, path, t.offset, t.n_bytes)
        for t in file.tensors.values()
    }
    unreadable = next((t for t in tensors.values() if t.type_name not in ggml_types.BY_NAME), None)
    if unreadable:
        raise BadInputError(
            f"{path}: tensor {unreadable.name!r} has type {unreadable.type_name}, which is not known"
        )
    template = file.metadata.get("tokenizer.chat_template")
    licence = file.metadata.get("general.license")
    return Checkpoint(
        kind="gguf",
        name=name,
        path=path,
        config={},
        tensors=tensors,
        files=(path,),
        tokenizer_path=None,
        tokenizer_config={},
        chat_template=str(template.value) if template else None,
        licence=str(licence.value) if licence else None,
        gguf=file,
    )

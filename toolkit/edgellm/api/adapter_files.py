"""LoRA adapters as files: found, validated, and compared with the model before native code sees either."""

from __future__ import annotations

from pathlib import Path

from edgellm.errors import BadInputError, MissingInputError
from edgellm.formats.gguf import GGUFFile, read_gguf

_KINDS = {"mmproj": "a multimodal projector", "imatrix": "an importance matrix"}
_TRANSPOSED = "token_embd.weight"  # its two factors change places


def read(path: Path, model: GGUFFile) -> Path:
    """The GGUF file of an adapter of this model.

    Args:
        path: the file, or a directory that `convert` made.

    Raises:
        MissingInputError: nothing there.  BadInputError: malformed, no adapter, or one of another model.
    """
    place = find(path)
    file = read_gguf(place)
    kind = file.get("general.type", str, "model")
    if kind != "adapter":
        raise BadInputError(
            f"{place}: {_KINDS.get(kind, 'a model')}, not an adapter", hint="load it by itself"
        )
    _check_base(file, model)
    return place


def find(path: Path) -> Path:
    """The GGUF file that `read` reads.

    Raises:
        MissingInputError: nothing there.  BadInputError: a model's directory.
    """
    place = path.expanduser()
    if place.is_dir():
        if (place / "model.gguf").is_file():
            raise BadInputError(f"{place}: a model, not an adapter", hint="load it by itself")
        place = place / "adapter.gguf"
    if not place.is_file():
        raise MissingInputError(
            f"no adapter at {str(path)!r}", hint="make one: edgellm convert BASE --lora DIR --lora-as adapter"
        )
    return place


def _check_base(adapter: GGUFFile, model: GGUFFile) -> None:
    """Refuse an adapter of another base; llama.cpp would do so too, in other words."""
    where = adapter.path.name
    base = adapter.get("general.base_model.0.name", str, "")[:80]
    made_for = f" (made for {base!r})" if base else ""
    hint = f"load it with the model that it was made for{f', {base!r}' if base else ''}"
    theirs, ours = (file.get("general.architecture", str, "") for file in (adapter, model))
    if theirs != ours:
        raise BadInputError(
            f"{where}: an adapter of another model{made_for}: its architecture is {theirs!r}, {model.path.name} is {ours!r}",
            hint=hint,
        )
    for name, tensor in adapter.tensors.items():
        weight, _, factor = name.rpartition(".")
        if factor not in ("lora_a", "lora_b"):
            continue
        matrix = model.tensors.get(weight)
        if matrix is None:
            raise BadInputError(
                f"{where}: an adapter of another model{made_for}: it changes {weight!r}, which {model.path.name} lacks",
                hint=hint,
            )
        at = -1 if factor == "lora_a" else -2
        if weight != _TRANSPOSED and (
            min(len(tensor.shape), len(matrix.shape)) < 2 or tensor.shape[at] != matrix.shape[at]
        ):
            raise BadInputError(
                f"{where}: an adapter of another model{made_for}: {name!r} has shape {tensor.shape}, "
                f"{weight!r} of {model.path.name} has {matrix.shape}",
                hint=hint,
            )

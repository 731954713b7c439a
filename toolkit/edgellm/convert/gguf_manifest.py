"""A manifest for a GGUF that stands alone, from its header. Imports little: a model that is only run comes through here."""

from __future__ import annotations

from edgellm import artifact
from edgellm.artifact import Manifest, Parent
from edgellm.checkpoint import Checkpoint
from edgellm.convert.header_keys import MIX_KEY, PARENT_KEY
from edgellm.convert.quants import QUANTS
from edgellm.convert.source import from_gguf
from edgellm.errors import BadInputError
from edgellm.formats.gguf import GGUFFile
from edgellm.shape import n_elements, tensor_bytes


def manifest_of_gguf(checkpoint: Checkpoint) -> Manifest:
    """A manifest for a plain GGUF made elsewhere, derived from its header; nothing is hashed."""
    source = from_gguf(checkpoint)
    file = checkpoint.gguf
    assert file is not None
    types = source.base_types()
    n_params = sum(n_elements(t.shape) for t in source.tensors)
    size = sum(tensor_bytes(t.shape, types[t.name]) for t in source.tensors)
    file_type = file.get("general.file_type", int, None)
    return Manifest(
        schema=artifact.MANIFEST_SCHEMA,
        model=checkpoint.name,
        revision=None,
        architecture=source.shape.architecture,
        format="gguf",
        quant=file.get(MIX_KEY, str, None) or _quant_name(file_type),
        n_params=n_params,
        file_bytes=file.file_bytes,
        bpw=8 * size / n_params if n_params else 0.0,
        context_train=source.shape.context_train,
        target="not stated",
        recipe=None,
        files=[],
        parents=_embedded_parents(file),
        tool_versions={},
        argv=[],
        licence=checkpoint.licence,
        created_at=None,
    )


def _embedded_parents(file: GGUFFile) -> list[Parent]:
    """What the header says it was made from; sizes are not said there."""
    parents = []
    for key, entry in file.metadata.items():
        if key.startswith(PARENT_KEY) and isinstance(entry.value, str):
            try:
                parents.append(Parent(name=key.removeprefix(PARENT_KEY), n_bytes=None, sha256=entry.value))
            except ValueError as err:
                raise BadInputError(f"{file.path}: header key {key[:80]!r}: {err}") from err
    return parents


def _quant_name(file_type: int | None) -> str:
    names = {quant.file_type: quant.name for quant in QUANTS.values()}
    return "not stated" if file_type is None else names.get(file_type, f"file type {file_type}")

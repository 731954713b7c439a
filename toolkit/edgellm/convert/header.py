"""What edgellm says of a model in its GGUF header, beside what the model says itself, and how many bytes that takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from edgellm.artifact import Recipe
from edgellm.convert import chat_templates, mixture, tokenizer, writer
from edgellm.convert.header_keys import MANIFEST_KEY, MIX_KEY, PARENT_KEY
from edgellm.convert.source import HeaderValue, Source
from edgellm.convert.vocabulary.model_name import model_name
from edgellm.formats.records import replace
from edgellm.shape import tensor_bytes

QUANTIZATION_VERSION = 2
_HEX_DIGITS = 64  # of a sha256


def model_header(source: Source, recipe: Recipe) -> dict[str, HeaderValue]:
    """The header of the GGUF that the recipe describes.

    A mix of our own bears the file type of the named mix that it has most bytes of, and its own name beside it.
    """
    header = {key: value for key, value in source.header.items() if key != MIX_KEY}
    header["general.quantization_version"] = HeaderValue("UINT32", QUANTIZATION_VERSION)
    if recipe.quant.startswith(mixture.MIX):
        header[MIX_KEY] = HeaderValue("STRING", recipe.quant)
    return header | {"general.file_type": HeaderValue("UINT32", _file_type(source, recipe))}


def with_provenance(source: Source, parents: Mapping[str, str], manifest_sha256: str) -> Source:
    """The source with the hash of every file it was read from in its header, for a model that leaves its manifest.

    Args:
        parents: name -> sha256.
        manifest_sha256: see `artifact.manifest_sha256`.
    """
    hashes = {f"{PARENT_KEY}{name}": HeaderValue("STRING", sha256) for name, sha256 in parents.items()}
    hashes[MANIFEST_KEY] = HeaderValue("STRING", manifest_sha256)
    kept = {key: value for key, value in source.header.items() if not key.startswith(PARENT_KEY)}
    return dataclasses.replace(source, header=kept | hashes)


def mix_header_bytes(source: Source, recipe: Recipe) -> int:
    """Bytes that the header of a mix takes at most: its name and the hashes are not known yet, their lengths are."""
    return writer.header_bytes(source, _mix_header(source, recipe, f"{mixture.MIX}_00.00"))


def least_mix_header_bytes(source: Source, recipe: Recipe, *, chat_template: str | None) -> int:
    """Bytes that the header of a mix takes at least, before it is known how llama.cpp has to read the vocabulary.

    Added later are the name of a pre-tokenizer and which tokens begin and end a text: below 300 bytes. Of a SentencePiece
    vocabulary also, where llama.cpp reads it rightly only so, two bytes for each space in an added token, or all merges.

    Args:
        source: without its vocabulary, unless it is a GGUF.
        chat_template: as in `pipeline.add_vocabulary`.

    Raises:
        As `tokenizer.read_vocabulary` and `chat_templates.choose_chat_template`.
    """
    checkpoint = source.checkpoint
    template, reason = chat_templates.choose_chat_template(checkpoint, chat_template)
    header = _mix_header(source, recipe, f"{mixture.MIX}_0.00")
    if checkpoint.kind == "gguf":
        if template is not None and reason is not None:
            header["tokenizer.chat_template"] = HeaderValue("STRING", template)
        return writer.header_bytes(source, header)
    vocabulary = tokenizer.read_vocabulary(checkpoint, source.shape.vocab_size)
    header["general.name"] = HeaderValue("STRING", model_name(checkpoint.name, vocabulary))
    header |= vocabulary.header("default", template)
    changes = []
    for candidate in vocabulary.candidates:
        entries = candidate.header()
        replaced = {key: header[key] for key in entries if key in header}
        changes.append(writer.entries_bytes(entries) - writer.entries_bytes(replaced))
    return writer.header_bytes(source, header, more_bytes=min(changes))


def _mix_header(source: Source, recipe: Recipe, name: str) -> dict[str, HeaderValue]:
    unknown = "0" * _HEX_DIGITS
    hashes = {source.checkpoint.name_of(path): unknown for path in source.checkpoint.files}
    named = replace(recipe, quant=name, tensor_types=source.base_types())
    return model_header(with_provenance(source, hashes, unknown), named)


def _file_type(source: Source, recipe: Recipe) -> int:
    if not recipe.quant.startswith(mixture.MIX):
        return mixture.find(recipe.quant).file_type
    sizes: dict[str, int] = {}
    for name, kind in recipe.tensor_types.items():
        sizes[kind] = sizes.get(kind, 0) + tensor_bytes(source.shape.tensors[name], kind)
    by_base = {quant.base: quant.file_type for quant in reversed(mixture.QUANTS.values())}
    return by_base[max((kind for kind in sizes if kind in by_base), key=lambda kind: sizes[kind])]

"""An adapter added to a base, row by row, while the base is converted; and where in the base its modules are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from edgellm.artifact import Reason, Recipe
from edgellm.checkpoint import Checkpoint, SourceTensor
from edgellm.convert import rows
from edgellm.convert.architectures import FAMILIES
from edgellm.convert.architectures.family import Family
from edgellm.convert.lora.adapter import Adapter, Pair
from edgellm.convert.lora.config import MERGE_WITH_PEFT
from edgellm.convert.source import HeaderValue, LowRank, Part, Source
from edgellm.errors import BadInputError, UnsupportedError
from edgellm.formats import ggml_types, records
from edgellm.native import ggml

_SLAB_WEIGHTS = 1 << 19
_SAID = "merge LoRA adapter "
TABLES = ("token_embd.weight", "position_embd.weight", "token_types.weight")


def merge(source: Source, adapter: Adapter) -> Source:
    """The source whose rows are W + scale * B @ A, computed in float32 as they are read.

    Types, order of rows and header stay the base's; its name becomes BASE+ADAPTER, and the adapter's files are
    among the checkpoint's.

    Raises:
        UnsupportedError: the base is a GGUF, or the adapter changes what the base shares or llama.cpp has not.
        BadInputError: the adapter is for another base; the message says which tensor does not fit.
    """
    added: dict[int, LowRank] = {}
    for pair, tensor in fit(source, adapter):
        product = (
            LowRank(pair.a, pair.b, pair.scale, transposed=True)
            if pair.embedding
            else LowRank(pair.b, pair.a, pair.scale)
        )
        added[id(tensor)] = product

    def with_product(part: Part) -> Part:
        return part._replace(low_rank=added.get(id(part.origin)))

    tensors = tuple(t._replace(parts=tuple(map(with_product, t.parts))) for t in source.tensors)
    name = f"{source.checkpoint.name}+{adapter.name}"
    header = dict(source.header)
    if "general.name" in header:
        header["general.name"] = HeaderValue("STRING", name)
    checkpoint = dataclasses.replace(
        source.checkpoint, name=name, files=(*source.checkpoint.files, *adapter.files)
    )
    return dataclasses.replace(source, checkpoint=checkpoint, tensors=tensors, header=header)


def say_merged(recipe: Recipe, adapter: Adapter) -> Recipe:
    """The recipe with the merge among its steps and reasons."""
    said = f"{_SAID}{adapter.name}"
    reason = Reason(choice=said, because=f"asked for: {adapter.describe()}")
    return records.replace(
        recipe,
        steps=[*recipe.steps[:1], f"{said} in float32: {adapter.describe()}", *recipe.steps[1:]],
        reasons=[*recipe.reasons, reason],
    )


def merged_name(recipe: Recipe | None) -> str | None:
    """The name of the adapter that a recipe says was merged; None where it says none."""
    choices = (reason.choice for reason in recipe.reasons) if recipe else ()
    return next((choice.removeprefix(_SAID) for choice in choices if choice.startswith(_SAID)), None)


def fit(source: Source, adapter: Adapter) -> list[tuple[Pair, SourceTensor]]:
    """Every pair with the base's tensor that it changes, once shapes are checked and saved copies compared.

    Raises:
        UnsupportedError, BadInputError: as in `merge`.
    """
    checkpoint = source.checkpoint
    if checkpoint.kind != "hf":
        raise UnsupportedError(
            f"{checkpoint.path}: a PEFT adapter names the tensors of a Hugging Face checkpoint, this base is a GGUF",
            hint="give the Hugging Face directory of the base",
        )
    family = FAMILIES[checkpoint.config["architectures"][0]]
    stored = _stored_weights(source, family)
    tied = not family.is_encoder and _head_is_embedding(source)
    fitted: dict[str, tuple[Pair, SourceTensor]] = {}
    for pair in adapter.pairs.values():
        name = family.bare(f"{pair.module}.weight")
        kind = family.outside.get(name)
        if tied and kind in ("output.weight", "token_embd.weight"):
            raise UnsupportedError(
                f"{pair.a.path}: module {pair.module!r} is changed, but the base's output head is its input embedding",
                hint="merge it with PEFT (merge_and_unload), save the model untied, and convert that",
            )
        if name not in stored:
            raise BadInputError(
                f"{pair.a.path}: tensor {pair.a.name!r} has no counterpart: {checkpoint.name} has no {name!r}",
                hint=_which_base(adapter),
            )
        tensor, shape = stored[name]
        if shape != pair.weight_shape or pair.embedding != (kind in TABLES):
            raise BadInputError(
                f"{pair.a.path}: module {pair.module!r} has A {list(pair.a.shape)} and B {list(pair.b.shape)}, which change "
                f"{'an embedding' if pair.embedding else 'a weight'} of shape {list(pair.weight_shape)}; "
                f"{checkpoint.name} has {list(shape)}",
                hint=_which_base(adapter),
            )
        if name in fitted:
            raise BadInputError(
                f"{pair.a.path}: modules {fitted[name][0].module!r} and {pair.module!r} are one in {checkpoint.name}",
                hint=MERGE_WITH_PEFT,
            )
        fitted[name] = (pair, tensor)
    own_names = {family.bare(name): copy for name, copy in adapter.copies.items()}
    _check_copies(own_names, stored, checkpoint)
    return list(fitted.values())


def _head_is_embedding(source: Source) -> bool:
    """Whether one tensor is both: there is no head, or it comes from the same place."""
    origins = {t.name: id(t.parts[0].origin) for t in source.tensors}
    return origins.get("output.weight", origins["token_embd.weight"]) == origins["token_embd.weight"]


def _which_base(adapter: Adapter) -> str:
    base = adapter.config.base_name
    return f"it was trained on {base!r}" if base else "convert it with the base it was trained on"


def _stored_weights(source: Source, family: Family) -> dict[str, tuple[SourceTensor, tuple[int, ...]]]:
    """Bare name -> the checkpoint's tensor and its shape, rows first, whichever way it is stored."""
    stored = {}
    for tensor in source.tensors:
        for part in tensor.parts:
            if isinstance(part.origin, SourceTensor):
                shape = part.origin.shape[::-1] if part.transposed else part.origin.shape
                stored[family.bare(part.origin.name)] = (part.origin, shape)
    return stored


def _check_copies(
    copies: dict[str, SourceTensor],
    stored: dict[str, tuple[SourceTensor, tuple[int, ...]]],
    base: Checkpoint,
) -> None:
    """PEFT saves an embedding that it targets or that was resized; only the base's own may be left out."""
    for name, copy in copies.items():
        place = stored.get(name)
        same = place is not None and place[0].shape == copy.shape
        if place is not None and same and base.has_weights:
            same = all(_equal_slabs(place[0], copy))
        if not same:
            expected = f"shape {list(place[0].shape)}" if place else "no such tensor"
            raise UnsupportedError(
                f"{copy.path}: tensor {copy.name!r} of shape {list(copy.shape)} is not the base's own ({base.name}: {expected}): "
                "a trained or resized weight cannot be converted",
                hint=MERGE_WITH_PEFT,
            )


def _equal_slabs(base: SourceTensor, copy: SourceTensor) -> Iterator[bool]:
    """Slab by slab: whether the base's values, rounded to the copy's type, are those of the copy."""
    n_columns = base.shape[-1]
    n_rows = base.n_bytes // ggml_types.BY_NAME[base.type_name].row_bytes(n_columns)
    step = max(1, _SLAB_WEIGHTS // n_columns)
    with rows.Readers() as readers:
        for low in range(0, n_rows, step):
            high = min(low + step, n_rows)
            floats = rows.float_rows(Part(base, n_rows), n_columns, low, high, readers)
            packed = rows.packed_rows(Part(copy, n_rows), n_columns, low, high, readers)
            try:
                yield np.array_equal(ggml.quantize_rows(floats, copy.type_name), packed)
            except BadInputError:  # beyond what the copy's type holds
                yield False

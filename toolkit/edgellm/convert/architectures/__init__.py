"""Model families, one file each; adding a family is one file and one row here and in the tests."""

from __future__ import annotations

from edgellm.checkpoint import Checkpoint
from edgellm.convert.architectures import llama
from edgellm.convert.architectures.family import Family
from edgellm.convert.source import Source
from edgellm.errors import BadInputError, UnsupportedError
from edgellm.registry import unknown

FAMILIES: dict[str, Family] = {name: family for family in (llama.FAMILY,) for name in family.classes}


def read_source(checkpoint: Checkpoint) -> Source:
    """The checkpoint's tensors and header in GGUF's terms (without its vocabulary).

    Raises:
        UnsupportedError: a family not known here; the hint names the nearest.
        BadInputError: the configuration and the tensors disagree.
    """
    classes = checkpoint.config.get("architectures")
    if not isinstance(classes, list) or not classes or not isinstance(classes[0], str):
        raise BadInputError(
            f"{checkpoint.path / 'config.json'}: `architectures` is {classes!r}, expected a list of names"
        )
    family = FAMILIES.get(classes[0])
    if family is None:
        raise UnsupportedError(
            f"{checkpoint.path}: no conversion for {classes[0][:100]!r}",
            hint=unknown(classes[0][:100], list(FAMILIES), "model class").hint,
        )
    return family.read(checkpoint)

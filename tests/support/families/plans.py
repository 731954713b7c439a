"""A model that is only a configuration: enough to see what a family refuses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edgellm.checkpoint import Checkpoint
from edgellm.convert import architectures
from edgellm.errors import BadInputError, UnsupportedError


def plan(config: Mapping[str, Any]) -> Checkpoint:
    """A checkpoint with this config.json and no tensors."""
    return Checkpoint(
        kind="hf", name="m", path=Path("m"), config=dict(config), tensors={}, files=(), tokenizer_path=None,
        tokenizer_config={}, chat_template=None, licence=None,
    )  # fmt: skip


def answer(config: Mapping[str, Any]) -> str:
    """What its family says to this configuration: `unsupported: ...`, `bad: ...` or `accepted`, all in one line."""
    try:
        header(config)
    except UnsupportedError as err:
        message = f"unsupported: {err}"
    except BadInputError as err:
        message = f"bad: {err}"
    else:
        return "accepted"
    assert "\n" not in message
    with pytest.raises((UnsupportedError, BadInputError)):
        architectures.read_source(plan(config))
    return message


def header(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the GGUF's header says of this configuration, without the architecture's prefix."""
    family = architectures.FAMILIES[config["architectures"][0]]
    fields = family._fields(plan(config))
    hyper = family.hyper(fields)
    family.check(fields, hyper)
    family.computed(fields, hyper)
    family.absent(fields, hyper)
    return {key: entry.value for key, entry in family.header(fields, hyper).items()}


def notes(config: Mapping[str, Any]) -> list[str]:
    """What the user is told about this configuration, which is accepted."""
    family = architectures.FAMILIES[config["architectures"][0]]
    fields = family._fields(plan(config))
    return family.check(fields, family.hyper(fields))

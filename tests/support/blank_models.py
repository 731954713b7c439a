"""Directories with a config.json and blank tensors: what a family makes of a configuration before any weight counts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgellm.checkpoint import open_checkpoint
from edgellm.convert import architectures
from edgellm.convert.source import Source


def read(
    directory: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Source:
    """The source of a directory with that config.json and tensors of zeros; names in `shapes` end with their type."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    tensors: dict[str, np.ndarray] = {}
    for name, shape in ({"none:F32": (1,)} if shapes is None else shapes).items():
        bare, _, dtype = name.partition(":")
        tensors[bare] = np.zeros(shape, dtype={"": np.float32, "F32": np.float32, "BOOL": np.bool_}[dtype])
    save_file(tensors, directory / "model.safetensors")
    return architectures.read_source(open_checkpoint(directory))


def refusal(kind: type[Exception], directory: Path, config: Mapping[str, Any]) -> str:
    """The one line with which a configuration is refused, before its tensors are looked at."""
    with pytest.raises(kind) as caught:
        read(directory, config)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{directory / 'config.json'}: ")
    return message

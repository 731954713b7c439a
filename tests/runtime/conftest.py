"""SmolLM2 in several types, made by our own converter from the dithered checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgellm import api

OfType = Callable[[str], Path]


@pytest.fixture(scope="session")
def smollm2_of(smollm2_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> OfType:
    """A type such as BF16 or Q4_0 -> an artifact in it; each is made once."""
    folder = tmp_path_factory.mktemp("smollm2")

    def convert(quant: str) -> Path:
        path = folder / quant
        if not path.exists():
            api.convert(smollm2_hf, quant=quant, output=path, jobs=2)
        return path

    return convert

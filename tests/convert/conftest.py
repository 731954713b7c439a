"""What the tests of conversion share: llama.cpp's own conversions of SmolLM2, and ours to compare with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgellm import machine
from edgellm.api import launch
from edgellm.artifact import Recipe
from edgellm.checkpoint import open_checkpoint
from edgellm.convert import pipeline
from edgellm.convert.recipe import ConvertOptions, make_recipe
from edgellm.convert.source import Source
from tests.support import oracle

OfType = Callable[[str], Path]


@pytest.fixture(scope="session")
def smollm2_source(smollm2_hf: Path) -> Source:
    """The Hugging Face directory, with its vocabulary found as a conversion finds it."""
    source, _ = pipeline.add_vocabulary(pipeline.read_source(open_checkpoint(smollm2_hf)), launch.TOKENIZERS)
    return source


@pytest.fixture(scope="session")
def by_llama_cpp(smollm2_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> OfType:
    """`bf16`, `f16` or `f32` -> the GGUF that convert_hf_to_gguf.py makes; each is made once."""
    folder = tmp_path_factory.mktemp("llama.cpp")

    def convert(out_type: str) -> Path:
        path = folder / f"{out_type}.gguf"
        return path if path.exists() else oracle.convert_with_llama_cpp(smollm2_hf, out_type, path)

    return convert


@pytest.fixture(scope="session")
def by_edgellm(smollm2_source: Source, tmp_path_factory: pytest.TempPathFactory) -> OfType:
    """A float type -> the GGUF that edgellm makes of the Hugging Face directory; each is made once."""
    folder = tmp_path_factory.mktemp("edgellm")

    def convert(quant: str) -> Path:
        path = folder / f"{quant}.gguf"
        if not path.exists():
            pipeline.write_model(path, smollm2_source, recipe_for(smollm2_source, quant), n_workers=2)
        return path

    return convert


def recipe_for(source: Source, quant: str) -> Recipe:
    """The recipe of that quantization for this machine."""
    return make_recipe(machine.detect_target(), source, ConvertOptions(quant=quant))

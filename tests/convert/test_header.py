"""The bytes of a header, known before it is written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm import targets
from edgellm.api import launch
from edgellm.artifact import Recipe
from edgellm.checkpoint import open_checkpoint
from edgellm.convert import header, pipeline, writer
from edgellm.convert.recipe import ConvertOptions, make_recipe
from edgellm.convert.source import HeaderValue, Source
from edgellm.formats.gguf import read_gguf
from tests.support import tiny_tokenizers
from tests.support.tiny_llama import read_source, write_tiny_llama

MORE = {
    "a.text": HeaderValue("STRING", "größer"),
    "a.flag": HeaderValue("BOOL", True),
    "a.float": HeaderValue("FLOAT64", 0.5),
    "a.long": HeaderValue("UINT64", 1 << 40),
    "a.bytes": HeaderValue("ARRAY", [1, 2, 3], "UINT8"),
    "a.words": HeaderValue("ARRAY", ["", "é", "abc"], "STRING"),
    "a.numbers": HeaderValue("ARRAY", np.arange(5, dtype=np.float32), "FLOAT32"),
}


def recipe_of(source: Source) -> Recipe:
    return make_recipe(targets.load("rpi5"), source, ConvertOptions(quant="F16"))


def test_the_bytes_of_a_header_are_those_of_the_file(tmp_path: Path) -> None:
    source = read_source(write_tiny_llama(tmp_path / "m"))
    for name, entries in (("plain", source.header), ("more", {**source.header, **MORE})):
        writer.write_header(tmp_path / name, source, source.base_types(), entries)
        assert writer.header_bytes(source, entries) == (tmp_path / name).stat().st_size


def byte_level(directory: Path) -> Path:
    return write_tiny_llama(directory)


def sentencepiece(directory: Path) -> Path:
    files: dict[str, Any] = {"tokenizer.model": tiny_tokenizers.bpe_model()}
    return tiny_tokenizers.write_model(directory, files, vocab_size=1008)


def unigram(directory: Path) -> Path:
    files: dict[str, Any] = {"tokenizer.model": tiny_tokenizers.sentencepiece_model("unigram")}
    return tiny_tokenizers.write_model(directory, files, vocab_size=1008)


@pytest.mark.parametrize("write", [byte_level, sentencepiece, unigram], ids=lambda write: write.__name__)
@pytest.mark.parametrize("template", [None, "alpaca"])
def test_the_least_bytes_of_a_mixs_header_are_below_the_real_ones_and_close(
    tmp_path: Path, write: Any, template: str | None
) -> None:
    source = pipeline.read_source(open_checkpoint(write(tmp_path / "m")))
    recipe = recipe_of(source)
    least = header.least_mix_header_bytes(source, recipe, chat_template=template)
    whole, _ = pipeline.add_vocabulary(source, launch.TOKENIZERS, chat_template=template)
    assert 0 <= header.mix_header_bytes(whole, recipe) - least <= 300


def test_the_bytes_of_a_gguf_sources_header_are_known_but_for_the_mixs_name(tmp_path: Path) -> None:
    source = read_source(write_tiny_llama(tmp_path / "m"))
    writer.write_gguf(tmp_path / "m.gguf", source, source.base_types(), source.header, n_workers=1)
    again = pipeline.read_source(open_checkpoint(tmp_path / "m.gguf"))
    recipe = recipe_of(again)
    least = header.least_mix_header_bytes(again, recipe, chat_template=None)
    assert 0 <= header.mix_header_bytes(again, recipe) - least <= writer.ALIGNMENT


def test_a_converted_model_does_not_hand_on_what_it_was_made_from(tmp_path: Path) -> None:
    source = read_source(write_tiny_llama(tmp_path / "m"))
    first = header.with_provenance(source, {"a": "1" * 64, "b": "2" * 64}, "3" * 64)
    second = header.with_provenance(first, {"c": "4" * 64}, "5" * 64)
    assert {key for key in second.header if key.startswith("edgellm.")} == {
        "edgellm.manifest.sha256",
        "edgellm.parent.sha256.c",
    }
    path = tmp_path / "m.gguf"
    without = dataclasses.replace(second, tensors=())
    writer.write_gguf(path, without, {}, second.header, n_workers=1)
    assert read_gguf(path).get("edgellm.manifest.sha256", str, None) == "5" * 64

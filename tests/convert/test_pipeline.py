"""The order of steps: from a directory to the files and the manifest of an artifact."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from edgellm import targets
from edgellm.api import launch
from edgellm.checkpoint import open_checkpoint
from edgellm.convert import pipeline
from edgellm.convert.gguf_manifest import manifest_of_gguf
from edgellm.convert.recipe import ConvertOptions, make_recipe
from edgellm.errors import BadInputError, MissingInputError, OutputError, UnsupportedError
from edgellm.formats.gguf import read_gguf
from tests.support.tiny_llama import read_source, tokenizer_json, write_tiny_llama

RPI5 = targets.load("rpi5")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "tiny")


def test_files_and_manifest_of_a_conversion(tiny: Path, tmp_path: Path) -> None:
    source, note = pipeline.add_vocabulary(pipeline.read_source(open_checkpoint(tiny)), launch.TOKENIZERS)
    recipe = make_recipe(RPI5, source, ConvertOptions(quant="Q4_0"))
    out = tmp_path / "out"
    out.mkdir()
    manifest = pipeline.convert(source, RPI5, recipe, out, n_workers=2, argv=["edgellm"], note=note)
    assert sorted(path.name for path in out.iterdir()) == ["model.gguf", "tokenizer.json"]
    assert (out / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()
    for entry in manifest.files:
        content = (out / entry.name).read_bytes()
        assert (entry.n_bytes, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    file = read_gguf(out / "model.gguf")
    assert {name: t.type_name for name, t in file.tensors.items()} == recipe.tensor_types
    assert file.get("general.file_type", int, None) == 2
    assert file.get("tokenizer.ggml.pre", str, None) == "gpt-2"
    assert (manifest.quant, manifest.target, manifest.n_params) == ("Q4_0", "rpi5", source.shape.n_params)
    assert manifest.bpw == pytest.approx(
        8 * sum(t.n_bytes for t in file.tensors.values()) / manifest.n_params
    )
    assert manifest.recipe is not None
    assert manifest.recipe.reasons[-1].choice == "pre-tokenizer gpt-2"
    parents = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tiny.iterdir()}
    assert {parent.name: parent.sha256 for parent in manifest.parents} == parents
    assert {
        "python",
        "edgellm",
        "llama-cpp-python",
        "gguf",
        "numpy",
        "tokenizers",
    } <= manifest.tool_versions.keys()


def test_the_vocabulary_is_padded_to_the_models_rows(tiny: Path) -> None:
    header = read_source(tiny).header
    tokens, kinds = header["tokenizer.ggml.tokens"].value, header["tokenizer.ggml.token_type"].value
    assert len(tokens) == len(kinds) == 320
    assert tokens[263:265] == ["[PAD263]", "[PAD264]"]
    assert set(kinds[263:]) == {5}
    assert kinds[:4] == [3, 3, 3, 1]


def test_a_gguf_keeps_its_vocabulary(smollm2_gguf: Path) -> None:
    def never(*_: object) -> list[list[int]]:
        raise AssertionError("nothing has to be found out")

    source = pipeline.read_source(open_checkpoint(smollm2_gguf))
    same, note = pipeline.add_vocabulary(source, never)
    assert (same, note) == (source, None)


def test_a_model_without_tokenizer_is_refused(tiny: Path) -> None:
    (tiny / "tokenizer.json").unlink()
    source = pipeline.read_source(open_checkpoint(tiny))
    with pytest.raises(MissingInputError, match=r"no tokenizer\.json"):
        pipeline.add_vocabulary(source, launch.TOKENIZERS)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"model": {"type": "Unigram", "vocab": []}}, BadInputError, "Unigram"),
        ({"model": {"type": "WordLevel", "vocab": {}}}, UnsupportedError, "WordLevel"),
        ({"pre_tokenizer": None, "decoder": None}, UnsupportedError, "byte-level"),
        ({"model": {**tokenizer_json()["model"], "vocab": {"a": 320}}}, BadInputError, "has id 320"),
        ({"model": {**tokenizer_json()["model"], "vocab": {"a": True}}}, BadInputError, "has id True"),
        ({"model": {**tokenizer_json()["model"], "vocab": {"a": 7, "b": 7}}}, BadInputError, "stands for both"),
        ({"model": {**tokenizer_json()["model"], "vocab": []}}, BadInputError, "malformed"),
        ({"model": {**tokenizer_json()["model"], "merges": ["abc"]}}, BadInputError, "not a pair"),
        ({"model": {**tokenizer_json()["model"], "merges": "abc"}}, BadInputError, "merges"),
        ({"added_tokens": [{"content": "x"}]}, BadInputError, "has id None"),
        ({"added_tokens": ["x"]}, BadInputError, "malformed"),
        ({"added_tokens": 3}, BadInputError, "malformed"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_tokenizer_that_cannot_be_converted(
    tiny: Path, change: dict[str, object], kind: type[Exception], words: str
) -> None:
    (tiny / "tokenizer.json").write_text(json.dumps({**tokenizer_json(), **change}))
    with pytest.raises(kind, match=words):
        read_source(tiny)


def test_a_gguf_made_elsewhere_has_a_manifest_of_its_header(smollm2_gguf: Path) -> None:
    manifest = manifest_of_gguf(open_checkpoint(smollm2_gguf))
    assert (manifest.architecture, manifest.quant, manifest.target) == ("llama", "Q4_1", "not stated")
    assert manifest.n_params == 134_515_008
    assert manifest.bpw == pytest.approx(5.7437, abs=1e-4)  # the table, which is the head too, is Q8_0


def test_a_disk_that_fills_up_is_an_output_error(tiny: Path, tmp_path: Path) -> None:
    source = read_source(tiny)
    recipe = make_recipe(RPI5, source, ConvertOptions(quant="F32"))
    with pytest.raises(OutputError, match="cannot be written"):
        pipeline.convert(source, RPI5, recipe, tmp_path / "missing", n_workers=1, argv=[])


def test_a_source_that_cannot_be_read_is_not_blamed_on_the_output(tiny: Path, tmp_path: Path) -> None:
    source = read_source(tiny)
    recipe = make_recipe(RPI5, source, ConvertOptions(quant="F32"))
    (tiny / "model.safetensors").unlink()
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises((BadInputError, MissingInputError), match=r"model\.safetensors"):
        pipeline.convert(source, RPI5, recipe, out, n_workers=1, argv=[])

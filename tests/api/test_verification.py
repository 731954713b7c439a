"""verify() of an artifact with a merged adapter: which reference is meant, and which is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from edgellm import api, machine
from edgellm.api import models, verification
from edgellm.errors import BadInputError, MissingInputError, SpecError
from tests.api.test_choices import WIDE, write_adapter
from tests.support.cli import refused, succeed
from tests.support.gguf_files import write_model
from tests.support.tiny_llama import write_tiny_llama


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine two threads wait for each other; no figure here depends on their number."""
    monkeypatch.setattr(machine, "default_threads", lambda: 1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter that moves its distributions, and what they were converted to together and the base alone."""
    root = tmp_path_factory.mktemp("merged")
    write_tiny_llama(root / "base", WIDE)
    write_adapter(root / "adapter")
    tensors = load_file(root / "adapter" / "adapter_model.safetensors")
    strong = {name: 4 * tensor for name, tensor in tensors.items()}
    save_file(strong, root / "adapter" / "adapter_model.safetensors")
    api.convert(root / "base", lora=root / "adapter", quant="F32", output=root / "merged", target="rpi5")
    api.convert(root / "base", quant="F32", output=root / "plain", target="rpi5")
    return root


def test_the_reference_is_the_base_with_the_adapter(root: Path) -> None:
    receipt = api.verify(root / "merged", reference=root / "base", lora=root / "adapter", max_kl=1e-6)
    assert receipt is not None
    assert (receipt.verdict, receipt.same_parents) == ("pass", True)
    assert receipt.reference.startswith("base+adapter")
    assert receipt.reference_because == "an adapter is merged into the source"


def test_paths_may_be_text(root: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("The cat sat on the mat, and the dog in the fog. " * 400)
    receipt = api.verify(
        str(root / "merged"), reference=str(root / "base"), lora=str(root / "adapter"), text=str(tmp_path / "text"),
        engine="gguf",
    )  # fmt: skip
    assert receipt is not None
    assert receipt.text_name == "text"


@pytest.mark.parametrize(("name", "value"), [("mode", "fast"), ("mode", None), ("engine", "torch")])
def test_a_word_that_does_not_exist_is_refused(root: Path, name: str, value: Any) -> None:
    arguments: dict[str, Any] = {name: value}
    for reference in ({}, {"reference": root / "base"}):
        with pytest.raises(ValueError, match=f"{name} must be one of"):
            api.verify(root / "plain", **reference, **arguments)


def test_the_command_takes_the_adapter_too(root: Path) -> None:
    said = succeed("verify", root / "merged", "--reference", root / "base", "--lora", root / "adapter")
    assert "hash by hash what it was made from" in said


@pytest.mark.parametrize("file", ["", "model.gguf"])
def test_without_the_adapter_it_and_the_option_are_named(root: Path, file: str) -> None:
    error, hint = refused(64, "verify", root / "merged" / file, "--reference", root / "base")
    assert "was made with the LoRA adapter" in error
    assert ("adapter adapter," in error) == (not file)  # a GGUF alone knows its hash, not its name
    assert "--lora DIR" in hint


def test_another_adapter_is_refused_by_its_hash(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(root / "adapter", other)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 16}))
    with pytest.raises(BadInputError, match=r"other/adapter_config\.json: sha256 is [0-9a-f]{64}") as caught:
        api.verify(root / "merged", reference=root / "base", lora=other)
    assert caught.value.hint


def test_an_adapter_for_an_artifact_without_one_is_refused(root: Path) -> None:
    with pytest.raises(BadInputError, match="was not made with an adapter"):
        api.verify(root / "plain", reference=root / "base", lora=root / "adapter")


def test_an_adapter_without_a_reference_or_that_is_not_there_is_refused(root: Path) -> None:
    with pytest.raises(SpecError, match="--lora without a comparison"):
        api.verify(root / "merged", lora=root / "adapter")
    with pytest.raises(MissingInputError, match="no adapter at"):
        api.verify(root / "merged", reference=root / "base", lora=root / "nothing")


def test_a_reference_in_which_the_adapter_is_merged_already_is_compared(root: Path) -> None:
    receipt = api.verify(root / "merged", reference=root / "merged", max_kl=1e-6)
    assert receipt is not None
    assert receipt.verdict == "pass"


def test_an_adapter_that_lies_inside_the_base_is_found_among_the_parents(root: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(root / "base", base)
    shutil.copytree(root / "adapter", base / "adapter")
    api.convert(base, lora=base / "adapter", quant="F32", output=tmp_path / "out", target="rpi5")
    with pytest.raises(SpecError, match="LoRA adapter adapter"):
        api.verify(tmp_path / "out", reference=base)
    assert api.verify(tmp_path / "out", reference=base, lora=base / "adapter", max_kl=1e-6) is not None


def test_a_plain_file_is_checked_to_its_vocabulary_and_says_what_lies_behind_it(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf")
    opened = models.open_artifact(path)
    assert api.verify(path) is None
    assert verification.warnings(opened) == []
    with path.open("ab") as file:
        file.write(b"garbage")
    assert api.verify(path) is None
    assert verification.warnings(opened) == [
        "model.gguf: 7 bytes behind the last tensor, which nothing reads"
    ]
    write_model(path, metadata={"tokenizer.ggml.merges": ("ARRAY:STRING", ["x"])})
    with pytest.raises(BadInputError, match="merge 0"):
        api.verify(path)

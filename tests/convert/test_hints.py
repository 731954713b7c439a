"""Errors of what users bring name a next step."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgellm import api
from edgellm.checkpoint import open_checkpoint
from edgellm.convert import architectures, hints, mixture, quality_embeddings, tokenizer
from edgellm.convert.imatrix import read_calibration
from edgellm.convert.imatrix_file import read_imatrix
from edgellm.convert.lora import read_adapter
from edgellm.errors import BadInputError, EdgeLLMError, MissingInputError, SpecError, UnsupportedError
from tests.api.test_choices import write_adapter
from tests.support.tiny_llama import write_tiny_llama


def test_a_hint_is_given_where_there_is_none_and_never_replaced() -> None:
    with pytest.raises(BadInputError) as caught, hints.of(BadInputError, "do this"):
        raise BadInputError("wrong")
    assert caught.value.hint == "do this"
    with pytest.raises(BadInputError) as caught, hints.of(BadInputError, "do this"):
        raise BadInputError("wrong", hint="do that")
    assert caught.value.hint == "do that"
    with pytest.raises(MissingInputError) as other, hints.of(BadInputError, "do this"):
        raise MissingInputError("gone")
    assert other.value.hint is None


def test_a_configuration_that_contradicts_the_weights_says_to_get_both_again(tmp_path: Path) -> None:
    directory = write_tiny_llama(tmp_path / "m", tensors={"model.norm.weight": np.ones(63, dtype=np.float32)})
    with pytest.raises(BadInputError, match="has shape") as caught:
        architectures.read_source(open_checkpoint(directory))
    assert caught.value.hint == architectures.SAME_MODEL_HINT


@pytest.mark.parametrize(
    "model", [{"type": "BPE", "vocab": 1, "merges": []}, {"type": "BPE", "vocab": {}, "merges": 1}]
)
def test_a_malformed_tokenizer_says_to_get_its_files_again(tmp_path: Path, model: dict[str, object]) -> None:
    directory = write_tiny_llama(tmp_path / "m")
    found = json.loads((directory / "tokenizer.json").read_text())
    (directory / "tokenizer.json").write_text(json.dumps({**found, "model": model}))
    with pytest.raises(BadInputError) as caught:
        tokenizer.read_vocabulary(open_checkpoint(directory), 320)
    assert caught.value.hint == tokenizer.FILES_HINT


def test_a_tokenizer_of_another_kind_says_which_kinds_work(tmp_path: Path) -> None:
    directory = write_tiny_llama(tmp_path / "m")
    found = json.loads((directory / "tokenizer.json").read_text())
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    (directory / "tokenizer.json").write_text(json.dumps({**found, "model": model}))
    with pytest.raises(UnsupportedError) as caught:
        tokenizer.read_vocabulary(open_checkpoint(directory), 320)
    assert caught.value.hint == tokenizer.KINDS_HINT


def test_files_that_are_not_what_they_should_be_have_a_hint(tmp_path: Path) -> None:
    noise = tmp_path / "noise"
    noise.write_bytes(b"\xff\xfe\x00")
    adapter = write_adapter(tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").write_bytes(b"\x00" * 20)
    hinted = []
    for act in (
        lambda: read_imatrix(noise),
        lambda: read_calibration(noise),
        lambda: read_adapter(adapter),
        lambda: quality_embeddings.cut([1], ([], []), limit=40, max_tokens=100),
    ):
        with pytest.raises(EdgeLLMError) as caught:
            act()
        hinted.append(caught.value.hint)
    assert all(hinted)


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"version https://git-lfs"], ids=str)
def test_a_file_that_is_no_model_has_a_hint(tmp_path: Path, data: bytes) -> None:
    noise = tmp_path / "noise.gguf"
    noise.write_bytes(data)
    directory = write_tiny_llama(tmp_path / "m")
    (directory / "model.safetensors").write_bytes(data)
    for path in (noise, directory):
        with pytest.raises(BadInputError) as caught:
            open_checkpoint(path)
        assert "download it again" in str(caught.value.hint)


def test_a_type_that_rows_cannot_have_comes_with_those_they_can(tmp_path: Path) -> None:
    directory = write_tiny_llama(tmp_path / "m")  # rows of 64
    with pytest.raises(SpecError, match="cannot be Q6_K") as caught:
        api.plan_conversion(directory, quant="Q8_0", token_embedding_type="Q6_K", output=tmp_path / "out")
    named = str(caught.value.hint).removeprefix("its rows can be ").split(", ")
    assert {"F16", "Q8_0", "Q4_0"} <= set(named) <= set(mixture.TENSOR_TYPES)
    assert "Q4_K" not in named


@pytest.mark.parametrize("context", [0, 257])
def test_a_context_out_of_bounds_says_which_are_allowed(tmp_path: Path, context: int) -> None:
    made = api.convert(write_tiny_llama(tmp_path / "m"), quant="Q8_0", output=tmp_path / "out", target="rpi5")
    with pytest.raises(SpecError, match=f"context {context} is outside 1 to 256") as caught:
        api.load(made.path, context=context)
    assert caught.value.hint == "use --context 256 or less"

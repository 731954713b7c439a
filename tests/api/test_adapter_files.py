"""An adapter that is none, or of another model, is refused by name before native code sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgellm import api
from edgellm.api import adapter_files
from edgellm.errors import BadInputError, MissingInputError
from edgellm.formats.gguf import GGUFFile, read_gguf
from tests.support.gguf_files import gguf_bytes, key, tensor, write_model
from tests.support.tiny_gguf import WIDTH, write_tiny_gguf

QUERY = "blk.0.attn_q.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> GGUFFile:
    return read_gguf(write_tiny_gguf(tmp_path_factory.mktemp("m") / "model.gguf", n_layers=1))


def write_adapter(
    path: Path, *, architecture: str = "llama", weight: str = QUERY, n_in: int = WIDTH, n_out: int = WIDTH,
    kind: str = "adapter", base: str = "Big-7B",
) -> Path:  # fmt: skip
    """A low-rank adapter of one matrix, all zeros."""
    keys = [
        key("general.architecture", "STRING", architecture), key("general.type", "STRING", kind),
        key("adapter.type", "STRING", "lora"), key("adapter.lora.alpha", "FLOAT32", 8.0),
        key("general.base_model.0.name", "STRING", base),
    ]  # fmt: skip
    rank, half = 8, 4 * 8 * n_in
    tensors = [
        tensor(f"{weight}.lora_a", [n_in, rank]),
        tensor(f"{weight}.lora_b", [rank, n_out], offset=half),
    ]
    path.write_bytes(gguf_bytes(keys, tensors, bytes(half + 4 * rank * n_out)))
    return path


def test_its_own_is_taken_and_changes_nothing_where_it_is_zero(tmp_path: Path, model: GGUFFile) -> None:
    path = write_adapter(tmp_path / "adapter.gguf")
    assert adapter_files.read(path, model) == adapter_files.read(tmp_path, model) == path
    with api.load(model.path, context=64, threads=1, adapters={"zero": str(tmp_path)}) as opened:
        plain, adapted = (
            opened.generate("ab", max_tokens=4, temperature=0, adapters=chosen)
            for chosen in ({}, {"zero": 1.0})
        )
    assert plain.token_ids == adapted.token_ids


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "qwen2"}, "its architecture is 'qwen2', model.gguf is 'llama'"),
        ({"weight": "blk.30.attn_q.weight"}, "it changes 'blk.30.attn_q.weight', which model.gguf lacks"),
        ({"n_in": 2 * WIDTH}, "'blk.0.attn_q.weight.lora_a' has shape (8, 512)"),
        ({"n_out": 2 * WIDTH}, "'blk.0.attn_q.weight.lora_b' has shape (512, 8)"),
        ({"weight": "output_norm.weight"}, "'output_norm.weight' of model.gguf has (256,)"),
    ],
)
def test_one_of_another_model_says_of_which(
    tmp_path: Path, model: GGUFFile, changes: dict[str, object], words: str
) -> None:
    path = write_adapter(tmp_path / "adapter.gguf", **changes)  # type: ignore[arg-type]
    with pytest.raises(BadInputError) as caught:
        api.load(model.path, context=64, adapters={"other": str(path)})
    assert words in caught.value.message
    assert "an adapter of another model (made for 'Big-7B')" in caught.value.message
    assert "'Big-7B'" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("kind", "words"),
    [("model", "a model, not an adapter"), ("mmproj", "a multimodal projector, not an adapter"),
     ("imatrix", "an importance matrix, not an adapter")],
)  # fmt: skip
def test_what_is_no_adapter_says_what_it_is(tmp_path: Path, model: GGUFFile, kind: str, words: str) -> None:
    path = write_adapter(tmp_path / "adapter.gguf", kind=kind)
    with pytest.raises(BadInputError, match=words):
        adapter_files.read(path, model)


@pytest.mark.parametrize(
    ("kind", "words"), [("adapter", "a LoRA adapter, not a model"), ("mmproj", "a multimodal projector, not a language model")]
)  # fmt: skip
def test_an_adapter_or_a_projector_is_no_model(tmp_path: Path, kind: str, words: str) -> None:
    for path in (
        write_adapter(tmp_path / "adapter.gguf", kind=kind),
        write_model(tmp_path / "whole.gguf", metadata={"general.type": ("STRING", kind)}),
    ):
        with pytest.raises(BadInputError, match=words) as caught:
            api.load(path)
        assert caught.value.exit_code == 65


def test_no_adapter_there(tmp_path: Path, model: GGUFFile) -> None:
    with pytest.raises(MissingInputError):
        adapter_files.read(tmp_path / "gone.gguf", model)


def test_the_directory_of_a_model_is_named_as_one(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"")
    with pytest.raises(BadInputError, match="a model, not an adapter"):
        adapter_files.find(tmp_path)

"""Opening a source model: what is read, and what is refused before anything is unpickled or followed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgellm.checkpoint import open_checkpoint
from edgellm.errors import BadInputError, MissingInputError, UnsafeInputError
from tests.support import gguf_files
from tests.support.tiny_llama import write_tiny_llama


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "tiny")


def test_a_directory(tiny: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    assert (checkpoint.kind, checkpoint.name, checkpoint.gguf) == ("hf", "tiny", None)
    assert checkpoint.config["hidden_size"] == 64
    assert [path.name for path in checkpoint.files] == [
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    ]  # fmt: skip
    assert checkpoint.tokenizer_path == tiny / "tokenizer.json"
    tensor = checkpoint.tensors["model.layers.0.self_attn.k_proj.weight"]
    assert (tensor.type_name, tensor.shape, tensor.n_bytes) == ("F32", (32, 64), 4 * 32 * 64)


def test_views_point_at_the_bytes(tiny: Path) -> None:
    wanted = np.arange(64, dtype=np.float32)
    write_tiny_llama(tiny, tensors={"model.norm.weight": wanted})
    view = open_checkpoint(tiny).tensors["model.norm.weight"]
    assert view.path.read_bytes()[view.offset : view.offset + view.n_bytes] == wanted.tobytes()


def test_a_gguf(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(gguf_files.write_model(tmp_path / "some.gguf"))
    assert (checkpoint.kind, checkpoint.name, checkpoint.files) == ("gguf", "some", (tmp_path / "some.gguf",))
    assert checkpoint.tensors["token_embd.weight"].shape[1] == 8


def test_another_name_can_be_given(tiny: Path) -> None:
    assert open_checkpoint(tiny, name="mine").name == "mine"


@pytest.mark.parametrize("kind", ["nothing", "empty directory", "no weights"])
def test_what_is_missing_is_said(tmp_path: Path, tiny: Path, kind: str) -> None:
    path = tmp_path / "other"
    if kind == "empty directory":
        path.mkdir()
    elif kind == "no weights":
        path = tiny
        (tiny / "model.safetensors").unlink()
    with pytest.raises(MissingInputError) as caught:
        open_checkpoint(path)
    assert caught.value.hint
    assert caught.value.exit_code == 66


class Bomb:
    """Leaves a mark when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt", "model.pkl"])
def test_pickles_are_refused_and_not_opened(tiny: Path, tmp_path: Path, name: str) -> None:
    (tiny / "model.safetensors").unlink()
    (tiny / name).write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    with pytest.raises(UnsafeInputError, match=name) as caught:
        open_checkpoint(tiny)
    assert caught.value.exit_code == 65
    assert not (tmp_path / "mark").exists()


def test_pickles_beside_safetensors_are_ignored(tiny: Path, tmp_path: Path) -> None:
    (tiny / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    checkpoint = open_checkpoint(tiny)
    assert all(path.suffix != ".bin" for path in checkpoint.files)
    assert not (tmp_path / "mark").exists()


def test_a_file_shorter_by_one_byte_is_refused(tiny: Path) -> None:
    weights = tiny / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    with pytest.raises(BadInputError, match=r"model\.safetensors"):
        open_checkpoint(tiny)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a/../../x.safetensors", "..\\x", "CON"]
)
def test_an_index_cannot_name_a_file_elsewhere(tmp_path: Path, name: str) -> None:
    directory = write_tiny_llama(tmp_path / "tiny", n_shards=2)
    shutil.copy(directory / "model-00001-of-00002.safetensors", tmp_path / "model.safetensors")
    index = directory / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = name
    index.write_text(json.dumps(content))
    with pytest.raises(UnsafeInputError, match="escapes the model directory"):
        open_checkpoint(directory)


def test_a_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    directory = write_tiny_llama(tmp_path / "tiny", n_shards=3)
    (directory / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(MissingInputError, match="model-00002-of-00003"):
        open_checkpoint(directory)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    directory = write_tiny_llama(tmp_path / "tiny", n_shards=2)
    shutil.copy(
        directory / "model-00001-of-00002.safetensors", directory / "model-00002-of-00002.safetensors"
    )
    with pytest.raises(BadInputError, match="is also in"):
        open_checkpoint(directory)


@pytest.mark.parametrize("linked", ["model.safetensors", "chat_template.jinja", "tokenizer.json"])
def test_links_out_of_the_directory_are_not_followed(tiny: Path, tmp_path: Path, linked: str) -> None:
    """A link in an unpacked archive could bring a private file into a model that is then published."""
    outside = tmp_path / "outside"
    outside.write_bytes((tiny / linked).read_bytes() if (tiny / linked).exists() else b"secret")
    (tiny / linked).unlink(missing_ok=True)
    (tiny / linked).symlink_to(outside)
    with pytest.raises(UnsafeInputError, match=linked):
        open_checkpoint(tiny)


def test_a_hub_cache_is_followed_into_its_blobs(tiny: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "abc", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, path in enumerate(sorted(tiny.iterdir())):
        shutil.copy(path, blobs / str(i))
        (snapshot / path.name).symlink_to(blobs / str(i))
    assert len(open_checkpoint(snapshot).tensors) == 21


def test_a_mask_that_an_old_repository_holds_keeps_its_type(tiny: Path) -> None:
    save_file({"a": np.zeros(4, dtype=np.bool_)}, tiny / "model.safetensors")
    assert open_checkpoint(tiny).tensors["a"].type_name == "BOOL"


def test_a_config_that_is_not_json(tiny: Path) -> None:
    (tiny / "config.json").write_text("{'architectures': 1}")
    with pytest.raises(BadInputError, match=r"config\.json"):
        open_checkpoint(tiny)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("one", "one"),
        ([{"name": "default", "template": "two"}, {"name": "tool_use", "template": "x"}], "two"),
        (None, None),
    ],
    ids=["text", "list", "none"],
)
def test_the_chat_template_of_the_tokenizer_config(tiny: Path, content: object, expected: str | None) -> None:
    (tiny / "tokenizer_config.json").write_text(json.dumps({"chat_template": content}))
    assert open_checkpoint(tiny).chat_template == expected


def test_a_chat_template_of_its_own_comes_first(tiny: Path) -> None:
    (tiny / "tokenizer_config.json").write_text(json.dumps({"chat_template": "one"}))
    (tiny / "chat_template.jinja").write_text("sepa\u00adrate", encoding="utf-8")
    assert open_checkpoint(tiny).chat_template == "sepa\u00adrate"


@pytest.mark.parametrize("content", [b"\xff\xfe", b"x" * (1 << 20) + b"x"], ids=["not UTF-8", "too large"])
def test_a_chat_template_that_cannot_be_read(tiny: Path, content: bytes) -> None:
    (tiny / "chat_template.jinja").write_bytes(content)
    with pytest.raises(BadInputError, match=r"chat_template\.jinja"):
        open_checkpoint(tiny)


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: apache-2.0\ntags: [a]\n---\n# Model\n", "apache-2.0"),
        ("# Model\nlicense: mit\n", None),
        ("---\ntags: [a]\n---\nlicense: mit\n", None),
        (None, None),
    ],
)
def test_the_licence_of_the_model_card(tiny: Path, card: str | None, expected: str | None) -> None:
    if card is not None:
        (tiny / "README.md").write_text(card)
    assert open_checkpoint(tiny).licence == expected


def test_a_model_card_that_is_a_pipe_is_not_waited_for(tiny: Path) -> None:
    os.mkfifo(tiny / "README.md")
    assert open_checkpoint(tiny).licence is None


@pytest.mark.parametrize("rows", [[{"name": [], "template": "x"}], [5, {"name": "tool"}], []])
def test_odd_lists_of_chat_templates_give_none(tiny: Path, rows: list[Any]) -> None:
    (tiny / "tokenizer_config.json").write_text(json.dumps({"chat_template": rows}))
    assert open_checkpoint(tiny).chat_template is None


def test_a_shard_that_the_index_does_not_name_is_refused(tmp_path: Path) -> None:
    directory = write_tiny_llama(tmp_path / "tiny", n_shards=2)
    extra = directory / "model-00003-of-00002.safetensors"
    save_file({"stray": np.zeros(4, dtype=np.float32)}, extra)
    with pytest.raises(
        BadInputError, match=rf"{extra.name}: a shard of {extra.stat().st_size} bytes"
    ) as caught:
        open_checkpoint(directory)
    assert caught.value.exit_code == 65
    assert caught.value.hint


@pytest.mark.parametrize(
    "name",
    [
        "consolidated.safetensors",
        "consolidated-00001-of-00002.safetensors",
        "adapter_model.safetensors",
        "model-00001-of-00003.safetensors",
        "model.fp32-00001-of-00002.safetensors",
        "original/model-00001-of-00002.safetensors",
    ],
)
def test_weights_of_another_kind_beside_the_shards_are_not_read(tmp_path: Path, name: str) -> None:
    directory = write_tiny_llama(tmp_path / "tiny", n_shards=2)
    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).write_bytes(b"not read")
    assert len(open_checkpoint(directory).tensors) == 21


def _changed_index(directory: Path, change: Callable[[dict[str, str]], object]) -> Path:
    index = directory / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    change(content["weight_map"])
    index.write_text(json.dumps(content))
    return directory


@pytest.mark.parametrize(
    ("name", "shard", "said"),
    [
        (
            "model.norm.weight",
            "model-00001-of-00002.safetensors",
            "it is in model-00002-of-00002.safetensors",
        ),
        ("model.norm.weight", "model-00002-of-00002.safetensors", None),
        ("model.stray.weight", "model-00002-of-00002.safetensors", "has none of that name"),
    ],
)
def test_the_index_names_tensors_where_they_are(
    tmp_path: Path, name: str, shard: str, said: str | None
) -> None:
    directory = write_tiny_llama(tmp_path / "tiny", n_shards=2)
    _changed_index(directory, lambda weight_map: weight_map.update({name: shard}))
    if said is None:
        assert len(open_checkpoint(directory).tensors) == 21
        return
    with pytest.raises(BadInputError, match=f"index.json: names tensor '{name}' in {shard}.*{said}"):
        open_checkpoint(directory)


@pytest.mark.parametrize("kept", ["model.embed_tokens.weight", "model.nothing.weight"])
def test_a_tensor_that_the_hubs_converter_left_out_as_a_copy(tmp_path: Path, kept: str) -> None:
    """It names the copy in the index still, and in the metadata of the shard which tensor it is a copy of."""
    directory = write_tiny_llama(tmp_path / "tiny", {"tie_word_embeddings": True}, n_shards=2)
    shard = "model-00001-of-00002.safetensors"
    save_file(
        load_file(directory / shard), directory / shard, metadata={"format": "pt", "lm_head.weight": kept}
    )
    _changed_index(directory, lambda weight_map: weight_map.update({"lm_head.weight": shard}))
    if kept == "model.embed_tokens.weight":
        assert len(open_checkpoint(directory).tensors) == 20
    else:
        with pytest.raises(BadInputError, match=r"names tensor 'lm_head\.weight'"):
            open_checkpoint(directory)


def test_a_shard_listed_twice_is_refused(tmp_path: Path) -> None:
    directory = write_tiny_llama(tmp_path / "tiny", n_shards=2)
    (directory / "again.safetensors").symlink_to("model-00001-of-00002.safetensors")
    _changed_index(
        directory, lambda weight_map: weight_map.update({"model.norm.weight": "again.safetensors"})
    )
    with pytest.raises(BadInputError, match=r"is also in again\.safetensors"):
        open_checkpoint(directory)


def test_a_tensor_listed_twice_is_refused(tmp_path: Path) -> None:
    directory = write_tiny_llama(tmp_path / "tiny", n_shards=2)
    index = directory / "model.safetensors.index.json"
    row = '"model.norm.weight": "model-00001-of-00002.safetensors", '
    index.write_text(index.read_text().replace('"weight_map": {', '"weight_map": {' + row))
    with pytest.raises(BadInputError, match=r"index\.json: duplicate key 'model\.norm\.weight'"):
        open_checkpoint(directory)


def test_an_index_beside_a_single_file_is_of_no_account(tiny: Path) -> None:
    """transformers reads the single file; what was once split leaves its index behind."""
    (tiny / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}})
    )
    assert [path.name for path in open_checkpoint(tiny).files][1] == "model.safetensors"

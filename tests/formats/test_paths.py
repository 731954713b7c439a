"""Names from a model repository stay inside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import BadInputError, MissingInputError, UnsafeInputError
from edgellm.formats.paths import open_regular, safe_join


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model directory with one file, next to a file that is nobody's business."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(b"x")
    (tmp_path / "secret").write_bytes(b"s")
    return directory


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A snapshot in a hub cache, whose one file is a link to a blob."""
    home = tmp_path / "hub" / "models--org--name"
    directory = home / "snapshots" / "0123abcd"
    directory.mkdir(parents=True)
    (home / "blobs").mkdir()
    (home / "blobs" / "cafe").write_bytes(b"x")
    (directory / "model.safetensors").symlink_to("../../blobs/cafe")
    return directory


@pytest.mark.parametrize(
    "name", ["model.safetensors", "sub/model.safetensors", "not there", "a.b..c", "été", ".x"]
)
def test_names_inside_are_joined(model: Path, name: str) -> None:
    assert safe_join(model, name) == model / name


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "/", "/etc/passwd", "../secret", "../../etc/passwd", "a/../../b", "a/../b", "./a",
        "a//b", "a/", "C:\\x", "C:x", "c:/x", "\\\\srv\\x", "//srv/x", "a\\b", "..\\secret", "file:stream",
        "a\0b", "a\nb", "a\x7fb", "\ud800", "x" * 256, "/".join(["x" * 200] * 6), "a.", "a ", " a", "a./b",
        "CON", "con.txt", "nul", "sub/NUL.safetensors", "COM1", "lpt9.bin", "COM\u00b9", "con .txt",
    ],
)  # fmt: skip
def test_names_that_could_lead_out_are_refused(model: Path, name: str) -> None:
    with pytest.raises(UnsafeInputError, match="escapes the model directory") as caught:
        safe_join(model, name)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isascii()


def test_a_link_inside_is_followed(model: Path) -> None:
    (model / "again").symlink_to("model.safetensors")
    assert safe_join(model, "again").read_bytes() == b"x"


@pytest.mark.parametrize("target", ["../secret", "/etc/passwd", "../model-2/x"])
def test_a_link_out_is_refused(model: Path, target: str) -> None:
    (model / "link").symlink_to(target)
    with pytest.raises(UnsafeInputError, match="escapes the model directory"):
        safe_join(model, "link")


def test_a_folder_that_is_a_link_out_is_refused(model: Path) -> None:
    (model / "sub").symlink_to("..")
    with pytest.raises(UnsafeInputError, match="escapes the model directory"):
        safe_join(model, "sub/secret")


def test_a_loop_of_links_is_refused(model: Path) -> None:
    (model / "a").symlink_to("b")
    (model / "b").symlink_to("a")
    with pytest.raises(UnsafeInputError):
        safe_join(model, "a")


def test_a_directory_whose_name_begins_alike_is_outside(model: Path) -> None:
    other = model.with_name("model-2")
    other.mkdir()
    (other / "x").write_bytes(b"x")
    (model / "link").symlink_to("../model-2/x")
    with pytest.raises(UnsafeInputError):
        safe_join(model, "link")


def test_the_directory_itself_may_be_a_link(model: Path) -> None:
    link = model.with_name("link")
    link.symlink_to(model)
    assert safe_join(link, "model.safetensors").read_bytes() == b"x"


def test_a_hub_snapshot_may_link_to_its_blobs(snapshot: Path) -> None:
    assert safe_join(snapshot, "model.safetensors").read_bytes() == b"x"


def test_a_folder_in_a_hub_snapshot_may_link_to_its_blobs(snapshot: Path) -> None:
    (snapshot / "onnx").mkdir()
    (snapshot / "onnx" / "model.onnx").symlink_to("../../../blobs/cafe")
    assert safe_join(snapshot, "onnx/model.onnx").read_bytes() == b"x"
    assert safe_join(snapshot / "onnx", "model.onnx").read_bytes() == b"x"


def test_a_hub_snapshot_may_not_link_elsewhere(snapshot: Path) -> None:
    home = snapshot.parent.parent
    (home / "refs").mkdir()
    (home / "refs" / "main").write_bytes(b"x")
    other = home.with_name("models--org--other") / "blobs"
    other.mkdir(parents=True)
    (other / "beef").write_bytes(b"x")
    targets = ["../../refs/main", "../../../models--org--other/blobs/beef", "../../blobs/../refs/main"]
    for index, target in enumerate(targets):
        (snapshot / str(index)).symlink_to(target)
        with pytest.raises(UnsafeInputError):
            safe_join(snapshot, str(index))


def test_blobs_count_only_for_a_snapshot(model: Path) -> None:
    blobs = model.parent / "blobs"
    blobs.mkdir()
    (blobs / "cafe").write_bytes(b"x")
    (model / "link").symlink_to("../blobs/cafe")
    with pytest.raises(UnsafeInputError):
        safe_join(model, "link")


@given(st.text(st.sampled_from(["a", ".", "/", "\\", ":", " ", "\0", "-", "é"]), max_size=12))
def test_a_joined_name_is_inside(name: str) -> None:
    root = Path("/model")
    try:
        path = safe_join(root, name)
    except UnsafeInputError:
        return
    assert Path(os.path.normpath(path)).is_relative_to(root)
    assert path != root


def test_open_regular_gives_the_size(model: Path) -> None:
    with open_regular(model / "model.safetensors") as (file, n_bytes):
        assert (file.read(), n_bytes) == (b"x", 1)


def test_open_regular_refuses_what_is_not_a_file(model: Path) -> None:
    os.mkfifo(model / "pipe")
    for path in (model / "pipe", model, Path("/dev/zero"), model / "a\0b"):
        with pytest.raises(BadInputError), open_regular(path):
            pass
    for path in (model / "absent", model / "model.safetensors" / "x"):
        with pytest.raises(MissingInputError), open_regular(path):
            pass

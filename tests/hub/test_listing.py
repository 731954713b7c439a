"""What the hub says of a repository: hostile names and numbers, and which files are chosen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import (
    BadInputError,
    EdgeLLMError,
    MissingInputError,
    NetworkError,
    SpecError,
    UnsafeInputError,
    UnsupportedError,
)
from edgellm.hub import listing, parse_id
from tests.support.fake_hub import listing_of

MODEL = parse_id("org/name")
COMMIT = "a" * 40
SHARD = "model-00001-of-00001.safetensors"


def read(
    files: dict[str, bytes], change: Any = lambda fields: None, model: str = "org/name"
) -> listing.Listing:
    fields = listing_of("org/name", COMMIT, files)
    change(fields)
    return listing.parse_listing(json.dumps(fields).encode(), parse_id(model))


def with_index(folder: Path, *names: str) -> listing.Listing:
    """A listing and an index on the disk that names those shards."""
    index = json.dumps({"weight_map": {f"t{i}": name for i, name in enumerate(names)}})
    (folder / listing.INDEX).write_text(index)
    return read({listing.INDEX: index.encode(), "config.json": b"{}", **dict.fromkeys(names, b"x")})


HOSTILE = [
    "../x.safetensors", "/etc/x.safetensors", "C:\\x.safetensors", "C:x.safetensors", "\\\\srv\\x.safetensors",
    "a\0.safetensors", "a\n.safetensors", "x" * 300 + ".safetensors", "a/../../x.safetensors", "./x.safetensors",
    "CON.safetensors", "a//b.safetensors", " x.safetensors", "x/ /y.safetensors", "nul/x.safetensors",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_shard_cannot_leave_its_folder(name: str, tmp_path: Path) -> None:
    found = with_index(tmp_path, name)
    with pytest.raises(UnsafeInputError, match="escapes the model directory"):
        listing.shards(found, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [listing.INDEX]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_hostile_names_that_are_not_needed_are_not_used(name: str, tmp_path: Path) -> None:
    found = read({"config.json": b"{}", "model.safetensors": b"x", name: b"evil"})
    assert listing.choose_file(found, MODEL) is None
    chosen = [*listing.small_files(found), *listing.shards(found, tmp_path)]
    assert [file.name for file in chosen] == ["config.json", "model.safetensors"]


@given(st.text(min_size=1, max_size=300))
def test_any_name_of_a_file_is_refused_or_safe(name: str) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"x", name: b"y"}
    try:
        found = read(files)
        file = found.file(name, 10)
    except EdgeLLMError as err:
        assert "\n" not in err.message  # noqa: PT017
    else:
        assert not name.startswith("/")
        assert ".." not in name.split("/")
        assert "\\" not in name
        assert file.name == name


def test_shards_that_differ_only_in_case_are_refused(tmp_path: Path) -> None:
    found = with_index(tmp_path, "Model-1.safetensors", "model-1.safetensors")
    with pytest.raises(UnsafeInputError, match="differ only in case"):
        listing.shards(found, tmp_path)


def test_the_index_names_only_safetensors_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(UnsafeInputError, match=r"pytorch_model\.bin"):
        listing.shards(with_index(tmp_path, "pytorch_model.bin"), tmp_path)
    found = with_index(tmp_path, SHARD)
    del found.siblings[SHARD]
    with pytest.raises(MissingInputError, match=SHARD):
        listing.shards(found, tmp_path)


def test_a_single_file_goes_before_an_index_as_in_transformers(tmp_path: Path) -> None:
    found = read({"config.json": b"{}", "model.safetensors": b"x", listing.INDEX: b"{}", SHARD: b"y"})
    chosen = [*listing.small_files(found), *listing.shards(found, tmp_path)]
    assert [file.name for file in chosen] == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("n_pickles", [1, 5])
def test_a_repository_of_pickles_is_refused_by_name(n_pickles: int) -> None:
    files = {f"pytorch_model-{i}.bin": b"x" for i in range(n_pickles)} | {"config.json": b"{}"}
    with pytest.raises(UnsafeInputError, match=r"pickles \(pytorch_model-0\.bin") as caught:
        listing.choose_file(read(files), MODEL)
    assert caught.value.exit_code == 65


def test_several_ggufs_are_listed_and_one_is_taken() -> None:
    files = {"a-Q4_0.gguf": b"x", "README.md": b"", "mmproj-a.gguf": b"x"}
    assert listing.choose_file(read(files), MODEL) == "a-Q4_0.gguf"
    files["b-Q8_0.gguf"] = b"x"
    with pytest.raises(SpecError, match="2 GGUF files") as caught:
        listing.choose_file(read(files), MODEL)
    assert "org/name/a-Q4_0.gguf, org/name/b-Q8_0.gguf" in str(caught.value.hint)
    assert listing.choose_file(read(files), parse_id("org/name/b-Q8_0.gguf")) == "b-Q8_0.gguf"
    with pytest.raises(MissingInputError, match=r"no file 'c\.gguf'"):
        listing.choose_file(read(files), parse_id("org/name/c.gguf"))
    with pytest.raises(UnsupportedError, match="split GGUF"):
        listing.choose_file(read({"a-00001-of-00002.gguf": b"x"}), MODEL)


def test_what_has_no_weights_or_no_config_is_missing() -> None:
    with pytest.raises(MissingInputError, match=r"no model\.safetensors"):
        listing.choose_file(read({"config.json": b"{}", "adapter.safetensors": b"x"}), MODEL)
    with pytest.raises(MissingInputError, match=r"no config\.json"):
        listing.choose_file(read({"model.safetensors": b"x"}), MODEL)


def _set(key: str, value: Any) -> Any:
    return lambda fields: fields.__setitem__(key, value)


@pytest.mark.parametrize(
    "change",
    [
        _set("sha", "main"), _set("sha", None), _set("sha", "A" * 40), _set("sha", "../" + "a" * 37),
        _set("siblings", None), _set("siblings", [{}]), _set("siblings", ["x"]), _set("siblings", [{"rfilename": 3}]),
    ],
)  # fmt: skip
def test_a_listing_that_is_none_is_the_networks_fault(change: Any) -> None:
    with pytest.raises(NetworkError, match="listing"):
        read({"config.json": b"{}"}, change)


def test_html_instead_of_json_is_the_networks_fault() -> None:
    with pytest.raises(NetworkError, match="not JSON"):
        listing.parse_listing(b"<html>please log in to this hotel</html>", MODEL)


def test_another_commit_than_asked_for_is_refused() -> None:
    with pytest.raises(NetworkError, match="answers for commit aaaa"):
        read({"config.json": b"{}"}, model=f"org/name@{'b' * 40}")


def test_a_file_listed_twice_is_refused() -> None:
    with pytest.raises(UnsafeInputError, match="listed twice"):
        read({"config.json": b"{}"}, lambda fields: fields["siblings"].extend(fields["siblings"]))


@pytest.mark.parametrize(
    ("sibling", "error"),
    [
        ({"size": -1, "blobId": "a" * 40}, NetworkError),
        ({"size": True, "blobId": "a" * 40}, NetworkError),
        ({"size": 1.5, "blobId": "a" * 40}, NetworkError),
        ({"size": None, "blobId": "a" * 40}, NetworkError),
        ({"size": 1}, NetworkError),
        ({"size": 1, "blobId": "../x"}, NetworkError),
        ({"size": 1, "blobId": "a" * 40, "lfs": {}}, NetworkError),
        ({"size": 1, "blobId": "a" * 40, "lfs": {"size": 1, "sha256": "zz"}}, NetworkError),
        ({"size": 1 << 62, "blobId": "a" * 40}, BadInputError),
        ({"size": 1, "lfs": {"size": 1 << 62, "sha256": "a" * 64}}, BadInputError),
    ],
)
def test_sizes_and_hashes_are_needed_and_bounded(sibling: dict[str, Any], error: type[EdgeLLMError]) -> None:
    found = read({}, _set("siblings", [{"rfilename": "config.json", **sibling}]))
    with pytest.raises(error, match=r"config\.json"):
        listing.small_files(found)

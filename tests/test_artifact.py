"""Artifacts: names, sizes, hashes, and a directory that appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm import artifact
from edgellm.artifact import (
    FileEntry,
    Manifest,
    Parent,
    Receipt,
    check_file_name,
    open_directory,
    verify_hashes,
)
from edgellm.errors import ArtifactError, BadInputError, MissingInputError
from edgellm.formats.records import from_json, to_json
from tests.samples import make_manifest
from tests.support.damage import damaged, mutated
from tests.support.refusals import refusal

WEIGHTS = b"GGUF"


def write_artifact(directory: Path, weights: bytes = WEIGHTS) -> Path:
    """A directory with a 4-byte model and the manifest that fits it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.gguf").write_bytes(weights)
    manifest = make_manifest(files=[artifact.entry_for(directory / "model.gguf")])
    artifact.write_record(directory / "manifest.json", manifest)
    return directory


def test_a_sound_artifact_opens_and_verifies(tmp_path: Path) -> None:
    found = open_directory(write_artifact(tmp_path / "a"))
    assert found.manifest.model == "tiny"
    assert found.model_path == str(tmp_path / "a" / "model.gguf")
    assert (found.tokenizer_path, found.receipt) == (None, None)
    hashed: list[int] = []
    verify_hashes(found, hashed.append)
    assert sum(hashed) == 4


def test_a_directory_without_manifest(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(MissingInputError, match="not an artifact"):
            open_directory(place)


def test_another_size_is_noticed_on_opening(tmp_path: Path) -> None:
    directory = write_artifact(tmp_path / "a")
    (directory / "model.gguf").write_bytes(b"GGUF!")
    with pytest.raises(ArtifactError, match=r"model\.gguf: 5 bytes, the manifest says 4"):
        open_directory(directory)


def test_another_content_is_noticed_by_verify(tmp_path: Path) -> None:
    directory = write_artifact(tmp_path / "a")
    (directory / "model.gguf").write_bytes(b"GGUE")
    found = open_directory(directory)
    with pytest.raises(ArtifactError) as caught:
        verify_hashes(found)
    for content in (b"GGUF", b"GGUE"):
        assert hashlib.sha256(content).hexdigest() in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    directory = write_artifact(tmp_path / "a")
    (directory / "model.gguf").unlink()
    with pytest.raises(ArtifactError, match="not a file there"):
        open_directory(directory)


def test_a_link_is_not_a_file_of_the_artifact(tmp_path: Path) -> None:
    directory = write_artifact(tmp_path / "a")
    (directory / "model.gguf").rename(tmp_path / "elsewhere")
    (directory / "model.gguf").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="not a file there"):
        open_directory(directory)


def test_a_manifest_that_lists_no_model(tmp_path: Path) -> None:
    artifact.write_record(tmp_path / "manifest.json", make_manifest(files=[]))
    with pytest.raises(ArtifactError, match=r"lists no model\.gguf"):
        open_directory(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"model.gguf"', b'"../model.gguf"'),
        (b"edgellm.manifest/1", b"edgellm.manifest/9"),
        (b'"quant"', b'"quantum"'),
        (b'"sha256": "', b'"sha256": "x'),
        (b'"bpw": 4.5', b'"bpw": NaN'),
        (b"{", b"["),
    ],
)
def test_a_malformed_manifest(tmp_path: Path, old: bytes, new: bytes) -> None:
    directory = write_artifact(tmp_path / "a")
    path = directory / "manifest.json"
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(BadInputError, match=r"manifest\.json"):
        open_directory(directory)


@pytest.mark.parametrize("name", ["manifest.json", "receipt.json"])
def test_damaged_records_are_read_or_refused(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "a"
    directory.mkdir()
    (directory / "model.gguf").write_bytes(WEIGHTS)
    artifact.write_record(directory / "receipt.json", receipt(OF_TEXT))
    files = [artifact.entry_for(directory / each) for each in ("model.gguf", "receipt.json")]
    artifact.write_record(directory / "manifest.json", make_manifest(files=files))
    assert open_directory(directory).receipt is not None
    path = directory / name
    whole = path.read_bytes()
    refusals = []
    for content in (*damaged(whole, name, 300), *mutated(whole, name, 300)):
        # Of a receipt that no longer has the length in the manifest only that is noticed.
        same_length = content[: len(whole)].ljust(len(whole)) if name == "receipt.json" else content
        path.write_bytes(same_length)
        refusals.append(refusal(lambda: open_directory(directory)))
    assert sum(words is not None for words in refusals) > 300
    assert len(set(refusals)) > 50


def test_a_manifest_that_is_too_large(tmp_path: Path) -> None:
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(artifact.MAX_MANIFEST_BYTES + 1)
    with pytest.raises(BadInputError, match="larger than"):
        open_directory(tmp_path)


def test_a_manifest_survives_json() -> None:
    manifest = make_manifest(licence="Apache-2.0", warnings=["a tensor fell back to Q5_0"])
    assert from_json(Manifest, to_json(manifest), "test") == manifest


@pytest.mark.parametrize(
    "name", ["model.gguf", "a", "..a", "a..", ".hidden", "model one.gguf", "é" * 127, "x" * 255]
)
def test_plain_file_names(name: str) -> None:
    assert check_file_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "/etc/passwd",
        "../x",
        "a\\b",
        "C:x",
        "a\x00",
        "a\nb",
        "\x1f",
        "é" * 128,
        "x" * 256,
    ],
)
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a plain file name"):
        check_file_name(name)
    with pytest.raises(ValueError, match="not a plain file name"):
        FileEntry(name=name, n_bytes=0, sha256="0" * 64)


@pytest.mark.parametrize(
    "name", ["config.json", "1_Pooling/config.json", "a/b/c", "..a", "model v1: final.gguf"]
)
def test_a_parent_may_lie_in_a_folder(name: str) -> None:
    assert Parent(name=name, n_bytes=0, sha256="0" * 64).name == name


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", "./a", "x" * 1025])
def test_a_parent_outside_its_directory(name: str) -> None:
    with pytest.raises(ValueError, match="not a name inside a directory"):
        Parent(name=name, n_bytes=0, sha256="0" * 64)


OF_TEXT = {
    "kl_mean": 0.1, "kl_mean_error": 0.01, "kl_p99": 1.0, "top1_agreement": 0.9, "top1_agreement_error": 0.1,
    "perplexity_ratio": 1.0, "perplexity_ratio_error": 0.1, "golden": [], "max_kl": 1.0,
}  # fmt: skip
OF_EMBEDDINGS = {
    "kind": "embedding", "n_texts": 3, "cosine_mean": 0.9, "cosine_min": 0.8, "min_cosine": 0.7, "golden_embeddings": [],
}  # fmt: skip


def receipt(figures: dict[str, Any]) -> Receipt:
    fields = {
        "schema": artifact.RECEIPT_SCHEMA, "reference": "m (F32)", "reference_engine": "e", "reference_sha256": "0" * 64,
        "text_name": "t", "text_sha256": "0" * 64, "n_tokens": 5, "verdict": "pass",
    }  # fmt: skip
    return from_json(Receipt, json.dumps({**fields, **figures}).encode(), "receipt.json")


def test_a_receipt_has_the_figures_of_its_kind_and_no_others() -> None:
    old = receipt(OF_TEXT)  # before there were kinds
    assert (old.kind, old.cosine_min) == ("generation", None)
    of_embeddings = receipt(OF_EMBEDDINGS)
    assert of_embeddings.kl_mean is of_embeddings.golden is None
    for record in (old, of_embeddings):
        assert from_json(Receipt, to_json(record), "receipt.json") == record


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        *[({k: v for k, v in OF_TEXT.items() if k != name}, f"{name} is absent") for name in OF_TEXT],
        *[
            ({k: v for k, v in OF_EMBEDDINGS.items() if k != name}, f"{name} is absent")
            for name in OF_EMBEDDINGS
            if name != "kind"
        ],
        ({**OF_TEXT, "cosine_min": 0.5}, "cosine_min is there"),
        ({**OF_EMBEDDINGS, "kl_mean": 0.0}, "kl_mean is there"),
        ({**OF_EMBEDDINGS, "min_top1_agreement": 0.0}, "min_top1_agreement is there"),
        ({**OF_EMBEDDINGS, "kind": "ranking"}, "kind"),
    ],
)
def test_a_receipt_with_other_figures(figures: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        receipt(figures)


@given(st.text(max_size=300))
def test_an_accepted_name_stays_in_its_directory(name: str) -> None:
    try:
        check_file_name(name)
    except ValueError:
        return
    assert os.path.normpath(os.path.join("/base", name)) == f"/base/{name}"  # noqa: PTH118


@pytest.mark.parametrize(
    "digest", ["", "0" * 63, "0" * 65, "0" * 64 + "\n", "A" * 64, "g" * 64, "sha256:" + "0" * 57]
)
def test_hashes_are_64_lowercase_digits(digest: str) -> None:
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        FileEntry(name="a", n_bytes=0, sha256=digest)


@given(data=st.binary(max_size=100))
def test_sha256_of_a_file(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("hash") / "file"
    path.write_bytes(data)
    seen: list[int] = []
    assert artifact.sha256_file(path, seen.append) == hashlib.sha256(data).hexdigest()
    assert sum(seen) == len(data)


def test_a_file_longer_than_one_piece_is_hashed_whole(tmp_path: Path) -> None:
    data = os.urandom((1 << 20) + 1)
    (tmp_path / "file").write_bytes(data)
    assert artifact.sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_records_are_never_written_over(tmp_path: Path) -> None:
    write_artifact(tmp_path)
    with pytest.raises(FileExistsError):
        artifact.write_record(tmp_path / "manifest.json", make_manifest())

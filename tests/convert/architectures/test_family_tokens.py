"""Every family with the kind of tokenizer its models have: the result reads texts as the `tokenizers` library does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgellm.convert import hard_text
from tests.support import tiny_models, tiny_tokenizers
from tests.support.families import ROWS
from tests.support.families.row import Row
from tests.support.tiny_models import Made
from tests.support.tiny_tokenizers import Converted

# Rows of the tiny models, and rows that hold any of the tokenizers and some padding.
N_ROWS, PADDED_ROWS = 320, 1024
SENTENCEPIECE = ("mistral", "mixtral", "gemma2", "gemma3_text", "phi3", "llama")
WORDPIECE = ("bert", "distilbert", "nomic_bert")
Files = dict[str, bytes]


def one_row_per_model_type() -> dict[str, Row]:
    found: dict[str, Row] = {}
    for row in ROWS.values():
        found.setdefault(row.config_class, row)
    return found


FAMILIES = {row.name: row for row in one_row_per_model_type().values()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    return tiny_models.make(FAMILIES.values(), tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Files]:
    """Kind -> the files it comes in."""
    words = tiny_tokenizers.wordpiece()
    lines = "".join(f"{text}\n" for text, _ in sorted(words.get_vocab().items(), key=lambda row: row[1]))
    special = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "tokenizer_class": "LlamaTokenizer",
    }
    return {
        "SentencePiece": {
            "tokenizer.model": tiny_tokenizers.bpe_model(),
            "tokenizer_config.json": json.dumps(special).encode(),
        },
        "WordPiece": {
            "vocab.txt": lines.encode(),
            "tokenizer_config.json": b'{"do_lower_case": true, "tokenizer_class": "BertTokenizer"}',
        },
        "byte-level BPE": {
            "tokenizer.json": tiny_tokenizers.byte_level().to_str().encode(),
            "tokenizer_config.json": b'{"eos_token": "<|endoftext|>"}',
        },
    }


def kind_of(config: dict[str, Any]) -> str:
    if config["model_type"] in SENTENCEPIECE:
        return "SentencePiece"
    return "WordPiece" if config["model_type"] in WORDPIECE else "byte-level BPE"


@pytest.mark.parametrize("name", FAMILIES)
def test_token_ids_on_the_hard_text(
    made: dict[str, Made], tokenizers: dict[str, Files], name: str, tmp_path: Path
) -> None:
    source = made[name].directory
    config = json.loads((source / "config.json").read_text())
    section = config["text_config"] if "vocab_size" not in config else config
    section["vocab_size"] = PADDED_ROWS
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(_padded(load_file(source / "model.safetensors")), tmp_path / "model.safetensors")
    for file, content in tokenizers[kind_of(config)].items():
        (tmp_path / file).write_bytes(content)
    converted = Converted(tmp_path)
    wrong = [text for text in hard_text.TEXTS if converted.ids(text) != converted.library_ids(text)]
    known = 2 if kind_of(config) == "WordPiece" else 0  # Hangul and spacing vowel signs, see hard_text
    assert len(wrong) <= known, wrong
    assert converted.llama_cpp.vocab_size == PADDED_ROWS
    assert len(converted.key("tokens")) == PADDED_ROWS


def _padded(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same with as many rows as the vocabulary has now."""
    more = PADDED_ROWS - N_ROWS
    return {
        name: np.pad(t, [(0, more), *[(0, 0)] * (t.ndim - 1)]) if t.shape[0] == N_ROWS else t
        for name, t in tensors.items()
    }

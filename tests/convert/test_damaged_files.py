"""Every small file of a checkpoint, damaged at random: it is read, or refused in one line; nothing else happens."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest

from edgellm.checkpoint import open_checkpoint
from edgellm.convert import pipeline, tokenizer, writer
from edgellm.errors import EdgeLLMError
from edgellm.formats import gguf, gguf_vocab
from tests.support import tiny_tokenizers
from tests.support.damage import damaged, mutated
from tests.support.tiny_bert import write_tiny_bert
from tests.support.tiny_llama import write_tiny_llama

N_DAMAGED, N_MUTATED = 25, 35
SETTINGS = {
    "tokenizer_config.json": {
        "bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "unk_token": "<unk>", "add_bos_token": True,
        "tokenizer_class": "LlamaTokenizer", "chat_template": [{"name": "default", "template": "{{ messages }}"}],
        "added_tokens_decoder": {"1": {"content": "<s>", "special": True}, "1000": {"content": "<new>", "special": False}},
    },
    "special_tokens_map.json": {
        "bos_token": "<s>", "eos_token": {"content": "</s>"}, "additional_special_tokens": ["<s>", {"content": "</s>"}],
    },
    "generation_config.json": {"bos_token_id": 1, "eos_token_id": [2, 5], "pad_token_id": 0},
    "added_tokens.json": {"<a>": 1001, "<b>": 1002},
}  # fmt: skip


def convertible(directory: Path, folder: Path) -> None:
    """All that Python does with the small files before native code sees a vocabulary."""
    source = pipeline.read_source(open_checkpoint(directory))
    vocabulary = tokenizer.read_vocabulary(source.checkpoint, source.shape.vocab_size)
    header = source.header | vocabulary.header("default", source.checkpoint.chat_template)
    header |= vocabulary.candidates[0].header()
    path = folder / "trial.gguf"
    writer.write_gguf(path, dataclasses.replace(source, tensors=()), {}, header, n_workers=1)
    gguf_vocab.validate_vocab(gguf.read_gguf(path))


def check(path: Path, read: Callable[[], object]) -> None:
    """Damage that file again and again, and put it right at the end."""
    whole = path.read_bytes()
    read()
    outcomes = []
    is_json = path.suffix == ".json"
    for i, content in enumerate(
        chain(damaged(whole, path.name, N_DAMAGED), mutated(whole, path.name, N_MUTATED) if is_json else ())
    ):
        path.write_bytes(content)
        try:
            read()
        except EdgeLLMError as err:
            outcomes.append((i, err))
        except Exception as err:
            raise AssertionError(f"{path.name}, case {i}: {type(err).__name__}: {err}") from err
    path.write_bytes(whole)
    for i, error in outcomes:
        assert error.exit_code in (65, 66, 69), f"{path.name}, case {i}: {error!r}"
        assert "\n" not in error.message, f"{path.name}, case {i}"
        assert len(error.message) < 700, f"{path.name}, case {i}"
    assert outcomes, "no damage was noticed"


@pytest.fixture(scope="module")
def bpe_file() -> bytes:
    return tiny_tokenizers.bpe_model()


def of_sentencepiece(folder: Path, bpe_file: bytes) -> Path:
    files = {"tokenizer.model": bpe_file, **SETTINGS}
    return tiny_tokenizers.write_model(folder, files, vocab_size=1010)


@pytest.mark.parametrize("name", ["tokenizer.model", *SETTINGS])
def test_a_sentencepiece_model_and_its_settings(tmp_path: Path, bpe_file: bytes, name: str) -> None:
    directory = of_sentencepiece(tmp_path / "m", bpe_file)
    check(directory / name, lambda: convertible(directory, tmp_path))


@pytest.mark.parametrize("kind", ["byte level", "wordpiece", "sentencepiece", "unigram"])
def test_a_tokenizer_json(tmp_path: Path, kind: str, bpe_file: bytes) -> None:
    if kind in ("byte level", "wordpiece"):
        made = tiny_tokenizers.byte_level() if kind == "byte level" else tiny_tokenizers.wordpiece()
        content = made.to_str(pretty=True).encode()
    else:
        other = tiny_tokenizers.sentencepiece_model("unigram", normalization_rule_name="nmt_nfkc")
        files = {"tokenizer.model": bpe_file if kind == "sentencepiece" else other, **SETTINGS}
        source = pipeline.read_source(
            open_checkpoint(tiny_tokenizers.write_model(tmp_path / "older", files, vocab_size=1010))
        )
        content = tokenizer.read_vocabulary(source.checkpoint, 1010).tokenizer_json or b""
    directory = tiny_tokenizers.write_model(tmp_path / "m", {"tokenizer.json": content}, vocab_size=1010)
    check(directory / "tokenizer.json", lambda: convertible(directory, tmp_path))


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_the_two_files_of_gpt2(tmp_path: Path, name: str) -> None:
    model = json.loads(tiny_tokenizers.byte_level().to_str())["model"]
    merges = "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in model["merges"])
    files = {"vocab.json": model["vocab"], "merges.txt": merges.encode()}
    directory = tiny_tokenizers.write_model(tmp_path / "m", files, vocab_size=820)
    check(directory / name, lambda: convertible(directory, tmp_path))


def test_the_list_of_words_of_bert(tmp_path: Path) -> None:
    ids = tiny_tokenizers.wordpiece().get_vocab()
    lines = "\n".join(sorted(ids, key=lambda text: ids[text])) + "\n"
    directory = tiny_tokenizers.write_model(
        tmp_path / "m", {"vocab.txt": lines.encode()}, vocab_size=len(ids), model_type="llama"
    )
    check(directory / "vocab.txt", lambda: convertible(directory, tmp_path))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_the_configuration_and_the_index(tmp_path: Path, name: str) -> None:
    directory = write_tiny_llama(tmp_path / "m", n_shards=2)
    check(directory / name, lambda: convertible(directory, tmp_path))


@pytest.mark.parametrize("name", ["modules.json", "1_Pooling/config.json"])
def test_the_pooling_of_an_encoder(tmp_path: Path, name: str) -> None:
    directory = write_tiny_bert(tmp_path / "m")
    check(directory / name, lambda: pipeline.read_source(open_checkpoint(directory)))

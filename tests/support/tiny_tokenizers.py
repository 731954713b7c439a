"""Small real tokenizers, trained on the package's own check text, in the directories that old and new models have."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from edgellm.api import launch
from edgellm.checkpoint import open_checkpoint
from edgellm.convert import pipeline, quality, writer
from edgellm.convert.source import Source
from edgellm.native.llama import LlamaModel, LlamaOptions
from tests.support import tiny_llama

SMALL = {
    "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 8,
    "num_hidden_layers": 1,
}  # fmt: skip
# Letters of many scripts, so that unknown characters are not the only thing tried.
LETTERS = "äöüßéèêñçøåαβγδεабвгдежзийклмн你好世界天地人こんにちは안녕하세요ابتثשלוםनमस्ते"


def corpus() -> list[str]:
    """Lines to train on."""
    lines = quality.CHECK_TEXT.read_text("utf-8").splitlines()
    return [
        *(line for line in lines if line.strip()),
        *(" ".join(LETTERS[i:]) for i in range(0, len(LETTERS), 5)),
    ]


def sentencepiece_model(model_type: str, **options: Any) -> bytes:
    """A trained tokenizer.model."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=out, model_type=model_type, minloglevel=2, num_threads=1,
        **{"vocab_size": 1000, "character_coverage": 1.0, "hard_vocab_limit": False, **options},
    )  # fmt: skip
    return out.getvalue()


def bpe_model(**options: Any) -> bytes:
    """A tokenizer.model as Llama's: BPE, byte fallback, no normalization."""
    like_llama = {
        "byte_fallback": True, "normalization_rule_name": "identity", "split_digits": True,
        "remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True,
    }  # fmt: skip
    return sentencepiece_model("bpe", **{**like_llama, **options})


def wordpiece(*, lowercase: bool = True) -> Tokenizer:
    """A trained BERT tokenizer."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=1000, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def byte_level() -> Tokenizer:
    """A trained GPT-2 tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def write_model(
    directory: Path, files: dict[str, bytes | dict[str, Any]], *, vocab_size: int, **config: Any
) -> Path:
    """A tiny llama with these tokenizer files and no others."""
    tiny_llama.write_tiny_llama(directory, {**SMALL, "vocab_size": vocab_size, **config})
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer_config.json").unlink()
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (directory / name).write_bytes(data)
    return directory


class Converted:
    """A directory as edgellm converts it: its source, what it says, and both tokenizers of the result."""

    def __init__(self, directory: Path) -> None:
        source, note = pipeline.add_vocabulary(
            pipeline.read_source(open_checkpoint(directory)), launch.TOKENIZERS
        )
        self.source: Source = source
        self.note = note or ""
        path = directory / "converted.gguf"
        types = {tensor.name: "F32" for tensor in source.tensors}
        writer.write_gguf(path, source, types, source.header, n_workers=1)
        self.llama_cpp = LlamaModel(path, LlamaOptions(n_threads=1), vocab_only=True)
        kept = source.checkpoint.tokenizer_json
        carried = kept if kept is not None else (directory / "tokenizer.json").read_bytes()
        self.library = Tokenizer.from_str(carried.decode())

    def key(self, name: str) -> Any:
        """A header value by its name after `tokenizer.ggml.`; None where absent."""
        entry = self.source.header.get(f"tokenizer.ggml.{name}")
        return None if entry is None else entry.value

    def ids(self, text: str, *, add_special: bool = False) -> list[int]:
        """By llama.cpp."""
        return self.llama_cpp.tokenize(text, add_special=add_special, parse_special=False)

    def library_ids(self, text: str, *, add_special: bool = False) -> list[int]:
        """By the tokenizer.json that the artifact would carry."""
        ids: list[int] = self.library.encode(text, add_special_tokens=add_special).ids
        return ids

"""Text to ids: by the artifact's own tokenizer.json, or by the backend; both agree on the embedded model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgellm.api import models
from edgellm.errors import ArtifactError, ContextOverflowError
from edgellm.native.llama import LlamaModel, LlamaOptions
from edgellm.runtime.tokenizer import Tokenizer
from tests.support.fake_backend import BOS, TURN, FakeBackend

TEXTS = [
    "Hello world",
    " leading",
    "def f(x):\n    return 12345",
    "é漢😀 naïve",
    "<|im_end|>",
    "",
    "\t\r\n  ",
    "a\0b",
]


@pytest.fixture(scope="module")
def backend(smollm2_gguf: Path) -> Iterator[LlamaModel]:
    model = models.open_backend(smollm2_gguf, LlamaOptions(n_threads=1))
    yield model
    model.close()


def test_without_a_file_the_backend_tokenizes() -> None:
    tokenizer = Tokenizer(FakeBackend(), None)
    assert tokenizer.encode("a<turn>", add_special=True, parse_special=True) == [BOS, 97, TURN]
    assert tokenizer.encode("a<turn>", add_special=False, parse_special=False) == [97, *b"<turn>"]


@pytest.mark.parametrize("parse_special", [True, False])
def test_both_tokenizers_of_a_model_agree(smollm2_hf: Path, backend: LlamaModel, parse_special: bool) -> None:
    own, native = Tokenizer(backend, smollm2_hf / "tokenizer.json"), Tokenizer(backend, None)
    for text in TEXTS:
        a, b = (t.encode(text, add_special=False, parse_special=parse_special) for t in (own, native))
        assert a == b, text


def test_special_text_is_one_token_only_where_asked(smollm2_hf: Path, backend: LlamaModel) -> None:
    tokenizer = Tokenizer(backend, smollm2_hf / "tokenizer.json")
    assert tokenizer.encode("<|im_end|>", add_special=False, parse_special=True) == [2]
    plain = tokenizer.encode("<|im_end|>", add_special=False, parse_special=False)
    assert len(plain) > 1
    assert 2 not in plain
    assert tokenizer.encode("<|im_end|>", add_special=False, parse_special=True) == [2]


def test_half_a_surrogate_pair_is_tokenized_as_a_question_mark(smollm2_hf: Path, backend: LlamaModel) -> None:
    for path in (None, smollm2_hf / "tokenizer.json"):
        tokenizer = Tokenizer(backend, path)
        ids = tokenizer.encode("a\udcffb", add_special=False, parse_special=False)
        assert ids == tokenizer.encode("a?b", add_special=False, parse_special=False)


def test_truncation_and_padding_in_the_file_are_ignored(
    smollm2_hf: Path, backend: LlamaModel, tmp_path: Path
) -> None:
    content = json.loads((smollm2_hf / "tokenizer.json").read_bytes())
    content["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>",
    }  # fmt: skip
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    ids = Tokenizer(backend, path).encode("one two three four", add_special=False, parse_special=False)
    assert ids == backend.tokenize("one two three four", add_special=False, parse_special=False)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"not json", b"\xff\xfe", b'{"version": "1.0", "model": {}}', b"[" * 9999]
)
def test_what_is_no_tokenizer_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: not a tokenizer"):
        Tokenizer(FakeBackend(), path)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(smollm2_hf: Path) -> None:
    with pytest.raises(ArtifactError, match="49152 tokens, the model knows 259"):
        Tokenizer(FakeBackend(), smollm2_hf / "tokenizer.json")


def test_an_id_above_the_vocabulary_is_refused_though_the_count_is_small(tmp_path: Path) -> None:
    vocab = {"a": 0, "b": 100_000}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "a"}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    with pytest.raises(ArtifactError, match="100001"):
        Tokenizer(FakeBackend(), path)


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FakeBackend()
    tokenizer = Tokenizer(backend, None)

    def encode(n_chars: int) -> list[int]:
        return tokenizer.encode("x" * n_chars, add_special=False, parse_special=False, most_tokens=10)

    assert len(encode(640)) == 640
    monkeypatch.setattr(backend, "tokenize", lambda *_, **__: pytest.fail("it was tokenized"))
    with pytest.raises(
        ContextOverflowError, match=r"has 641 bytes, the context holds 10 tokens of at most 6"
    ):
        encode(641)

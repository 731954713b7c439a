"""Every kind of vocabulary, trained here: llama.cpp's ids of the converted model equal those of independent libraries."""

from __future__ import annotations

import base64
import json
import re
import unicodedata
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.checkpoint import open_checkpoint
from edgellm.convert import hard_text, tokenizer
from edgellm.errors import BadInputError, MissingInputError, UnsupportedError
from edgellm.formats.sentencepiece import read_sentencepiece
from tests.support import strings, tiny_tokenizers
from tests.support.tiny_tokenizers import Converted

LLAMA_CONFIG = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "tokenizer_class": "LlamaTokenizer",
}
MARKED = re.compile("[\u0300-\u036f]{2}")
PLAIN = list(dict.fromkeys(strings.varied_strings(12) + list(hard_text.TEXTS)))


@pytest.fixture(scope="module")
def bpe_file() -> bytes:
    return tiny_tokenizers.bpe_model(user_defined_symbols=["<table>", "@@"])


@pytest.fixture(scope="module")
def bpe(bpe_file: bytes, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    files = {"tokenizer.model": bpe_file, "tokenizer_config.json": LLAMA_CONFIG}
    return Converted(
        tiny_tokenizers.write_model(tmp_path_factory.mktemp("bpe") / "m", files, vocab_size=1010)
    )


@pytest.fixture(scope="module")
def unigram_file() -> bytes:
    return tiny_tokenizers.sentencepiece_model("unigram", normalization_rule_name="nmt_nfkc")


@pytest.fixture(scope="module")
def unigram(unigram_file: bytes, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    files = {
        "tokenizer.model": unigram_file,
        "tokenizer_config.json": {"eos_token": "</s>", "unk_token": "<unk>"},
    }
    return Converted(
        tiny_tokenizers.write_model(tmp_path_factory.mktemp("ugm") / "m", files, vocab_size=1000)
    )


@pytest.fixture(scope="module", params=[True, False], ids=["lower case", "case kept"])
def wordpiece(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """From vocab.txt alone, as BERT's first repositories."""
    ids = tiny_tokenizers.wordpiece(lowercase=request.param).get_vocab()
    lines = "\n".join(sorted(ids, key=lambda text: ids[text])) + "\n"
    files = {"vocab.txt": lines.encode(), "tokenizer_config.json": {"do_lower_case": request.param}}
    directory = tmp_path_factory.mktemp("wpm") / "m"
    return Converted(tiny_tokenizers.write_model(directory, files, vocab_size=len(ids), model_type="llama"))


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """From vocab.json and merges.txt alone, as GPT-2's first repository."""
    model = json.loads(tiny_tokenizers.byte_level().to_str())["model"]
    merges = "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in model["merges"])
    files = {"vocab.json": model["vocab"], "merges.txt": merges.encode()}
    directory = tmp_path_factory.mktemp("gpt2") / "m"
    return Converted(tiny_tokenizers.write_model(directory, files, vocab_size=820))


def differing(converted: Converted, texts: list[str]) -> list[str]:
    return [text for text in texts if converted.ids(text) != converted.library_ids(text)]


def test_sentencepiece_bpe(bpe: Converted, bpe_file: bytes) -> None:
    assert differing(bpe, PLAIN) == []
    library = sentencepiece.SentencePieceProcessor(model_proto=bpe_file)
    # After a user-defined token SentencePiece puts no space, Hugging Face and llama.cpp do.
    texts = [text for text in PLAIN if "@@" not in text and "<table>" not in text]
    assert [text for text in texts if bpe.ids(text) != library.encode(text)] == []
    assert (bpe.key("model"), bpe.key("pre"), bpe.key("add_space_prefix")) == ("llama", "default", True)
    assert (bpe.key("add_bos_token"), bpe.key("add_eos_token")) == (True, False)
    assert (bpe.key("bos_token_id"), bpe.key("eos_token_id"), bpe.key("unknown_token_id")) == (1, 2, 0)
    assert bpe.ids("a", add_special=True) == bpe.library_ids("a", add_special=True) == [1, *bpe.ids("a")]


def test_sentencepiece_types_are_those_of_the_model(bpe: Converted, bpe_file: bytes) -> None:
    library = sentencepiece.SentencePieceProcessor(model_proto=bpe_file)
    kinds, tokens = bpe.key("token_type"), bpe.key("tokens")
    for number in range(library.vocab_size()):
        assert tokens[number] == library.id_to_piece(number)
        kind = kinds[number]
        assert (kind == 2) == library.is_unknown(number)
        assert (kind == 3) == library.is_control(number)
        assert (kind == 6) == library.is_byte(number)
    assert kinds[tokens.index("<table>")] == 4
    assert tokens[library.vocab_size() :] == [f"[PAD{i}]" for i in range(library.vocab_size(), 1010)]
    assert set(kinds[library.vocab_size() :]) <= {5}


@pytest.mark.parametrize("prefix", [True, False])
def test_the_leading_space_is_found_by_evidence(tmp_path: Path, prefix: bool) -> None:
    files = {
        "tokenizer.model": tiny_tokenizers.bpe_model(add_dummy_prefix=prefix),
        "tokenizer_config.json": {**LLAMA_CONFIG, "add_bos_token": False, "add_eos_token": True},
    }
    made = Converted(tiny_tokenizers.write_model(tmp_path / "m", files, vocab_size=1000))
    assert made.key("add_space_prefix") is prefix
    assert (made.key("add_bos_token"), made.key("add_eos_token")) == (False, True)
    assert "tokenizer.json rebuilt from tokenizer.model" in made.note


def test_unigram(unigram: Converted, unigram_file: bytes) -> None:
    # `tokenizers` normalizes a letter and its marks at once, SentencePiece and llama.cpp the longest match.
    assert differing(unigram, [text for text in PLAIN if not MARKED.search(text)]) == []
    library = sentencepiece.SentencePieceProcessor(model_proto=unigram_file)
    assert [text for text in PLAIN if unigram.ids(text) != library.encode(text)] == []
    assert (unigram.key("model"), unigram.key("remove_extra_whitespaces")) == ("t5", True)
    assert (unigram.key("add_bos_token"), unigram.key("add_eos_token")) == (False, True)
    charsmap = read_sentencepiece(unigram.source.checkpoint.path / "tokenizer.model").charsmap
    assert bytes(unigram.key("precompiled_charsmap")) == charsmap
    assert len(charsmap) > 1000


def test_wordpiece(wordpiece: Converted) -> None:
    lower = wordpiece.key("normalizer.lowercase")
    texts = [text for text in hard_text.TEXTS if not _taken_for_accents(text)]
    assert len(texts) > 30
    assert differing(wordpiece, texts) == []
    assert (wordpiece.ids("Blue") == wordpiece.ids("blue")) is lower
    assert wordpiece.ids("a", add_special=True) == wordpiece.library_ids("a", add_special=True)
    tokens = wordpiece.key("tokens")
    assert tokens[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert (wordpiece.key("bos_token_id"), wordpiece.key("seperator_token_id")) == (2, 3)
    assert not any(token.startswith("##") for token in tokens)


def test_byte_level_from_vocab_and_merges(byte_level: Converted) -> None:
    assert differing(byte_level, PLAIN) == []
    theirs = tiny_tokenizers.byte_level()
    assert all(byte_level.ids(text) == theirs.encode(text).ids for text in PLAIN)
    assert (byte_level.key("model"), byte_level.key("pre")) == ("gpt2", "gpt-2")


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn", "Co"]), max_size=40)


@settings(max_examples=150)
@given(text=TEXT)
def test_any_text_has_the_same_ids_in_sentencepiece_bpe(bpe: Converted, text: str) -> None:
    assert bpe.ids(text) == bpe.library_ids(text)


@settings(max_examples=150)
@given(text=TEXT)
def test_any_text_has_the_same_ids_in_byte_level_bpe(byte_level: Converted, text: str) -> None:
    assert byte_level.ids(text) == byte_level.library_ids(text)


@settings(max_examples=150)
@given(text=TEXT)
def test_any_text_has_the_same_ids_in_unigram(unigram: Converted, text: str) -> None:
    assert unigram.ids(text) == unigram.library_ids(text)


@settings(max_examples=150)
@given(text=st.text(st.characters(codec="latin-1", exclude_categories=["Cc", "Cf"]), max_size=40))
def test_any_western_text_has_the_same_ids_in_wordpiece(wordpiece: Converted, text: str) -> None:
    assert wordpiece.ids(text) == wordpiece.library_ids(text)


def test_added_tokens_of_other_files_join_the_tokenizer(bpe_file: bytes, tmp_path: Path) -> None:
    n = sentencepiece.SentencePieceProcessor(model_proto=bpe_file).vocab_size()
    decoder = {
        str(n + 1): {"content": "<|end|>", "special": True},
        str(n + 3): {"content": "<tool>", "special": False},
    }
    files = {
        "tokenizer.model": bpe_file,
        "tokenizer_config.json": {**LLAMA_CONFIG, "added_tokens_decoder": decoder},
        "added_tokens.json": {"<plain>": n + 2, "<|end|>": n + 1},
    }
    made = Converted(tiny_tokenizers.write_model(tmp_path / "m", files, vocab_size=n + 5))
    assert made.key("tokens")[n:] == [f"[PAD{n}]", "<|end|>", "<plain>", "<tool>", f"[PAD{n + 4}]"]
    assert made.key("token_type")[n:] == [5, 3, 4, 4, 5]
    for text, number in (("<|end|>", n + 1), ("<plain>", n + 2), ("<tool>", n + 3)):
        assert made.library.token_to_id(text) == number
        assert made.llama_cpp.tokenize(text, add_special=False, parse_special=True) == [number]


def test_an_added_token_without_a_row_is_left_out_and_named(bpe_file: bytes, tmp_path: Path) -> None:
    n = sentencepiece.SentencePieceProcessor(model_proto=bpe_file).vocab_size()
    files = {"tokenizer.model": bpe_file, "added_tokens.json": {"<image_soft_token>": n}}
    made = Converted(tiny_tokenizers.write_model(tmp_path / "m", files, vocab_size=n))
    assert "1 added tokens left out, the model has no rows for them: '<image_soft_token>'" in made.note
    assert len(made.key("tokens")) == made.library.get_vocab_size() == n


def test_a_vocabulary_larger_than_the_model_is_refused(bpe_file: bytes, tmp_path: Path) -> None:
    directory = tiny_tokenizers.write_model(tmp_path / "m", {"tokenizer.model": bpe_file}, vocab_size=900)
    with pytest.raises(BadInputError, match="has id 900, the model has 900 tokens"):
        tokenizer.read_vocabulary(open_checkpoint(directory), 900)


def test_a_missing_byte_token_is_refused(bpe: Converted, tmp_path: Path) -> None:
    content = json.loads(bpe.library.to_str())
    number = content["model"]["vocab"].pop("<0xC3>")
    content["model"]["vocab"]["other"] = number
    directory = tiny_tokenizers.write_model(tmp_path / "m", {"tokenizer.json": content}, vocab_size=1010)
    with pytest.raises(UnsupportedError, match=r"byte token <0xC3> is missing"):
        tokenizer.read_vocabulary(open_checkpoint(directory), 1010)


def test_without_byte_fallback_there_is_no_tokenizer_for_it(tmp_path: Path) -> None:
    files = {"tokenizer.model": tiny_tokenizers.bpe_model(byte_fallback=False)}
    directory = tiny_tokenizers.write_model(tmp_path / "m", files, vocab_size=1000)
    with pytest.raises(UnsupportedError, match="byte token <0x00> is missing"):
        tokenizer.read_vocabulary(open_checkpoint(directory), 1000)


@pytest.mark.parametrize(
    ("files", "config", "words"),
    [
        (
            {"vocab.json": {"a": 0}, "merges.txt": b""},
            {"tokenizer_class": "XTokenizer"},
            "how XTokenizer splits",
        ),
        (
            {"vocab.txt": b"[UNK]\n[CLS]\n[SEP]\n"},
            {"tokenizer_class": "MPNetTokenizer"},
            "how MPNetTokenizer",
        ),
    ],
)
def test_what_would_have_to_be_guessed_is_refused(
    tmp_path: Path, files: dict[str, bytes], config: dict[str, str], words: str
) -> None:
    directory = tiny_tokenizers.write_model(
        tmp_path / "m", {**files, "tokenizer_config.json": config}, vocab_size=9
    )
    with pytest.raises(UnsupportedError, match=words) as caught:
        tokenizer.read_vocabulary(open_checkpoint(directory), 9)
    assert "tokenizer.json" in str(caught.value.hint)


def test_no_tokenizer_at_all(tmp_path: Path) -> None:
    directory = tiny_tokenizers.write_model(tmp_path / "m", {"vocab.json": {"a": 0}}, vocab_size=9)
    with pytest.raises(MissingInputError, match=r"no tokenizer\.json, tokenizer\.model"):
        tokenizer.read_vocabulary(open_checkpoint(directory), 9)


@pytest.mark.parametrize("value", ["%%%", base64.b64encode(bytes(3 << 20)).decode(), 7])
def test_a_broken_charsmap_is_refused(unigram: Converted, tmp_path: Path, value: object) -> None:
    content = json.loads(unigram.library.to_str())
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": value}
    directory = tiny_tokenizers.write_model(tmp_path / "m", {"tokenizer.json": content}, vocab_size=1000)
    with pytest.raises(BadInputError, match="precompiled_charsmap"):
        tokenizer.read_vocabulary(open_checkpoint(directory), 1000)


def _taken_for_accents(text: str) -> bool:
    composed = unicodedata.normalize("NFC", text)
    return any("\uac00" <= c <= "\ud7a3" or unicodedata.category(c) == "Mc" for c in composed)

"""A vocabulary that llama.cpp would not survive is refused before llama.cpp sees it."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgellm.errors import BadInputError
from edgellm.formats.gguf import read_gguf
from edgellm.formats.gguf_vocab import has_vocab, token_bytes, validate_vocab
from tests.support.gguf_files import GPT2_TOKENS, SPM_TOKENS, SPM_TYPES, array, gguf_bytes, key, write_model
from tests.support.refusals import refusal

Validate = Callable[..., None]
Metadata = dict[str, tuple[str, Any]]


@pytest.fixture
def validate(tmp_path: Path) -> Validate:
    """Writes a tiny model with changed tokenizer keys (names without their prefix) and validates it."""

    def check(
        changes: Metadata | None = None, *, vocab: str | None = "gpt2", without: tuple[str, ...] = ()
    ) -> None:
        metadata = {
            name if "." in name else f"tokenizer.ggml.{name}": value
            for name, value in (changes or {}).items()
        }
        path = tmp_path / "model.gguf"
        write_model(
            path,
            metadata=metadata,
            vocab=vocab,
            without=[f"tokenizer.ggml.{name}" for name in without],
            n_layers=0,
        )
        validate_vocab(read_gguf(path))

    return check


def refused(validate: Validate, *arguments: Any, **options: Any) -> str:
    with pytest.raises(BadInputError) as caught:
        validate(*arguments, **options)
    assert str(caught.value).startswith("model.gguf: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def texts(*tokens: str) -> tuple[str, list[str]]:
    return "ARRAY:STRING", list(tokens)


@pytest.mark.parametrize("vocab", ["gpt2", "llama", None])
def test_sound_vocabularies_pass(validate: Validate, vocab: str | None) -> None:
    validate(vocab=vocab)


def test_token_bytes_and_has_vocab(tmp_path: Path) -> None:
    file = read_gguf(write_model(tmp_path / "model.gguf"))
    assert has_vocab(file)
    assert token_bytes(file) == [token.encode() for token in GPT2_TOKENS]
    bare = read_gguf(write_model(tmp_path / "bare.gguf", vocab=None))
    assert not has_vocab(bare)
    assert token_bytes(bare) == []


def test_a_model_without_vocabulary_passes_but_cannot_tokenize(tmp_path: Path) -> None:
    metadata: Metadata = {"tokenizer.ggml.model": ("STRING", "none"), "llama.vocab_size": ("UINT32", 4)}
    file = read_gguf(write_model(tmp_path / "model.gguf", metadata=metadata, vocab=None))
    validate_vocab(file)
    assert not has_vocab(file)


def test_a_model_without_vocabulary_cannot_ask_for_billions_of_tokens(validate: Validate) -> None:
    changes: Metadata = {"model": ("STRING", "none"), "llama.vocab_size": ("UINT32", 2**32 - 1)}
    assert "llama.vocab_size is 4294967295" in refused(validate, changes, vocab=None)


def test_tokens_are_needed(validate: Validate) -> None:
    assert "tokenizer.ggml.tokens is missing" in refused(validate, without=("tokens",))
    assert "tokens is an array of INT32" in refused(validate, {"tokens": ("ARRAY:INT32", [1] * 258)})
    assert "tokens is STRING" in refused(validate, {"tokens": ("STRING", "x")})


def test_two_tokens_with_the_same_text_are_refused(validate: Validate) -> None:
    tokens = [*GPT2_TOKENS[:-1], GPT2_TOKENS[1]]
    assert "tokens 1 and 257 have the same text b'\\xc4\\x80'" in refused(
        validate, {"tokens": texts(*tokens)}
    )


@pytest.mark.parametrize("last", ["a\0b", "[EMPTY_257]"])
def test_tokens_are_compared_as_llama_cpp_reads_them(validate: Validate, last: str) -> None:
    tokens = [*GPT2_TOKENS[:-1], last]
    if last.startswith("["):
        tokens[256], tokens[257] = "[EMPTY_257]", ""
    assert "have the same text" in refused(validate, {"tokens": texts(*tokens)})


def test_an_empty_token_passes(validate: Validate) -> None:
    validate({"tokens": texts(*GPT2_TOKENS[:-1], "")})


@pytest.mark.parametrize(("name", "type_name"), [("token_type", "INT32"), ("scores", "FLOAT32")])
@pytest.mark.parametrize("change", [-1, 1])
def test_types_and_scores_are_as_many_as_tokens(
    validate: Validate, name: str, type_name: str, change: int
) -> None:
    count = len(GPT2_TOKENS) + change
    message = refused(validate, {name: (f"ARRAY:{type_name}", [1] * count)})
    assert f"tokenizer.ggml.{name} has {count} entries for 258 tokens" in message


def test_types_and_scores_have_the_type_that_llama_cpp_reads(validate: Validate) -> None:
    assert "token_type is an array of INT64" in refused(validate, {"token_type": ("ARRAY:INT64", [1] * 258)})
    assert "scores is an array of FLOAT64" in refused(validate, {"scores": ("ARRAY:FLOAT64", [1.0] * 258)})
    scores = [0.0] * 257 + [float("nan")]
    assert "score of token 257 is NaN" in refused(validate, {"scores": ("ARRAY:FLOAT32", scores)})


@pytest.mark.parametrize("text", ["<0x-1>", "<0xZZ>", "<0x0a>", "<0x0A>\n", "<0x0A", "x", "", "<0x00A>"])
def test_byte_tokens_have_exactly_their_form(validate: Validate, text: str) -> None:
    tokens = [*GPT2_TOKENS[:-1], text]
    types = [1] * 257 + [6]
    message = refused(validate, {"tokens": texts(*tokens), "token_type": ("ARRAY:INT32", types)})
    assert "byte token 257 has text" in message


def test_bert_cannot_have_byte_tokens(validate: Validate) -> None:
    changes: Metadata = {"model": ("STRING", "bert"), "token_type": ("ARRAY:INT32", [1] * 257 + [6])}
    assert "which a BERT vocabulary cannot have" in refused(validate, changes)


def test_a_sentencepiece_vocabulary_needs_every_byte(validate: Validate) -> None:
    for byte in (0x00, 0x0A, 0x80, 0xFF):
        tokens = [f"tok{byte}" if token == f"<0x{byte:02X}>" else token for token in SPM_TOKENS]
        types = [
            1 if token.startswith("tok") else number for token, number in zip(tokens, SPM_TYPES, strict=True)
        ]
        changes: Metadata = {"tokens": texts(*tokens), "token_type": ("ARRAY:INT32", types)}
        assert f"byte token <0x{byte:02X}> is missing" in refused(validate, changes, vocab="llama")


def test_the_byte_itself_counts_as_its_token(validate: Validate) -> None:
    tokens = ["a" if text == "<0x61>" else text for text in SPM_TOKENS]
    types = [1 if text == "a" else number for text, number in zip(tokens, SPM_TYPES, strict=True)]
    validate({"tokens": texts(*tokens), "token_type": ("ARRAY:INT32", types)}, vocab="llama")


def test_a_byte_level_vocabulary_may_lack_bytes_because_llama_cpp_skips_them(validate: Validate) -> None:
    validate({"tokens": texts(*GPT2_TOKENS[:100])}, without=("token_type",))


@pytest.mark.parametrize("merge", ["", "th", " h", "t ", "t h e", "t  h", " "])
def test_merges_are_two_tokens_and_one_space(validate: Validate, merge: str) -> None:
    assert f"merge 1 is {merge!r}" in refused(validate, {"merges": texts("t h", merge)})


def test_merges_are_needed_except_for_kimi(validate: Validate) -> None:
    assert "merges is missing" in refused(validate, without=("merges",))
    validate({"pre": ("STRING", "kimi-k2")}, without=("merges",))


@pytest.mark.parametrize(
    "name",
    ["bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "cls", "mask", "fim_pre", "suffix"],
)
def test_special_ids_lie_in_the_vocabulary(validate: Validate, name: str) -> None:
    message = refused(validate, {f"{name}_token_id": ("UINT32", 258)})
    assert f"tokenizer.ggml.{name}_token_id is 258, outside the vocabulary of 258 tokens" in message
    validate({f"{name}_token_id": ("UINT32", 257)})


def test_no_such_token_is_written_as_minus_one(validate: Validate) -> None:
    validate({"padding_token_id": ("UINT32", 2**32 - 1)})


@pytest.mark.parametrize(
    ("model", "tokens", "changes", "missing"),
    [
        ("bert", GPT2_TOKENS[:100], {}, "bos"),
        ("bert", GPT2_TOKENS[:102], {}, "seperator"),
        ("bert", GPT2_TOKENS[:103], {}, None),
        ("gpt2", GPT2_TOKENS[:11], {}, "bos"),
        ("gpt2", GPT2_TOKENS[:11], {"add_bos_token": ("BOOL", False)}, None),
        ("gpt2", GPT2_TOKENS[:12], {"add_bos_token": ("BOOL", True)}, None),
        ("gpt2", GPT2_TOKENS, {"pre": ("STRING", "glm4"), "add_bos_token": ("BOOL", True)}, "bos"),
        ("gemma4", GPT2_TOKENS, {"add_bos_token": ("BOOL", False)}, "bos"),
        ("gemma4", GPT2_TOKENS, {"bos_token_id": ("UINT32", 3)}, None),
        ("t5", GPT2_TOKENS, {}, None),
        ("t5", GPT2_TOKENS, {"add_bos_token": ("BOOL", True)}, "bos"),
    ],
)
def test_tokens_that_the_tokenizer_adds_must_exist(
    validate: Validate, model: str, tokens: list[str], changes: Metadata, missing: str | None
) -> None:
    changes = {"model": ("STRING", model), "tokens": texts(*tokens), **changes}
    without = ("token_type", "eos_token_id")
    if missing:
        assert f"the tokenizer adds a {missing} token" in refused(validate, changes, without=without)
    else:
        validate(changes, without=without)


def test_token_counts_agree(validate: Validate, tmp_path: Path) -> None:
    changes: Metadata = {"llama.vocab_size": ("UINT32", 257)}
    assert "llama.vocab_size is 257, but there are 258 tokens" in refused(validate, changes)
    content = write_model(tmp_path / "model.gguf").read_bytes()
    rows = struct.pack("<qq", 8, 258)
    (tmp_path / "model.gguf").write_bytes(content.replace(rows, struct.pack("<qq", 8, 257)))
    with pytest.raises(BadInputError):
        validate_vocab(read_gguf(tmp_path / "model.gguf"))


@pytest.mark.parametrize(
    ("model", "length", "words"),
    [
        ("gpt2", 65_537, "token 257 has 65537 bytes, more than 65536"),
        ("llama", 1 << 20, "token 257 has 1048576 bytes, more than 65536"),
        ("gpt2", 40_000, "tokens are too long"),
        ("t5", 1025, "token 257 has 1025 bytes, more than 1024"),
        ("rwkv", 1025, "token 257 has 1025 bytes, more than 1024"),
    ],
)
def test_long_tokens_are_refused(validate: Validate, model: str, length: int, words: str) -> None:
    changes: Metadata = {"model": ("STRING", model), "tokens": texts(*GPT2_TOKENS[:-1], "x" * length)}
    assert words in refused(validate, changes)


def test_rwkv_tokens_begin_with_tokens(validate: Validate) -> None:
    common: Metadata = {"model": ("STRING", "rwkv")}
    without = ("token_type", "eos_token_id", "merges")
    validate(
        common | {"tokens": texts("a", "ab", "\\x62", "bc", "\\n", "\\nx", "\\\\", "\\\\n")}, without=without
    )
    message = refused(validate, common | {"tokens": texts("a", "b", "\\x63d")}, without=without)
    assert "token 2 begins with byte 0x63" in message


def charsmap(units: dict[int, int], replacements: bytes, n_units: int = 512) -> tuple[str, list[int]]:
    table = struct.pack(f"<{n_units}I", *(units.get(index, 0) for index in range(n_units)))
    return "ARRAY:UINT8", list(struct.pack("<I", len(table)) + table + replacements)


ROOT = 256 << 10  # children of the root in the second half of the table


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (charsmap({0: ROOT}, b"\0"), None),
        (charsmap({0: ROOT, 256 ^ 97: 97 | 1 << 8 | 97 << 10, 256: 0}, b"A\0"), None),
        (charsmap({}, b"\0", n_units=0), None),
        (charsmap({0: 512 << 10}, b"\0"), "leads outside its table"),
        (
            charsmap({0: ROOT, 256 ^ 97: 97 | 1 << 8 | 97 << 10, 256: 2}, b"A\0"),
            "leads outside its replacement",
        ),
        (charsmap({0: ROOT, 256 ^ 97: 97 | 1 << 8 | 97 << 10, 256: 1}, b"A\0B"), None),
        (
            charsmap({0: ROOT, 256 ^ 97: 97 | 1 << 8 | 97 << 10, 256: 2}, b"A\0B"),
            "leads outside its replacement",
        ),
        (charsmap({0: ROOT, 256 ^ 97: 97 | 4096 << 10}, b"A\0"), "leads outside its table"),
        (("ARRAY:UINT8", [1, 0]), "for a table of"),
        (("ARRAY:UINT8", [4, 0, 0, 0, 0, 0, 0, 0]), "for a table of 4 bytes"),
        (("ARRAY:INT32", [1, 0]), "is INT32, expected an array of UINT8"),
    ],
)
def test_the_normalizer_table_never_leads_outside(
    validate: Validate, table: tuple[str, list[int]], words: str | None
) -> None:
    changes: Metadata = {"model": ("STRING", "t5"), "precompiled_charsmap": table}
    if words is None:
        validate(changes)
    else:
        assert words in refused(validate, changes)


@pytest.mark.parametrize("seed", range(300))
def test_damaged_vocabularies_pass_or_are_refused(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    model = rng.choice(["gpt2", "llama", "bert", "t5", "rwkv", "plamo2", "gemma4", "unheard-of"])
    tokens = [rng.choice(SPM_TOKENS + GPT2_TOKENS).encode() for _ in range(rng.randint(1, 40))]
    tokens[0] = bytes(rng.randrange(256) for _ in range(rng.randrange(8)))
    count = len(tokens) + rng.choice([0, 0, 0, 1])
    entries = [
        key("tokenizer.ggml.model", "STRING", model),
        array("tokenizer.ggml.tokens", "STRING", tokens),
        array("tokenizer.ggml.merges", "STRING", [rng.choice([b"a b", b"a", b"\xed\xa0 \x80"])]),
        array("tokenizer.ggml.token_type", "INT32", [rng.randint(-1, 8) for _ in range(count)]),
        array("tokenizer.ggml.scores", "FLOAT32", [rng.random() for _ in range(count)]),
        array("tokenizer.ggml.precompiled_charsmap", "UINT8", rng.randbytes(seed % 99)),
        key("tokenizer.ggml.bos_token_id", "UINT32", rng.choice([0, 5, 2**32 - 1, 2**31])),
        key("tokenizer.ggml.add_bos_token", *rng.choice([("BOOL", True), ("UINT8", 1)])),
    ]
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes(rng.sample(entries, rng.randint(1, len(entries)))))
    refusal(lambda: validate_vocab(read_gguf(path)))

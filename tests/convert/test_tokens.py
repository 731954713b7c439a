"""Token ids equal those of Hugging Face, by llama.cpp with our converted vocabulary and by edgellm's own tokenizer.

One difference is known and exact. The vocabulary of SmolLM2 has no token for 21 byte values. A text with such a byte
loses it in all three; `tokenizers` then joins what stood on both sides of it, llama.cpp does not.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from edgellm.native.llama import LlamaModel, LlamaOptions
from edgellm.runtime.tokenizer import Tokenizer
from tests.convert.conftest import OfType
from tests.support import oracle, strings
from tests.support.gguf_files import byte_alphabet

PLAIN = list(dict.fromkeys(strings.varied_strings() + strings.control_strings()))
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WITH_SPECIAL = (
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>", "a<|endoftext|>b", " <|im_end|> ",
    "<|im_start|><|im_start|>", "<<|im_end|>>", "x<|im_end|", "<repo_name>a/b<file_sep>c.py", "<|im_end|>\n\n\t<|im_end|>",
)  # fmt: skip
# Text -> (ids of Hugging Face, ids of llama.cpp) where a byte without token stands between two that merge.
KNOWN_DIFFERENCES = {
    "!\x16'": ([34379], [17, 23]),
    " \x14!": ([5728], [216, 17]),
    "s \x04'": ([99, 637], [99, 216, 23]),
    " \x06\x92": ([3351, 236], [216, 141, 236]),
    "!\x13!": ([10095], [17, 17]),
    "a\u1712\U0004cac51": ([81, 172, 246, 40276, 121, 223, 33], [81, 172, 246, 236, 230, 121, 223, 33]),
}


class Paths(NamedTuple):
    """Both ways in which edgellm tokenizes."""

    llama_cpp: LlamaModel
    own: Tokenizer


@pytest.fixture(scope="module")
def paths(by_edgellm: OfType, smollm2_hf: Path) -> Iterator[Paths]:
    model = LlamaModel(by_edgellm("BF16"), LlamaOptions(n_threads=1), vocab_only=True)
    yield Paths(model, Tokenizer(model, smollm2_hf / "tokenizer.json"))
    model.close()


class Reference(NamedTuple):
    """Ids by transformers' AutoTokenizer: special tokens as text, and special tokens parsed."""

    plain: dict[str, list[int]]
    parsed: dict[str, list[int]]


@pytest.fixture(scope="module")
def reference(smollm2_hf: Path) -> Reference:
    texts = [*PLAIN, *hostile_strings(), *KNOWN_DIFFERENCES, *WITH_SPECIAL]
    plain, parsed = oracle.transformers(
        """
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(spec["model"])
def ids(split):
    return [tokenizer.encode(text, add_special_tokens=False, split_special_tokens=split) for text in spec["texts"]]
print(json.dumps([ids(True), ids(False)]))
""",
        model=str(smollm2_hf), texts=texts,
    )  # fmt: skip
    return Reference(dict(zip(texts, plain, strict=True)), dict(zip(texts, parsed, strict=True)))


@pytest.fixture(scope="module")
def bytes_without_token(smollm2_hf: Path) -> frozenset[int]:
    vocab = json.loads((smollm2_hf / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    return frozenset(byte for byte, character in enumerate(byte_alphabet()) if character not in vocab)


def hostile_strings() -> list[str]:
    """Random code points of all planes, assigned or not, and every kind of space and control character."""
    rng = random.Random(5)
    spaces = [
        *range(1, 33),
        *range(127, 161),
        0x1680,
        *range(0x2000, 0x2010),
        0x2028,
        0x2029,
        0x202F,
        0x205F,
        0x3000,
        0xFEFF,
    ]
    made = []
    for _ in range(1500):
        made.append(
            "".join(
                chr(rng.choice(spaces)) if rng.random() < 0.5 else rng.choice("ab1'!s  ") for _ in range(6)
            )
        )
        planes = [(1, 0x3000), (1, 0xD800), (0xE000, 0x20000), (0x10000, 0x110000)]
        made.append(
            "".join(
                chr(rng.randrange(*rng.choice(planes))) + rng.choice(("", " ", "a", "'")) for _ in range(6)
            )
        )
    return made


def test_there_are_enough_strings_and_they_are_varied() -> None:
    assert len(PLAIN) > 1400
    assert len({character for text in PLAIN for character in text}) > 2500


def test_llama_cpp_gives_the_ids_of_hugging_face(paths: Paths, reference: Reference) -> None:
    different = [
        text
        for text in PLAIN
        if paths.llama_cpp.tokenize(text, add_special=False, parse_special=False) != reference.plain[text]
    ]
    assert different == []


def test_our_tokenizer_gives_the_ids_of_hugging_face(paths: Paths, reference: Reference) -> None:
    for text in [*PLAIN, *hostile_strings(), *KNOWN_DIFFERENCES, *WITH_SPECIAL]:
        assert paths.own.encode(text, add_special=False, parse_special=False) == reference.plain[text], ascii(
            text
        )
        assert paths.own.encode(text, add_special=False, parse_special=True) == reference.parsed[text], ascii(
            text
        )


def test_llama_cpp_differs_only_where_a_byte_has_no_token(
    paths: Paths, reference: Reference, bytes_without_token: frozenset[int]
) -> None:
    n_compared = 0
    for text in hostile_strings():
        if not bytes_without_token.isdisjoint(text.encode()):
            continue
        n_compared += 1
        assert (
            paths.llama_cpp.tokenize(text, add_special=False, parse_special=False) == reference.plain[text]
        ), ascii(text)
    assert n_compared > 1000


def test_the_known_differences_are_as_listed(
    paths: Paths, reference: Reference, bytes_without_token: frozenset[int]
) -> None:
    for text, (theirs, llama_cpp) in KNOWN_DIFFERENCES.items():
        assert not bytes_without_token.isdisjoint(text.encode())
        assert reference.plain[text] == theirs, ascii(text)
        assert paths.llama_cpp.tokenize(text, add_special=False, parse_special=False) == llama_cpp, ascii(
            text
        )


def test_which_bytes_have_no_token(bytes_without_token: frozenset[int]) -> None:
    expected = {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)}
    assert sorted(map(hex, bytes_without_token)) == sorted(map(hex, expected))


@pytest.mark.parametrize("text", WITH_SPECIAL)
def test_special_tokens_are_parsed_when_asked_and_only_then(
    paths: Paths, reference: Reference, text: str
) -> None:
    for parse, wanted in ((True, reference.parsed[text]), (False, reference.plain[text])):
        assert paths.llama_cpp.tokenize(text, add_special=False, parse_special=parse) == wanted
        assert paths.own.encode(text, add_special=False, parse_special=parse) == wanted


@pytest.mark.parametrize(("text", "number"), [(text, i) for i, text in enumerate(SPECIAL)])
def test_a_special_token_is_one_id_or_its_letters(paths: Paths, text: str, number: int) -> None:
    for tokenize in (paths.llama_cpp.tokenize, paths.own.encode):
        assert tokenize(text, add_special=False, parse_special=True) == [number]
        letters = tokenize(text, add_special=False, parse_special=False)
        assert len(letters) > 3
        assert number not in letters


def test_no_bos_is_added(paths: Paths) -> None:
    assert paths.llama_cpp.add_bos is False
    assert paths.llama_cpp.bos_id == 1
    for tokenize in (paths.llama_cpp.tokenize, paths.own.encode):
        with_special, without = (
            tokenize("Hello", add_special=add, parse_special=False) for add in (True, False)
        )
        assert with_special == without

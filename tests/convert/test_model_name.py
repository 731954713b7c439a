"""llama.cpp reads special tokens as Phi 3's where the model's name says so; names are made to say what is true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgellm.convert.vocabulary.model_name import model_name
from edgellm.convert.vocabulary.tokens import AddedToken, Vocabulary
from tests.support.tiny_llama import tokenizer_json, write_tiny_llama
from tests.support.tiny_tokenizers import Converted

PHI3 = ("<unk>", "<s>", "</s>", "<|user|>")


def vocabulary(*tokens: str, strips: bool) -> Vocabulary:
    added = (AddedToken("<|user|>", 0, special=True, normalized=False, strips_right=strips),)
    return Vocabulary("gpt2", list(tokens), [1] * len(tokens), {}, (), added)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mine", "mine"),
        ("Phi-3-mini-4k-instruct", "Phi 3-mini-4k-instruct"),
        ("my-PHI3-phi-3.5", "my-PHI 3-phi 3.5"),
        ("phi-2", "phi-2"),
        ("Phi-4-mini", "Phi-4-mini"),
    ],
)
def test_a_model_whose_tokens_do_not_strip_is_not_called_phi_3(name: str, expected: str) -> None:
    looked_up = ("</s>", "<unk>", "<s>", "<|endoftext|>")
    assert model_name(name, vocabulary(*looked_up, strips=False)) == expected
    assert model_name(name, vocabulary("<s>", strips=True)) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("mine", "mine (Phi-3)"), ("Phi-3-mini", "Phi-3-mini"), ("aphi3", "aphi3")],
)
def test_a_model_whose_tokens_strip_is_called_phi_3(name: str, expected: str) -> None:
    assert model_name(name, vocabulary("</s>", "<unk>", "<s>", "<|endoftext|>", strips=True)) == expected


def test_a_directory_that_is_only_called_phi3_converts(tmp_path: Path) -> None:
    converted = Converted(write_tiny_llama(tmp_path / "my-phi3"))
    assert converted.source.header["general.name"].value == "my-phi 3"


def test_space_after_the_special_tokens_of_phi_3_is_stripped(tmp_path: Path) -> None:
    data: dict[str, Any] = tokenizer_json()
    first = 1 + max(data["model"]["vocab"].values())
    data["added_tokens"] += [
        {
            "id": first + i, "content": text, "single_word": False, "lstrip": False,
            "rstrip": text in ("</s>", "<|user|>"), "normalized": False, "special": True,
        } for i, text in enumerate(PHI3)
    ]  # fmt: skip
    directory = write_tiny_llama(tmp_path / "mine")
    (directory / "tokenizer.json").write_text(json.dumps(data))
    converted = Converted(directory)
    text = "<s> a<|user|> \n there</s>  the end"
    seen = converted.llama_cpp.tokenize(text, add_special=False, parse_special=True)
    assert seen == converted.library_ids(text)
    assert first + PHI3.index("<|user|>") in seen
    unstripped = text.replace("<|user|> \n ", "<|user|>").replace("</s>  ", "</s>")
    assert seen == converted.llama_cpp.tokenize(unstripped, add_special=False, parse_special=True)

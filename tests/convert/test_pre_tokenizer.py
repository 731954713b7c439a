"""The pre-tokenizer is chosen by evidence: by equal token ids, not by a name, a hash or an order of candidates."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from edgellm.api import launch
from edgellm.checkpoint import open_checkpoint
from edgellm.convert import hard_text, pipeline, tokenizer, writer
from edgellm.convert.source import Source
from edgellm.convert.tokenizer import Vocabulary
from edgellm.errors import UnsupportedError
from tests.support import tiny_llama
from tests.support.gguf_files import byte_alphabet

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
INVENTED = r"\p{L}{1,2}|\p{N}|\s|[^\s\p{L}\p{N}]"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def split_by(pattern: str) -> dict[str, Any]:
    """A pre-tokenizer of one regular expression, as Llama 3 and Qwen 2 describe theirs."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, {**BYTE_LEVEL, "use_regex": False}]}


PRE_TOKENIZERS = {
    "gpt-2": BYTE_LEVEL,
    "llama-bpe": split_by(LLAMA3),
    "qwen2": split_by(QWEN2),
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL],
    },
    "invented": split_by(INVENTED),
}


# Merges on which those differ: runs of digits, and a bracket with the line end after it.
MERGES = (
    ("1", "2"),
    ("12", "3"),
    ("123", "4"),
    (")", "\u010a"),
    ("t", "h"),
    ("\u0120", "t"),
    ("th", "e"),
    ("i", "n"),
)


@dataclasses.dataclass
class Choice:
    """A small vocabulary under several pre-tokenizers.

    SmolLM2's own would not do: it has no token of two digits, so that those of Llama 3 and Qwen 2 give equal ids.
    """

    source: Source
    vocabulary: Vocabulary
    folder: Path
    tokenizer_json: dict[str, Any]
    ids: dict[str, list[list[int]]]

    def tokenize(self, pre: str, texts: Any) -> list[list[int]]:
        """llama.cpp's ids, found once per candidate: they do not depend on the tokenizer.json."""
        assert list(texts) == list(hard_text.TEXTS)
        if pre not in self.ids:
            source = dataclasses.replace(self.source, tensors=())
            path = self.folder / "trial.gguf"
            header = {**source.header, **self.vocabulary.header(pre, None)}
            writer.write_gguf(path, source, {}, header, n_workers=1)
            self.ids[pre] = launch.tokenize_file(path, texts)
            path.unlink()
        return self.ids[pre]

    def choose(self, pre_tokenizer: dict[str, Any]) -> tuple[str, str]:
        content = copy.copy(self.tokenizer_json)
        content["pre_tokenizer"] = pre_tokenizer
        path = self.folder / "tokenizer.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        vocabulary = dataclasses.replace(self.vocabulary, pre_tokenizer=pre_tokenizer)
        return tokenizer.choose_pre_tokenizer(vocabulary, path, self.tokenize)


@pytest.fixture(scope="module")
def choice(tmp_path_factory: pytest.TempPathFactory) -> Choice:
    content = tiny_llama.tokenizer_json()
    content["model"]["merges"] = [list(pair) for pair in MERGES]
    alphabet = [*tiny_llama.SPECIAL, *byte_alphabet(), *("".join(pair) for pair in MERGES)]
    content["model"]["vocab"] = {text: i for i, text in enumerate(alphabet)}
    directory = tiny_llama.write_tiny_llama(tmp_path_factory.mktemp("pre") / "model")
    (directory / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    source = pipeline.read_source(open_checkpoint(directory))
    vocabulary = tokenizer.read_vocabulary(source.checkpoint, source.shape.vocab_size)
    return Choice(source, vocabulary, directory.parent, content, {})


@pytest.mark.parametrize("name", ["smollm", "llama-bpe", "qwen2", "gpt-2"])
def test_the_one_that_fits_is_found(choice: Choice, name: str) -> None:
    found, evidence = choice.choose(PRE_TOKENIZERS[name])
    assert found == name
    assert re.fullmatch(r"same token ids as tokenizers on \d+ texts \(\d+ tokens\)", evidence)


def test_where_none_fits_the_error_names_the_nearest_and_the_first_difference(
    choice: Choice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With five candidates: each costs a child process."""
    monkeypatch.setattr(tokenizer, "CANDIDATES", ("smollm", "llama-bpe", "qwen2", "gpt-2", "falcon"))
    with pytest.raises(UnsupportedError) as caught:
        choice.choose(PRE_TOKENIZERS["invented"])
    message = str(caught.value)
    assert "none of llama.cpp's pre-tokenizers" in message
    difference = r"on '.*' token \d+ is \[\d*\] there and \[\d*\]"
    assert re.search(rf"the nearest, '[\w-]+', differs on \d+ of \d+ texts: {difference}", message)
    assert "\n" not in message


@pytest.mark.parametrize("name", ["smollm", "llama-bpe", "qwen2", "gpt-2"])
def test_hints_in_any_order_do_not_change_the_answer(
    choice: Choice, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for order in itertools.permutations(["smollm", "llama-bpe", "qwen2", "gpt-2"]):
        monkeypatch.setattr(tokenizer, "_ordered", lambda _, order=order: list(order))
        assert choice.choose(PRE_TOKENIZERS[name])[0] == name


def test_a_description_only_moves_candidates_and_never_drops_one() -> None:
    for described in PRE_TOKENIZERS.values():
        assert sorted(tokenizer._ordered(described)) == sorted(tokenizer.CANDIDATES)


@pytest.mark.parametrize("name", ["smollm", "llama-bpe", "qwen2", "gpt-2"])
def test_the_usual_descriptions_are_tried_first(name: str) -> None:
    assert tokenizer._ordered(PRE_TOKENIZERS[name])[0] == name


def test_the_conversion_writes_what_was_found(smollm2_source: Source) -> None:
    assert smollm2_source.header["tokenizer.ggml.pre"].value == "smollm"

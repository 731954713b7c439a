"""The pre-tokenizer is chosen by evidence: by equal token ids, not by a name, a hash or an order of candidates."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgellm.api import launch
from edgellm.checkpoint import open_checkpoint
from edgellm.convert import hard_text, pipeline, tokenizer, writer
from edgellm.convert.source import HeaderValue, Source
from edgellm.convert.vocabulary import bpe, choose
from edgellm.convert.vocabulary.choose import Choice, Engines, Reference, Seen, Settings
from edgellm.convert.vocabulary.tokens import Candidate, Vocabulary
from edgellm.errors import (
    BackendError,
    BadInputError,
    EdgeLLMError,
    NativeCrash,
    ResourceError,
    UnsupportedError,
)
from tests.support import tiny_llama
from tests.support.gguf_files import byte_alphabet

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
INVENTED = r"\p{L}{1,2}|\p{N}|\s|[^\s\p{L}\p{N}]"
ENDLESS = r"(?:a|aa)+!"
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
    ("1", "2"), ("12", "3"), ("123", "4"), (")", "\u010a"), ("t", "h"), ("\u0120", "t"), ("th", "e"), ("i", "n"),
)  # fmt: skip


@dataclasses.dataclass
class Chooser:
    """A small vocabulary under several pre-tokenizers; llama.cpp's answers are asked for once.

    SmolLM2's own would not do: it has no token of two digits, so that those of Llama 3 and Qwen 2 give equal ids.
    """

    source: Source
    vocabulary: Vocabulary
    folder: Path
    tokenizer_json: dict[str, Any]
    answers: dict[str, Seen | EdgeLLMError]
    references: dict[str, Reference]

    def reference(self, path: Path, texts: Sequence[str], added: Sequence[str]) -> Reference:
        key = path.read_text(encoding="utf-8")
        if key not in self.references:
            self.references[key] = launch.reference_ids(path, texts, added)
        return self.references[key]

    def known(
        self, path: Path, settings: Sequence[Settings], texts: Sequence[str], wanted: list[list[int]]
    ) -> list[Seen | EdgeLLMError]:
        names = [str(setting["tokenizer.ggml.pre"]) for setting in settings]
        missing = [name for name in names if name not in self.answers]
        if missing:
            asked = [{"tokenizer.ggml.pre": name} for name in missing]
            self.answers |= dict(zip(missing, launch.trial_ids(path, asked, texts, []), strict=True))
        return [self.answers[name] for name in names]

    def write_trial(self, header: dict[str, HeaderValue]) -> Path:
        path = self.folder / "trial.gguf"
        source = dataclasses.replace(self.source, tensors=())
        writer.write_gguf(path, source, {}, {**source.header, **header}, n_workers=1)
        return path

    def choose(self, pre_tokenizer: dict[str, Any], order: Sequence[str] | None = None) -> Choice:
        path = self.folder / "tokenizer.json"
        path.write_text(json.dumps({**self.tokenizer_json, "pre_tokenizer": pre_tokenizer}), encoding="utf-8")
        names = order or bpe.ordered(pre_tokenizer)
        candidates = tuple(Candidate(name, {"pre": name}) for name in names)
        vocabulary = dataclasses.replace(self.vocabulary, candidates=candidates)
        return choose.choose(vocabulary, path, Engines(self.reference, self.known), self.write_trial)


@pytest.fixture(scope="module")
def chooser(tmp_path_factory: pytest.TempPathFactory) -> Chooser:
    content = tiny_llama.tokenizer_json()
    content["model"]["merges"] = [list(pair) for pair in MERGES]
    alphabet = [*tiny_llama.SPECIAL, *byte_alphabet(), *("".join(pair) for pair in MERGES)]
    content["model"]["vocab"] = {text: i for i, text in enumerate(alphabet)}
    directory = tiny_llama.write_tiny_llama(tmp_path_factory.mktemp("pre") / "model")
    (directory / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    source = pipeline.read_source(open_checkpoint(directory))
    vocabulary = tokenizer.read_vocabulary(source.checkpoint, source.shape.vocab_size)
    return Chooser(source, vocabulary, directory.parent, content, {}, {})


@pytest.mark.parametrize("name", ["smollm", "llama-bpe", "qwen2", "gpt-2"])
def test_the_one_that_fits_is_found(chooser: Chooser, name: str) -> None:
    found = chooser.choose(PRE_TOKENIZERS[name])
    assert found.candidate.name == name
    assert re.fullmatch(r"same token ids as tokenizers on \d+ texts \(\d+ tokens\)", found.evidence)


def test_where_none_fits_the_error_names_the_nearest_and_the_first_difference(chooser: Chooser) -> None:
    with pytest.raises(UnsupportedError) as caught:
        chooser.choose(PRE_TOKENIZERS["invented"])
    message = str(caught.value)
    assert "none of llama.cpp's pre-tokenizers" in message
    difference = r"on '.*' token \d+ is \[\d*\] there and \[\d*\]"
    assert re.search(rf"the nearest, '[\w-]+', differs on \d+ of \d+ texts: {difference}", message)
    assert "\n" not in message
    assert all(isinstance(chooser.answers[name], Seen) for name in bpe.NAMES)


@pytest.mark.parametrize("name", ["smollm", "qwen2"])
def test_hints_in_any_order_do_not_change_the_answer(chooser: Chooser, name: str) -> None:
    for order in itertools.islice(
        itertools.permutations(["smollm", "llama-bpe", "qwen2", "gpt-2"]), 0, None, 6
    ):
        assert chooser.choose(PRE_TOKENIZERS[name], order).candidate.name == name


def test_a_description_only_moves_candidates_and_never_drops_one() -> None:
    for described in PRE_TOKENIZERS.values():
        assert sorted(bpe.ordered(described)) == sorted(bpe.NAMES)


@pytest.mark.parametrize("name", ["smollm", "llama-bpe", "qwen2", "gpt-2"])
def test_the_usual_descriptions_are_tried_first(name: str) -> None:
    assert bpe.ordered(PRE_TOKENIZERS[name])[0] == name


def test_other_names_of_llama_cpp_give_the_ids_of_the_one_beside_them(chooser: Chooser) -> None:
    pairs = [(name, other) for name, others in bpe.SYNONYMS.items() for other in others]
    header = chooser.vocabulary.header("default", None)

    wanted = [*bpe.SYNONYMS, *(other for _, other in pairs)]
    settings = [{"tokenizer.ggml.pre": name} for name in wanted]
    seen = launch.trial_ids(chooser.write_trial(header), settings, hard_text.TEXTS, [])
    ids = {name: answer.ids for name, answer in zip(wanted, seen, strict=True) if isinstance(answer, Seen)}
    assert set(ids) == set(wanted)
    assert [(name, other) for name, other in pairs if ids[name] != ids[other]] == []


def test_a_crash_of_one_candidate_is_named_and_the_others_are_still_tried(
    chooser: Chooser, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashed = {**chooser.answers, "smollm": NativeCrash("it died of SIGABRT")}
    monkeypatch.setattr(chooser, "answers", crashed)
    found = chooser.choose(PRE_TOKENIZERS["qwen2"], ["smollm", "gpt-2", "qwen2"])
    assert found.candidate.name == "qwen2"
    assert "llama.cpp died trying 'smollm'" in found.evidence
    with pytest.raises(NativeCrash, match="trying 'smollm': it died of SIGABRT"):
        chooser.choose(PRE_TOKENIZERS["smollm"], ["smollm"])


def test_a_child_that_dies_costs_only_the_candidate_it_was_at(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A launcher that dies at the second setting, as a child does: what it answered before stays."""
    calls = []

    def dies(verb: str, spec: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        calls.append([setting["pre"] for setting in spec["settings"]])
        with Path(spec["answers"]).open("a") as answers:
            for setting in spec["settings"]:
                if setting["pre"] == "deadly":
                    raise NativeCrash("died of SIGSEGV", signal_name="SIGSEGV")
                if setting["pre"] == "slow":
                    raise ResourceError("not done")
                said = {"error": "unknown"} if setting["pre"] == "new" else {"ids": [[1]], "framed": [1]}
                answers.write(json.dumps(said) + "\n")
        return {"tried": 1}

    monkeypatch.setattr(launch, "launch", dies)
    settings = [{"pre": name} for name in ("a", "deadly", "new", "slow", "b")]
    a, deadly, new, slow, b = launch.trial_ids(tmp_path, settings, ["x"], [])
    assert a == b == Seen([[1]], [1])
    assert isinstance(deadly, NativeCrash)
    assert isinstance(new, BackendError)
    assert isinstance(slow, NativeCrash)
    assert calls == [["a", "deadly", "new", "slow", "b"], ["new", "slow", "b"], ["b"]]
    with pytest.raises(ResourceError):
        launch.trial_ids(tmp_path, [{"pre": "slow"}] * 3, ["x"], [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{'a' * 45}b!", "retry-limit"),  # the library's own limit per match; it panics
        (f"{'a' * 28}b" * 5000 + "!", "is not done with 1 short texts after 4 s"),
    ],
    ids=["one match", "many matches"],
)
def test_a_regular_expression_that_never_ends_is_bad_input(
    chooser: Chooser, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, words: str
) -> None:
    monkeypatch.setattr(launch, "REFERENCE_TIMEOUT_S", 4.0 if "short" in words else 60.0)
    path = tmp_path / "tokenizer.json"
    content = {**chooser.tokenizer_json, "pre_tokenizer": split_by(ENDLESS)}
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BadInputError, match=words) as caught:
        launch.reference_ids(path, [text], [])
    assert caught.value.exit_code == 65


def test_ids_of_added_tokens_must_be_those_of_the_library(chooser: Chooser) -> None:
    wrong = Reference([], [], [], [], [7] * len(chooser.vocabulary.added))
    with pytest.raises(BadInputError, match="the tokenizers library makes it 7"):
        choose.choose(
            chooser.vocabulary, Path("t"), Engines(lambda *_: wrong, chooser.known), chooser.write_trial
        )


@pytest.mark.parametrize(
    ("before", "after", "flags", "special", "notes"),
    [
        ([1], [], {"bos": True}, {"bos": 1, "eos": 2}, 0),
        ([], [2], {"bos": False, "eos": True}, {"bos": 1, "eos": 2}, 0),
        ([5], [], {"bos": False}, {"bos": 1, "eos": 2}, 1),
        ([1, 5], [], {"bos": False}, {"bos": 1, "eos": 2}, 1),
    ],
)
def test_what_the_tokenizer_adds_is_seen_not_assumed(
    chooser: Chooser,
    before: list[int],
    after: list[int],
    flags: dict[str, bool],
    special: dict[str, int],
    notes: int,
) -> None:
    vocabulary = dataclasses.replace(chooser.vocabulary, special={"bos": 1, "eos": 2})
    found = choose.with_flags(vocabulary, Reference([], before, after, [], []))
    assert (found.flags, found.special, len(found.notes)) == (flags, special, notes)


def test_the_conversion_writes_what_was_found(smollm2_source: Source) -> None:
    assert smollm2_source.header["tokenizer.ggml.pre"].value == "smollm"

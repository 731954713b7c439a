"""Which of llama.cpp's ways to read a vocabulary gives the ids of the `tokenizers` library: found by trying.

Both sides run in children that the caller starts: a foreign regular expression may never end, and a foreign vocabulary
may bring native code down.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from edgellm.convert import hard_text
from edgellm.convert.source import HeaderValue
from edgellm.convert.vocabulary.tokens import Candidate, Vocabulary
from edgellm.errors import BadInputError, EdgeLLMError, NativeCrash, UnsupportedError

Settings = Mapping[str, str | bool]
WriteTrial = Callable[[dict[str, HeaderValue]], Path]


class Reference(NamedTuple):
    """What `tokenizers` makes of a tokenizer.json.

    Attributes:
        ids: of every text, without the tokens that the tokenizer adds by itself.
        before, after: the tokens it adds by itself.
        framed: ids of the text "a" with them.
        numbers: ids of the added tokens that were asked about; -1 for one it does not know.
    """

    ids: list[list[int]]
    before: list[int]
    after: list[int]
    framed: list[int]
    numbers: list[int]


class Seen(NamedTuple):
    """What llama.cpp makes of the same texts, and of "a" with the tokens that it adds by itself."""

    ids: list[list[int]]
    framed: list[int]


class Engines(NamedTuple):
    """Both sides, each run in a child.

    Attributes:
        reference: (tokenizer.json, texts, added tokens) -> what `tokenizers` says.
        llama_cpp: (vocabulary-only GGUF, settings to try one after the other, texts, the ids wanted) -> an answer or an
            error per setting, up to the first whose ids are as wanted.
    """

    reference: Callable[[Path, Sequence[str], Sequence[str]], Reference]
    llama_cpp: Callable[[Path, Sequence[Settings], Sequence[str], list[list[int]]], list[Seen | EdgeLLMError]]


class Choice(NamedTuple):
    """The vocabulary with its flags set, the candidate that fits it, and the evidence in words."""

    vocabulary: Vocabulary
    candidate: Candidate
    evidence: str


def choose(vocabulary: Vocabulary, tokenizer_json: Path, engines: Engines, write_trial: WriteTrial) -> Choice:
    """Find the candidate whose ids equal those of `tokenizers` on every text.

    Args:
        write_trial: writes a GGUF without tensors under that tokenizer header.

    Raises:
        UnsupportedError: none fits; the message names the nearest and the first difference.
        NativeCrash: none fits, and llama.cpp died on those that could not be compared.
        BadInputError: `tokenizers` refuses the file, is too slow with it, or numbers tokens otherwise.
    """
    reasons = {text: hard_text.set_aside(vocabulary, text) for text in hard_text.TEXTS}
    texts = [
        *(text for text, reason in reasons.items() if reason is None),
        *hard_text.of_vocabulary(vocabulary),
    ]
    left_out = sorted(reason for reason in reasons.values() if reason is not None)
    reference = engines.reference(tokenizer_json, texts, [token.text for token in vocabulary.added])
    _check_numbers(vocabulary, reference, tokenizer_json)
    vocabulary = with_flags(vocabulary, reference)
    comparison = _Comparison(texts, left_out, reference)
    for group in _groups(vocabulary.candidates):
        trial = write_trial({**vocabulary.header("default", None), **group[0].arrays})
        answers = engines.llama_cpp(trial, [_settings(c) for c in group], texts, reference.ids)
        for candidate, answer in zip(group, answers, strict=False):
            said = comparison.fits(candidate, answer)
            if said is not None:
                return Choice(vocabulary, candidate, said)
    raise comparison.failure(tokenizer_json)


def with_flags(vocabulary: Vocabulary, reference: Reference) -> Vocabulary:
    """The vocabulary with add_bos, add_eos and add_sep as `tokenizers` was seen to do."""
    special, flags, notes = dict(vocabulary.special), dict(vocabulary.flags), list(vocabulary.notes)
    before, after = reference.before, reference.after
    last = "seperator" if vocabulary.model == "bert" else "eos"
    # What is seen to stand there wins over what config.json calls bos, where BERT's kin say cls and sep.
    if len(before) == 1 and (
        vocabulary.model == "bert" or before[0] == special.get("cls") or "bos" not in special
    ):
        special["bos"] = before[0]
    if len(after) == 1 and (
        vocabulary.model == "bert" or after[0] == special.get("seperator") or last not in special
    ):
        special[last] = after[0]
    flags["bos"] = before == [special.get("bos")]
    if vocabulary.model == "bert":
        flags["sep"] = after == [special.get(last)]
    elif after or "eos" in flags:
        flags["eos"] = after == [special.get(last)]
    if (before and not flags["bos"]) or (after and after != [special.get(last)]):
        notes.append(
            f"the tokenizer puts {before} before a text and {after} after it, which a GGUF cannot say"
        )
    return dataclasses.replace(vocabulary, special=special, flags=flags, notes=tuple(notes))


class _Comparison:
    """The answers so far: the nearest one, and those that died."""

    def __init__(self, texts: list[str], left_out: list[str], reference: Reference) -> None:
        self._texts = texts
        self._left_out = left_out
        self._reference = reference
        self._nearest: tuple[int, str, str] | None = None
        self._crashes: list[tuple[str, EdgeLLMError]] = []

    def fits(self, candidate: Candidate, answer: Seen | EdgeLLMError) -> str | None:
        """The evidence in words where the answer has the wanted ids; else None."""
        if isinstance(answer, EdgeLLMError):
            if isinstance(answer, NativeCrash):
                self._crashes.append((candidate.name, answer))
            return None
        wanted = self._reference.ids
        wrong = [i for i, (a, b) in enumerate(zip(wanted, answer.ids, strict=True)) if a != b]
        if wrong:
            if self._nearest is None or len(wrong) < self._nearest[0]:
                first = wrong[0]
                said = _difference(self._texts[first], wanted[first], answer.ids[first])
                self._nearest = (len(wrong), candidate.name, said)
            return None
        said = f"same token ids as tokenizers on {len(wanted)} texts ({sum(map(len, wanted))} tokens)"
        for reason in dict.fromkeys(self._left_out):
            said += f"; not compared: {self._left_out.count(reason)} with {reason}"
        if answer.framed != self._reference.framed:
            said += f"; around a text llama.cpp itself gives {answer.framed} where tokenizers gives {self._reference.framed}"
        return said + "".join(f"; llama.cpp died trying {name!r}" for name, _ in self._crashes)

    def failure(self, path: Path) -> EdgeLLMError:
        """The error when no candidate was left."""
        died = "".join(f"; trying {name!r}: {error.message}" for name, error in self._crashes[:3])
        if self._nearest is None and self._crashes:
            return NativeCrash(f"{path}: llama.cpp cannot tokenize with this vocabulary{died}")
        if self._nearest is None:
            return UnsupportedError(
                f"{path}: this llama.cpp knows none of the pre-tokenizers that were tried",
                hint="update llama-cpp-python",
            )
        count, name, said = self._nearest
        nearest = f"the nearest, {name!r}, differs on {count} of {len(self._texts)} texts: {said}"
        return UnsupportedError(
            f"{path}: none of llama.cpp's pre-tokenizers gives this tokenizer's ids; {nearest}{died}",
            hint="a newer llama-cpp-python may know it",
        )


def _groups(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Neighbours that can share one trial file."""
    groups: list[list[Candidate]] = []
    for candidate in candidates:
        if groups and (
            groups[-1][0].arrays is candidate.arrays or not (groups[-1][0].arrays or candidate.arrays)
        ):
            groups[-1].append(candidate)
        else:
            groups.append([candidate])
    return groups


def _settings(candidate: Candidate) -> Settings:
    return {f"tokenizer.ggml.{key}": value for key, value in candidate.settings.items()}


def _check_numbers(vocabulary: Vocabulary, reference: Reference, path: Path) -> None:
    for token, number in zip(vocabulary.added, reference.numbers, strict=True):
        if number != token.number:
            raise BadInputError(
                f"{path}: added token {token.text[:40]!r} has id {token.number}, the tokenizers library makes it {number}",
                hint="the ids of added tokens must follow the vocabulary without a gap",
            )


def _difference(text: str, wanted: list[int], seen: list[int]) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(wanted, seen, strict=False)) if a != b), min(len(wanted), len(seen))
    )
    return f"on {text[:30]!r} token {at} is {wanted[at : at + 1]} there and {seen[at : at + 1]} in llama.cpp"

"""WordPiece (BERT): `##` pieces in llama.cpp's form, where the beginning of a word is marked instead of its rest."""

from __future__ import annotations

from typing import Any

from edgellm.convert.vocabulary.tokens import CONTROL, Candidate, Table
from edgellm.errors import BadInputError, UnsupportedError

SPACE = "\u2581"


def phantom_space(table: Table, prefix: str, where: str) -> list[str]:
    """Token texts as llama.cpp's tokenizer wants them: `##ing` -> `ing`, `the` -> U+2581 `the`.

    Raises:
        UnsupportedError: another continuing prefix.  BadInputError: two tokens become the same text.
    """
    if prefix != "##":
        raise UnsupportedError(
            f"{where}: continuing_subword_prefix is {prefix[:20]!r}, llama.cpp knows ## only"
        )
    made = []
    for text, kind in zip(table.tokens, table.kinds, strict=True):
        if kind == CONTROL:
            made.append(text)
        else:
            made.append(text[2:] if text.startswith(prefix) and len(text) > 2 else SPACE + text)
    if len(set(made)) != len(made):
        seen: dict[str, int] = {}
        twice = next(i for i, text in enumerate(made) if seen.setdefault(text, i) != i)
        raise BadInputError(
            f"{where}: tokens {seen[made[twice]]} and {twice} are both {made[twice][:40]!r} to llama.cpp"
        )
    return made


def candidates(data: dict[str, Any]) -> tuple[Candidate, ...]:
    """Lower case and accents as the normalizer says, then the other ways."""
    lower, strip = _normalizer(data.get("normalizer"))
    order = [(lower, strip)] + [
        pair
        for pair in ((True, True), (False, False), (True, False), (False, True))
        if pair != (lower, strip)
    ]
    return tuple(
        Candidate(
            f"WordPiece, {'lower case' if low else 'case kept'}, accents {'stripped' if bare else 'kept'}",
            {"normalizer.lowercase": low, "normalizer.strip_accents": bare},
        )
        for low, bare in order
    )


def _normalizer(part: object) -> tuple[bool, bool]:
    """(lower case, strip accents); where accents are not mentioned they go with lower case."""
    lower: bool = False
    strip: bool | None = None
    if isinstance(part, dict):
        kind = part.get("type")
        if kind == "BertNormalizer":
            lower = part.get("lowercase", True) is True
            strip = part.get("strip_accents")
            return lower, lower if strip is None else strip is True
        if kind == "Lowercase":
            return True, False
        if kind == "StripAccents":
            return False, True
        inner = part.get("normalizers")
        pairs = [_normalizer(item) for item in inner] if isinstance(inner, list) else []
        return any(low for low, _ in pairs), any(bare for _, bare in pairs)
    return False, False

"""The regular expressions of rank_pattern and alpha_pattern, as far as adapters use them, in time linear in the name.

Understood are the characters of names, `.` for any character, a `^` at the beginning, and the repeats `.*`, `\\d`,
`\\d+`, `[0-9]`, `[0-9]+`. They match as in PEFT: the whole name, or its end after a dot.
"""

from __future__ import annotations

import functools
import re

MAX_CHARS = 500
_TOKEN = re.compile(
    r"(?P<star>\.\*)|(?P<digit>\\d|\[0-9\])(?P<more>\+?)|(?P<any>\.)|\\(?P<dot>\.)|(?P<one>[A-Za-z0-9_-])"
)


class NamePattern:
    """One pattern.

    Raises:
        ValueError: the text holds something else, is empty or too long.
    """

    def __init__(self, text: str) -> None:
        self.from_start = text.startswith("^")
        body = text.removeprefix("^")
        tokens = list(_TOKEN.finditer(body[:MAX_CHARS]))
        if not body or len(body) > MAX_CHARS or "".join(token[0] for token in tokens) != body:
            raise ValueError(text)
        self._tokens = tokens

    def matches(self, name: str) -> bool:
        """Whether PEFT would find the pattern in a module's name.

        Bit i of a number says that the pattern so far may end before character i.
        """
        at = _places(name)
        places = 1 if self.from_start else 1 | at.get(".", 0) << 1
        digits = functools.reduce(int.__or__, (at.get(digit, 0) for digit in "0123456789"))
        everywhere = (1 << len(name)) - 1
        for token in self._tokens:
            if not places:
                return False
            if token["star"]:
                places = (everywhere << 1 | 1) & -(places & -places)
            elif token["digit"]:
                step = places = (places & digits) << 1
                while token["more"] and step:
                    step = (step & digits) << 1 & ~places
                    places |= step
            else:
                places = (
                    places & (everywhere if token["any"] else at.get(token["dot"] or token["one"], 0))
                ) << 1
        return bool(places >> len(name) & 1)


@functools.lru_cache(maxsize=4096)
def _places(name: str) -> dict[str, int]:
    """Character -> the places where it stands, as bits."""
    found: dict[str, int] = {}
    for i, character in enumerate(name):
        found[character] = found.get(character, 0) | 1 << i
    return found

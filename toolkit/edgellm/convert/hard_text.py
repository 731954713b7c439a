"""Texts on which pre-tokenizers differ: spaces, digits, contractions, code, scripts, emoji.

Characters that llama.cpp's own Unicode tables treat differently (new in recent Unicode versions, control characters
before a space) are left out, so that a difference means another pre-tokenizer. `of_vocabulary` adds texts made of the
vocabulary's own tokens; tokens that no merge makes come first, since only some pre-tokenizers find those.
"""

from __future__ import annotations

import re
import unicodedata

from edgellm.convert.vocabulary.tokens import NORMAL, Vocabulary

MAX_UNREACHABLE = 64
MAX_SAMPLED = 160
MAX_TOKEN_CHARS = 64
_PLAIN = re.compile(r"[ -~]+")

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "one  two   three    four     five",
    "  leading and trailing  ",
    "tabs\tand\t\ttabs\t\t\tand\n\nnewlines\n\n\n end \n of \n  it",
    "\n \n\n \n\n\n \t \t\t\n   \n",
    "1 12 123 1234 12345 123456 3.14159 1,234,567.89 0x1F 1e-9 2026-11-22 50% $9.99",
    "abc123def 4you u2 v1.2.3-rc4 IPv6 H2O 007",
    "I'm you're he'll she'd we've they're it's don't CAN'T I'M YOU'RE 'tis o'clock d'accord",
    "snake_case camelCase PascalCase kebab-case CONSTANT_CASE __dunder__ a.b.c a->b a::b",
    "def f(x: int) -> int:\n    return x ** 2  # squared\n\nif __name__ == '__main__':\n    print(f(3))\n",
    "for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; } // dot\n\t/* end */\n#include <stdio.h>",
    '{"key": [1, 2.5, null, true], "s": "a\\nb"}',
    '<html><body class="x">&amp; &lt;b&gt; https://example.org/a?b=c&d=e#f user@example.org</body></html>',
    "!!! ??? ... --- === *** ### @@@ ((())) [[[]]] {{{}}} <<<>>> ~~~ ``` \"\"\" ''' ;;; ::: ,,,",
    "wait...what?!no way!!!(really)[yes]{ok}<tag/>a+b=c;d*e/f%g^h&i|j~k",
    "na\u00efve caf\u00e9 \u00fcber stra\u00dfe \u00c5ngstr\u00f6m ma\u00f1ana \u0141\u00f3d\u017a \u010desk\u00fd cr\u00e8me br\u00fbl\u00e9e",
    "e\u0301 combining a\u0308 marks n\u0303 too",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u042d\u0442\u043e \u043f\u0440\u043e\u0432\u0435\u0440\u043a\u0430 2024 \u0433\u043e\u0434\u0430.",
    "\u039a\u03b1\u03bb\u03b7\u03bc\u03ad\u03c1\u03b1 \u03ba\u03cc\u03c3\u03bc\u03b5",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01\u4eca\u5929\u662f2024\u5e743\u6708\u3002\u6211\u5728apple\u5de5\u4f5c",
    "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c\u3002\u30c6\u30b9\u30c8\u3067\u3059\uff01",
    "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4 \ud14c\uc2a4\ud2b8 123",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645 \u0662\u0660\u0662\u0664",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e \u0967\u0968\u0969",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01",
    "\U0001f600 \U0001f680\U0001f680 \U0001f468\u200d\U0001f469\u200d\U0001f467 \u2705 \U0001f1eb\U0001f1f7 \U0001f44d\U0001f3fd ok",
    "\u00bd \u00b2 \u2153 \u2167 \u2460 \u00b5m 5\u00b0C \u20ac100 \u00a350 \u2122 \u00a9 \u00ab quoted \u00bb \u201ccurly\u201d \u2018single\u2019 \u2014 \u2013 \u2026",
    "word\u00a0nonbreaking\u2003emspace\u3000ideographic",
    "x = 10\r\ny = 20\r\n",
    "AAAA aaaa AaAa aAaA ABCdef abcDEF",
    "a",
    " ",
    "\n",
    "",
)


def of_vocabulary(vocabulary: Vocabulary) -> list[str]:
    """Texts of tokens in printable ASCII: those that no merge makes, then some from everywhere, in a fixed order."""
    made = {left + right for left, _, right in (merge.partition(" ") for merge in vocabulary.merges or ())}
    marks = [token.text for token in vocabulary.added if token.text.isascii()]
    unreachable: list[str] = []
    others: list[str] = []
    for text, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True):
        plain = text.replace("\u0120", " ").replace("\u2581", " ")
        if kind != NORMAL or len(text) > MAX_TOKEN_CHARS or not _PLAIN.fullmatch(plain):
            continue
        (unreachable if made and len(text) > 1 and text not in made else others).append(plain)
    step = max(1, len(others) // MAX_SAMPLED)
    chosen = [*unreachable[:: max(1, len(unreachable) // MAX_UNREACHABLE)][:MAX_UNREACHABLE], *others[::step]]
    return [text for text in chosen if not any(mark in text for mark in marks)]


def set_aside(vocabulary: Vocabulary, text: str) -> str | None:
    """Why llama.cpp is known to differ on this text whatever the settings; None where it has to agree.

    Its BPE never composes characters. Its WordPiece takes accents off by a table of decompositions that takes Hangul
    syllables apart and drops their vowels, and counts all marks as accents, where BERT counts those without a width (Mn).
    """
    composed = unicodedata.normalize("NFC", text)
    if vocabulary.composes and composed != text:
        return "characters that the tokenizer composes (NFC), which llama.cpp does not"
    if vocabulary.model == "bert" and any(
        "\uac00" <= character <= "\ud7a3" or unicodedata.category(character) == "Mc" for character in composed
    ):
        return "Hangul or spacing vowel signs, which llama.cpp takes for accents"
    return None

"""Strings on which tokenizers differ, the same in every run."""

from __future__ import annotations

import random
import unicodedata

# Blocks that Unicode 13 (2020) had already, so that every table of characters knows them.
BLOCKS = {
    "ascii": (0x20, 0x7F), "latin1": (0xA1, 0x100), "latin extended": (0x100, 0x250), "ipa": (0x250, 0x2B0),
    "greek": (0x370, 0x400), "cyrillic": (0x400, 0x530), "armenian": (0x531, 0x590), "hebrew": (0x591, 0x5F5),
    "arabic": (0x600, 0x700), "devanagari": (0x900, 0x980), "bengali": (0x980, 0xA00), "tamil": (0xB80, 0xC00),
    "thai": (0xE00, 0xE80), "tibetan": (0xF00, 0x1000), "georgian": (0x10A0, 0x1100), "hangul jamo": (0x1100, 0x1200),
    "ethiopic": (0x1200, 0x1380), "runic": (0x16A0, 0x1700), "khmer": (0x1780, 0x1800), "mongolian": (0x1810, 0x1880),
    "punctuation": (0x2010, 0x2028), "superscripts": (0x2070, 0x20A0), "currency": (0x20A0, 0x20C0),
    "letterlike": (0x2100, 0x2150), "number forms": (0x2150, 0x2190), "arrows": (0x2190, 0x2200), "math": (0x2200, 0x2300),
    "technical": (0x2300, 0x2400), "enclosed": (0x2460, 0x2500), "boxes": (0x2500, 0x25A0), "symbols": (0x2600, 0x2700),
    "dingbats": (0x2700, 0x27C0), "braille": (0x2800, 0x2900), "cjk punctuation": (0x3000, 0x3040), "kana": (0x3041, 0x3100),
    "cjk": (0x4E00, 0x9FA6), "hangul": (0xAC00, 0xD7A4), "presentation forms": (0xFB00, 0xFB50), "full width": (0xFF01, 0xFFEF),
    "gothic": (0x10330, 0x1034B), "music": (0x1D100, 0x1D127), "math letters": (0x1D400, 0x1D455),
    "emoji": (0x1F300, 0x1F650), "transport": (0x1F680, 0x1F6D0), "cjk b": (0x20000, 0x20400),
}  # fmt: skip
COMBINING = "".join(chr(i) for i in range(0x300, 0x340))
FAMILIES = (
    "👨‍👩‍👧‍👦", "👩🏽‍💻", "🏳️‍🌈", "🏴‍☠️", "👁️‍🗨️", "🇫🇷", "🇧🇷🇯🇵", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "❤️‍🔥", "👍🏿", "1️⃣", "#️⃣", "☎️", "✈︎", "🤷🏻‍♀️",
)  # fmt: skip
WORDS = (
    "the", "Hello", "WORLD", "don't", "I'll", "she'd", "we've", "they're", "it's", "O'Brien", "naïve", "co-op", "e.g.", "3rd",
    "über", "été", "привет", "мир", "Ελλάδα", "مرحبا", "שלום", "नमस्ते", "สวัสดี", "你好", "世界", "こんにちは", "안녕",
    "tiếng", "Việt",
)  # fmt: skip
CODE = (
    "def f(x):\n    return x**2  # squared\n", "for(int i=0;i<n;++i){a[i]+=b[i];}", "x = {'a': [1, 2.5, None]}",
    "SELECT * FROM t WHERE a >= 10 AND b LIKE '%x%';", "<div class=\"c\">&nbsp;</div>", "fn main() { println!(\"{:?}\", v); }",
    "if err != nil {\n\treturn nil, err\n}", "#include <vector>\r\nint main() {}\r\n", "$ ls -la | grep '^d' > /dev/null 2>&1",
    "const f = async () => await g?.h ?? 0;", "\\frac{a}{b} \\sum_{i=1}^{n} x_i^2", "A[1:, ::-1] @ B.T", "0xFF 0b1010 1e-9 1_000",
)  # fmt: skip
URLS = (
    "https://example.org/a/b?c=d&e=%20f#g", "http://user:pw@host:8080/", "mailto:a.b+c@d.example", "ftp://1.2.3.4/x.tar.gz",
    "www.例え.jp/パス", "file:///C:/Users/x", "C:\\Program Files\\x", "/usr/local/lib/python3.11/site-packages",
)  # fmt: skip
LOOKALIKES = (
    "<|im_start|", "<im_end>", "<| im_end |>", "<|im_end", "|im_start|>", "<|IM_START|>", "<<|endoftext>", "<|end of text|>",
    "< |im_end|>", "<|im_\u200bend|>",
)  # fmt: skip
SPACES = (
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\n\n",
    "\r\n",
    " \n",
    "\n ",
    "\t\t",
    "\u00a0",
    "\u2003",
    "\u3000",
    "\v",
    "\f",
    " \t \n",
)


def varied_strings(n_per_kind: int = 90) -> list[str]:
    """Fifteen kinds of strings, `n_per_kind` of each, without the empty string."""
    rng = random.Random(20240601)
    assigned = {name: _assigned(low, high) for name, (low, high) in BLOCKS.items()}
    everything = [character for characters in assigned.values() for character in characters]

    def pick(items: tuple[str, ...] | list[str] | str, low: int, high: int) -> list[str]:
        return [rng.choice(items) for _ in range(rng.randint(low, high))]

    made: list[str] = []
    for i in range(n_per_kind):
        block = assigned[list(assigned)[i % len(assigned)]]
        made += [
            " ".join(pick(WORDS, 1, 12)),
            "".join(word + rng.choice(SPACES) for word in pick(WORDS, 1, 10)),
            "".join(pick(SPACES, 1, 8)),
            rng.choice(SPACES) + " ".join(pick(CODE, 1, 2)) + rng.choice(SPACES),
            "".join(pick("0123456789", 1, 20))
            + rng.choice(("", ".", ",", " ", "-", "x"))
            + "".join(pick("0123456789", 0, 9)),
            " ".join(str(rng.randrange(10 ** rng.randint(1, 12))) + rng.choice(WORDS) for _ in range(3)),
            "".join(pick(FAMILIES, 1, 5)) + rng.choice(WORDS),
            " ".join(pick(FAMILIES, 1, 4)),
            "".join(letter + "".join(pick(COMBINING, 0, 3)) for letter in pick("aeionsxAEO", 1, 9)),
            "".join(pick(block, 1, 20)),
            " ".join("".join(pick(block, 1, 6)) for _ in range(4)),
            "".join(pick(everything, 1, 30)),
            rng.choice(URLS) + rng.choice(SPACES) + rng.choice(URLS),
            rng.choice(LOOKALIKES) + rng.choice(WORDS) + rng.choice(LOOKALIKES),
            "".join(
                rng.choice(
                    ("!", "?", "...", "-", "--", "'", '"', "(", ")", "'s", "\u2019s", "«", "#", "@", "a", " ")
                )
                for _ in range(12)
            ),
        ]
    return made


def control_strings() -> list[str]:
    """Each C0 and C1 control character at the end of a word, before a space, between letters, and in a run."""
    controls = [chr(i) for i in (*range(1, 32), *range(127, 160))]
    return [text for c in controls for text in (f"a{c}", f"a{c} b", f"a{c}b", f"{c}{c} {c}")]


def _assigned(low: int, high: int) -> list[str]:
    return [chr(i) for i in range(low, high) if unicodedata.category(chr(i)) not in {"Cn", "Cs", "Cc", "Co"}]

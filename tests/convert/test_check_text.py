"""The text that quality checks read by default: varied, mostly English, and nothing in it twice."""

from __future__ import annotations

from pathlib import Path

import edgellm.convert

TEXT = (Path(edgellm.convert.__file__).parent / "check_text.txt").read_text(encoding="utf-8")


def test_size_and_language() -> None:
    n_bytes = len(TEXT.encode())
    assert 16_000 < n_bytes < 20_000
    assert n_bytes - sum(character.isascii() for character in TEXT) < 0.05 * n_bytes


def test_it_is_varied() -> None:
    for sample in ("def ", "#include", '{"lat"', "°C", "£", "«", "ß", "¿", "。", "本", "🔭"):
        assert sample in TEXT


def test_no_paragraph_or_long_line_comes_twice() -> None:
    for pieces in (TEXT.split("\n\n"), TEXT.split("\n")):
        long = [piece for piece in pieces if len(piece) > 20]
        assert len(set(long)) == len(long)


def test_it_is_plain_text() -> None:
    assert "\r" not in TEXT
    assert "\t" not in TEXT
    assert "\ufeff" not in TEXT
    assert TEXT.endswith(".\n")

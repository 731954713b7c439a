"""The bundled calibration text: small, varied, and nothing of what quality is measured on."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from edgellm.convert import imatrix
from edgellm.convert.chunks import CHUNK_TOKENS
from edgellm.native.llama import LlamaModel, LlamaOptions

CHECK_TEXT = (Path(imatrix.__file__).parent / "check_text.txt").read_text(encoding="utf-8")
TEXT = imatrix.bundled_calibration().text


def test_it_is_at_most_200_kilobytes_of_clean_text() -> None:
    assert 30_000 < len(TEXT.encode()) <= 200_000
    assert unicodedata.normalize("NFC", TEXT) == TEXT
    assert not [c for c in TEXT if unicodedata.category(c) in {"Cc", "Co", "Cn"} and c not in "\n\t"]


def test_it_has_many_scripts_code_and_numbers() -> None:
    scripts = {unicodedata.name(c).split()[0] for c in TEXT if c.isalpha()}
    assert {
        "LATIN",
        "CYRILLIC",
        "GREEK",
        "ARABIC",
        "HEBREW",
        "DEVANAGARI",
        "CJK",
        "HIRAGANA",
        "HANGUL",
    } <= scripts
    for sample in ("def ", "#include", "SELECT ", '": [', "<html", "User: ", "Q: ", "\t", "1. "):
        assert sample in TEXT
    assert sum(c.isdigit() for c in TEXT) > 1000


def test_no_line_of_it_is_in_the_text_on_which_quality_is_measured() -> None:
    lines = {line.strip() for line in TEXT.splitlines() if len(line.strip()) > 25}
    assert not lines & {line.strip() for line in CHECK_TEXT.splitlines()}
    windows = {TEXT[i : i + 40] for i in range(0, len(TEXT) - 40, 20)}
    assert not [window for window in windows if window in CHECK_TEXT]


def test_it_gives_enough_chunks(smollm2_gguf: Path) -> None:
    model = LlamaModel(smollm2_gguf, LlamaOptions(n_threads=1), vocab_only=True)
    n_tokens = len(model.tokenize(TEXT, add_special=True, parse_special=False))
    model.close()
    assert 16 <= n_tokens // CHUNK_TOKENS <= imatrix.MAX_CHUNKS

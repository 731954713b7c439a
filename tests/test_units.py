"""Numbers for people, and sizes from people."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm import units
from edgellm.errors import SpecError


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (144_703_488, "138 MiB"),
        (1536 * 1024**2, "1.50 GiB"),
        (-2048, "-2.00 KiB"),
        (3 * 1024**4, "3.00 TiB"),
    ],
)
def test_format_bytes(n_bytes: int, text: str) -> None:
    assert units.format_bytes(n_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0000123, "12.3 us"),
        (0.0123, "12.3 ms"),
        (1.2, "1.20 s"),
        (60.04, "60.0 s"),
        (125, "2 min 05 s"),
        (3600, "60 min 00 s"),
    ],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert units.format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0"), (999, "999"), (1000, "1.00 k"), (134_515_008, "135 M"), (7.2e9, "7.20 B"), (2e12, "2.00 T")],
)
def test_format_count(n: float, text: str) -> None:
    assert units.format_count(n) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "USD 0"), (0.0031, "USD 0.0031"), (0.112, "USD 0.11"), (5, "USD 5.00"), (-1.5, "USD -1.50")],
)
def test_format_money(amount: float, text: str) -> None:
    assert units.format_money(amount, "USD") == text


@given(st.floats(min_value=1e-9, max_value=1e9))
def test_money_is_never_rounded_to_zero(amount: float) -> None:
    text = units.format_money(amount, "EUR")
    assert float(text.removeprefix("EUR ")) == pytest.approx(amount, rel=0.051)


@given(st.integers(min_value=0, max_value=2**62))
def test_formatted_bytes_are_near_and_carry_a_binary_unit(n_bytes: int) -> None:
    text = units.format_bytes(n_bytes)
    match = re.fullmatch(r"([\d.]+) (B|KiB|MiB|GiB|TiB)", text)
    assert match
    scale = 1024 ** ["B", "KiB", "MiB", "GiB", "TiB"].index(match[2])
    assert float(match[1]) * scale == pytest.approx(n_bytes, rel=0.006)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("4096", 4096),
        ("500M", 500 * 1024**2),
        ("1.5GiB", 3 * 1024**3 // 2),
        ("1.5 gb", 3 * 1024**3 // 2),
        ("2k", 2048),
        (" 1 T ", 1024**4),
        ("12B", 12),
        ("0", 0),
    ],
)
def test_parse_bytes(text: str, n_bytes: int) -> None:
    assert units.parse_bytes(text) == n_bytes


@pytest.mark.parametrize("text", ["", "M", "-5M", "1,5G", "5 X", "1e9", "5MM", "nan", "1.2.3", "0x10"])
def test_parse_bytes_refuses(text: str) -> None:
    with pytest.raises(SpecError, match="not a size") as caught:
        units.parse_bytes(text)
    assert caught.value.hint == "write it like 500M, 1.5GiB or 4096"


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_a_spec_error(text: str) -> None:
    with contextlib.suppress(SpecError):
        assert units.parse_bytes(text) >= 0


@given(st.integers(min_value=0, max_value=2**53))
def test_plain_numbers_of_bytes_stand_for_themselves(n_bytes: int) -> None:
    assert units.parse_bytes(str(n_bytes)) == n_bytes

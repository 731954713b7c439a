"""Units for people: the only place where bytes become MiB and seconds become ms.

Inside edgellm every number is SI and carries its unit in its name. These functions turn such
numbers into words, and sizes typed by people into bytes.
"""

from __future__ import annotations

import math
import re

from edgellm.errors import SpecError

KIB = 1024
MIB = 1024**2
GIB = 1024**3

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*$", re.IGNORECASE)


def format_bytes(n_bytes: float) -> str:
    """Bytes in binary units: `138 MiB`."""
    for unit, scale in (("TiB", 1024**4), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(n_bytes) >= scale:
            return f"{_three_digits(n_bytes / scale)} {unit}"
    return f"{n_bytes:.0f} B"


def format_seconds(seconds: float) -> str:
    """A duration with the unit that fits: `12.3 ms`, `1.20 s`, `2 min 05 s`."""
    if seconds < 1e-3:
        return f"{_three_digits(seconds * 1e6)} us"
    if seconds < 1:
        return f"{_three_digits(seconds * 1e3)} ms"
    if seconds < 120:
        return f"{_three_digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def format_count(n: float) -> str:
    """A count in thousands, millions or billions: `135 M`."""
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(n) >= scale:
            return f"{_three_digits(n / scale)} {unit}"
    return f"{n:.0f}"


def format_money(amount: float, currency: str) -> str:
    """Money with two significant digits at least, never rounded to zero: `USD 0.0031`."""
    if amount == 0:
        return f"{currency} 0"
    digits = max(2, 1 - math.floor(math.log10(abs(amount))))
    return f"{currency} {amount:.{digits}f}"


def parse_bytes(text: str) -> int:
    """A size typed by a person: `500M`, `1.5GiB`, `4096`. K, M, G, T are powers of 1024.

    Raises:
        SpecError: the text is not a size.
    """
    match = _SIZE.match(text)
    if not match:
        raise SpecError(f"not a size: {text!r}", hint="write it like 500M, 1.5GiB or 4096")
    scale = 1024 ** " kmgt".index(match[2].lower() or " ")
    return int(float(match[1]) * scale)


def _three_digits(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}"

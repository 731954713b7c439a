"""Electricity tariffs and cloud list prices: dated data files, with the source in every row.

A tariff that is not in tariffs.toml is unknown; there is no default country.
"""

from __future__ import annotations

import datetime
import math
import re
from pathlib import Path
from typing import TypeVar

from edgellm.errors import SpecError
from edgellm.formats.records import Record, from_toml, read_bounded
from edgellm.registry import unknown

STALE_AFTER_DAYS = 180
CLOUD_CURRENCY = "USD"
_FOLDER = Path(__file__).resolve().parent
_MAX_FILE_BYTES = 1 << 20
_NUMBER = r"(\d{1,9}(?:\.\d{1,9})?)"
_TYPED = re.compile(rf"(?:{_NUMBER}\s*([A-Z]{{3}})|([A-Z]{{3}})\s*{_NUMBER})(?:\s*/\s*KWH)?\Z")

R = TypeVar("R", bound=Record)


class Tariff(Record):
    """The price of electricity.

    Attributes:
        price_per_kwh: in `currency`, an ISO 4217 code.
        kind: who pays it and what is in it.
        taxes_included: None where the source, or the user, does not say.
        date: the period it is from.
    """

    name: str
    currency: str
    price_per_kwh: float
    kind: str
    date: str
    source: str
    taxes_included: bool | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Z]{3}", self.currency):
            raise ValueError(f"currency is {self.currency!r}, expected three capital letters")
        _check_amount("price_per_kwh", self.price_per_kwh)


class Price(Record):
    """What a cloud model lists, in USD per million tokens.

    Attributes:
        cached_usd_per_million: for input the provider has cached; None where none is listed.
        as_of: day of the snapshot.
        valid_from: first day of the price, where it was announced ahead.
    """

    model: str
    input_usd_per_million: float
    output_usd_per_million: float
    as_of: datetime.date
    source: str
    cached_usd_per_million: float | None = None
    valid_from: datetime.date | None = None

    def __post_init__(self) -> None:
        _check_amount("input_usd_per_million", self.input_usd_per_million)
        _check_amount("output_usd_per_million", self.output_usd_per_million)
        if self.cached_usd_per_million is not None:
            _check_amount("cached_usd_per_million", self.cached_usd_per_million)


class PriceList(Record):
    """Cloud prices, those a small model competes with first."""

    prices: list[Price]

    def names(self) -> list[str]:
        """All models, in the order of the file."""
        return [price.model for price in self.prices]

    def find(self, model: str) -> Price:
        """The price of that model.

        Raises:
            SpecError: there is none; the hint names the nearest and lists all.
        """
        for price in self.prices:
            if price.model == model:
                return price
        raise unknown(model, self.names(), "cloud price")


class _TariffList(Record):
    tariffs: list[Tariff]


def load_prices() -> PriceList:
    """The list prices that ship with edgellm."""
    return _load(PriceList, "prices.toml")


def tariff_names() -> list[str]:
    """Names of the tariffs that ship with edgellm."""
    return [tariff.name for tariff in _load(_TariffList, "tariffs.toml").tariffs]


def load_tariff(text: str) -> Tariff:
    """A tariff by its name, or typed as money per kWh: `0.30 EUR`, `EUR 0.30`, `0.165USD`.

    Raises:
        SpecError: neither; the hint lists the names.
    """
    tariffs = _load(_TariffList, "tariffs.toml").tariffs
    for tariff in tariffs:
        if tariff.name == text.strip():
            return tariff
    match = _TYPED.match(text.strip().upper())
    if match:
        return Tariff(
            name="stated",
            currency=match[2] or match[3],
            price_per_kwh=float(match[1] or match[4]),
            kind="stated by you",
            date="",
            source="stated by you",
        )
    error = unknown(text, [tariff.name for tariff in tariffs], "tariff")
    raise SpecError(error.message, hint=f"write the price of a kWh like '0.30 EUR', or {error.hint}")


def _load(kind: type[R], name: str) -> R:
    path = _FOLDER / name
    return from_toml(kind, read_bounded(path, _MAX_FILE_BYTES), str(path))


def _check_amount(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} is {value}, expected a number of at least 0")

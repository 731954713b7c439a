"""The data files, and tariffs typed by a person."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.cost import load_prices, load_tariff, tariff_names
from edgellm.cost.prices import Price, Tariff
from edgellm.errors import SpecError
from edgellm.formats.records import from_json, to_json


def test_every_price_has_its_date_and_source() -> None:
    prices = load_prices()
    assert len(prices.prices) == len(set(prices.names())) == 24
    for price in prices.prices:
        assert price.as_of == datetime.date(2026, 8, 5)
        assert price.source
        assert 0 < price.input_usd_per_million <= price.output_usd_per_million
        if price.cached_usd_per_million is not None:
            assert price.cached_usd_per_million < price.input_usd_per_million


def test_prices_as_listed() -> None:
    prices = load_prices()
    nano = prices.find("gpt-5-nano")
    listed = (nano.input_usd_per_million, nano.output_usd_per_million, nano.cached_usd_per_million)
    assert listed == (0.05, 0.40, 0.005)
    assert prices.find("ministral-3b-latest").output_usd_per_million == 0.04
    assert prices.find("claude-4.5-haiku").cached_usd_per_million is None
    assert prices.find("claude-sonnet-5").valid_from == datetime.date(2026, 9, 1)
    assert prices.names()[0] == "ministral-3b-latest"


def test_unknown_price_names_the_nearest() -> None:
    with pytest.raises(SpecError, match="unknown cloud price 'gpt-5-nan'") as caught:
        load_prices().find("gpt-5-nan")
    assert caught.value.hint is not None
    assert "did you mean 'gpt-5-nano'" in caught.value.hint


def test_tariffs_by_name() -> None:
    names = tariff_names()
    assert len(names) == len(set(names))
    for name in names:
        tariff = load_tariff(name)
        assert tariff.name == name
        assert tariff.source
        assert tariff.date.startswith("202")
        assert 0.05 < tariff.price_per_kwh < 0.6
        assert tariff.currency in {"EUR", "USD"}
    german = load_tariff("de-household-2025h1")
    assert (german.currency, german.price_per_kwh) == ("EUR", 0.3835)
    assert load_tariff("world-2025q2").price_per_kwh == 0.165
    assert load_tariff("eu27-household-2025h1").taxes_included is True


def test_countries_without_a_source_are_absent() -> None:
    assert not [name for name in tariff_names() if name.startswith(("us-", "in-", "cn-", "jp-", "br-"))]


@pytest.mark.parametrize(
    ("text", "currency", "price"),
    [
        ("0.30 EUR", "EUR", 0.30),
        ("EUR 0.30", "EUR", 0.30),
        ("0.165USD", "USD", 0.165),
        ("usd0.165", "USD", 0.165),
        (" 0.25 GBP/kWh ", "GBP", 0.25),
        ("31 JPY / kWh", "JPY", 31.0),
        ("0 EUR", "EUR", 0.0),
    ],
)
def test_tariffs_typed(text: str, currency: str, price: float) -> None:
    tariff = load_tariff(text)
    assert (tariff.currency, tariff.price_per_kwh) == (currency, price)
    assert tariff.source == "stated by you"
    assert tariff.taxes_included is None


@pytest.mark.parametrize(
    "text",
    ["", "0.30", "EUR", "-0.3 EUR", "0,30 EUR", "nan EUR", "1e3 EUR", "0.3 EURO", "EUR 0.3 USD", "mars"],
)
def test_unknown_tariffs_list_the_names(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_tariff(text)
    assert caught.value.hint is not None
    assert "'0.30 EUR'" in caught.value.hint
    assert "world-2025q2" in caught.value.hint


@given(st.text(max_size=40))
def test_any_text_is_a_tariff_or_a_spec_error(text: str) -> None:
    try:
        tariff = load_tariff(text)
    except SpecError:
        return
    assert tariff.price_per_kwh >= 0


@given(st.integers(min_value=0, max_value=10**9))
def test_typed_prices_keep_their_value(micros: int) -> None:
    price = micros / 1e6
    assert load_tariff(f"{price:.6f} EUR") == load_tariff(f"EUR {price:.6f}")
    assert load_tariff(f"{price:.6f} EUR").price_per_kwh == price


@pytest.mark.parametrize("amount", [-1.0, float("nan"), float("inf")])
def test_impossible_amounts_are_refused(amount: float) -> None:
    with pytest.raises(ValueError, match="price_per_kwh"):
        Tariff(name="x", currency="EUR", price_per_kwh=amount, kind="", date="", source="")
    with pytest.raises(ValueError, match="output_usd_per_million"):
        Price(
            model="x",
            input_usd_per_million=0.1,
            output_usd_per_million=amount,
            as_of=datetime.date(2026, 8, 5),
            source="",
        )


def test_currency_is_a_code() -> None:
    with pytest.raises(ValueError, match="currency"):
        Tariff(name="x", currency="euro", price_per_kwh=0.3, kind="", date="", source="")


def test_a_price_survives_json() -> None:
    price = load_prices().find("gpt-5.6-luna")
    assert from_json(Price, to_json(price), "test") == price

"""What a person reads: marks, notes, refusals and honest digits."""

from __future__ import annotations

import datetime
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.cost import Hardware, compute, load_prices, load_tariff, render_text
from edgellm.cost.render import as_listed, two_digits
from edgellm.report import Missing, Report
from tests.samples import make_energy, make_measurement, make_report

TODAY = datetime.date(2026, 11, 22)
NO_METER = Missing(quantity="decode_j_per_token", reason="no energy meter on this machine")
SPEED = make_measurement("decode_tok_per_s", [5.1, 5.0, 4.8])
UNMETERED = make_report([SPEED], [NO_METER])
METERED = make_report([SPEED, make_energy("decode_j_per_token", [2.439, 2.6, 2.2])])
HARDWARE = Hardware(price=120, years=4, hours_per_day=8)


def rendered(
    report: Report,
    against: str | None = "gpt-5-nano",
    tariff: str = "world-2025q2",
    *,
    watts: float | None = None,
    rate: float | None = None,
    hardware: Hardware | None = None,
) -> str:
    price = load_prices().find(against) if against else None
    ledger = compute(
        report, load_tariff(tariff), price, today=TODAY, stated_watts=watts, rate=rate, hardware=hardware
    )
    return render_text(ledger)


def line(text: str, label: str) -> str:
    return next(row for row in text.splitlines() if row.startswith(label))


def test_measured() -> None:
    text = rendered(METERED)
    assert "2.4 (2.2 to 2.6) J/token" in line(text, "energy")
    assert "measured (wall meter, wall, gross)" in line(text, "energy")
    assert "USD 0.11 (0.10 to 0.12) at USD 0.165 per kWh (world-2025q2" in line(text, "electricity")
    assert "costs less than gpt-5-nano: USD 0.11 (0.10 to 0.12) against USD 0.40" in line(text, "comparison")
    assert "decode_tok_per_s of workload tg128" in line(text, "speed")
    assert "modelled" not in text
    assert "hardware" not in text
    assert len(text.splitlines()) <= 12


def test_local_loses() -> None:
    text = rendered(METERED, "ministral-3b-latest")
    assert "local loses: ministral-3b-latest costs less" in line(text, "comparison")
    assert "never" in line(rendered(METERED, "ministral-3b-latest", hardware=HARDWARE), "paid back")


def test_missing_energy_shows_the_break_even_power_and_no_cost() -> None:
    text = rendered(UNMETERED)
    assert "not measured: no energy meter on this machine" in line(text, "energy")
    assert "break-even power 44 (42 to 45) W" in line(text, "comparison")
    assert not re.search(r"USD [\d.]+ at ", line(text, "electricity"))
    assert "J/token" not in text


def test_missing_energy_without_a_cloud_price_says_what_to_do() -> None:
    text = rendered(UNMETERED, None)
    assert "--watts" in line(text, "electricity")
    assert "--against" in line(text, "break-even")


def test_stated_watts_are_marked_on_every_line_made_from_them() -> None:
    text = rendered(UNMETERED, watts=7.5, hardware=HARDWARE)
    for label in ("energy", "electricity", "comparison", "paid back"):
        assert "modelled (watts stated by you)" in line(text, label)


@pytest.mark.parametrize("against", ["gpt-5-nano", "ministral-3b-latest", "gpt-5.5"])
@pytest.mark.parametrize("report", [METERED, UNMETERED], ids=["metered", "unmetered"])
@pytest.mark.parametrize("tariff", ["world-2025q2", "0.30 EUR"])
def test_quality_is_never_equal(against: str, report: Report, tariff: str) -> None:
    assert "quality is not equal" in rendered(report, against, tariff)


def test_nothing_is_said_about_quality_without_a_comparison() -> None:
    assert "quality" not in rendered(METERED, None)


def test_currencies_stand_side_by_side_without_a_rate() -> None:
    text = rendered(METERED, tariff="de-household-2025h1")
    assert "EUR 0.26" in line(text, "electricity")
    assert "USD 0.40" in line(text, "cloud")
    assert "none: the tariff is in EUR, the price in USD" in line(text, "comparison")
    assert "--rate" in line(text, "comparison")


def test_a_stated_rate_is_shown() -> None:
    text = rendered(METERED, tariff="de-household-2025h1", rate=0.86)
    assert "1 USD = 0.86 EUR (stated by you), so the cloud lists EUR 0.34" in line(text, "rate")
    assert "against EUR 0.34" in line(text, "comparison")


def test_hardware_is_a_line_of_its_own() -> None:
    alone, beside = rendered(METERED), rendered(METERED, hardware=HARDWARE)
    assert line(alone, "electricity") == line(beside, "electricity")
    assert line(alone, "comparison") == line(beside, "comparison")
    assert "on top, if USD 120.00 lasts 4 years at 8 h a day (stated by you)" in line(beside, "hardware")
    assert "more than the 210 million tokens of its life" in line(beside, "paid back")
    sold = rendered(METERED, hardware=Hardware(price=120, residual=20, years=4, hours_per_day=8, idle_w=3))
    assert "less USD 20.00 when sold" in line(sold, "hardware")
    assert "3 W in the other hours" in line(sold, "stand-by")


def test_taxes_are_mentioned_where_the_tariff_has_them() -> None:
    assert "includes taxes" in rendered(METERED)
    assert "includes taxes" not in rendered(METERED, tariff="0.3 USD")


def test_one_sample_shows_no_range() -> None:
    text = rendered(make_report([make_measurement("tg_tok_per_s", [5.0])], [NO_METER]))
    assert "1 sample, so no range" in line(text, "speed")


def test_warnings_are_printed() -> None:
    report = make_report([SPEED], [NO_METER], warnings=["throttled"])
    assert "the report says: throttled" in line(rendered(report), "warning")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.1118, "0.11"),
        (0.0996, "0.10"),
        (9.96, "10"),
        (429.2, "430"),
        (1234, "1,200"),
        (3e-6, "0.0000030"),
    ],
)
def test_two_digits(value: float, text: str) -> None:
    assert two_digits(value) == text


@given(st.floats(min_value=1e-6, max_value=1e12))
def test_two_digits_are_two_and_near(value: float) -> None:
    text = two_digits(value)
    assert float(text.replace(",", "")) == pytest.approx(value, rel=0.051)
    digits = text.replace(",", "").replace(".", "").strip("0")
    assert len(digits) <= 2
    assert "e" not in text


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0.165, "USD 0.165"), (5, "USD 5.00"), (0.3, "USD 0.30"), (30, "USD 30.00"), (0, "USD 0.00")],
)
def test_listed_prices_keep_their_digits(amount: float, text: str) -> None:
    assert as_listed(amount, "USD") == text

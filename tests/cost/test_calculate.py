"""Ledgers from reports: measured, modelled and missing energy, currencies, dates, hardware."""

from __future__ import annotations

import datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.cost import Hardware, Ledger, Price, compute, load_prices, load_tariff
from edgellm.errors import BadInputError
from edgellm.formats.records import from_json, to_json
from edgellm.report import Missing, Report, Result
from edgellm.workload import Workload
from tests.samples import make_energy, make_measurement, make_report

TODAY = datetime.date(2026, 11, 22)
NO_METER = Missing(quantity="decode_j_per_token", reason="no energy meter on this machine")
RATES = st.lists(st.floats(min_value=0.01, max_value=1e4), min_size=1, max_size=8)


def measured(j_per_token: float, tok_per_s: float = 5.0) -> Report:
    return make_report(
        [make_measurement("tg_tok_per_s", [tok_per_s]), make_energy("decode_j_per_token", [j_per_token])]
    )


def unmetered(*tok_per_s: float) -> Report:
    return make_report([make_measurement("tg_tok_per_s", tok_per_s)], [NO_METER])


def price(model: str = "gpt-5-nano") -> Price:
    return load_prices().find(model)


def ledger(
    report: Report, against: str | None = "gpt-5-nano", tariff: str = "0.165 USD", **more: Any
) -> Ledger:
    chosen = price(against) if against else None
    return compute(report, load_tariff(tariff), chosen, **{"today": TODAY, **more})


def test_measured_energy_becomes_money() -> None:
    found = ledger(measured(2.439))
    assert found.decode is not None
    assert found.decode.kwh_per_million.median == pytest.approx(0.6775, abs=1e-4)
    assert found.decode.cost_per_million.median == pytest.approx(0.1118, abs=1e-4)
    assert found.decode.energy.basis == "measured (wall meter, wall, gross)"
    assert found.comparison is not None
    assert found.comparison.verdict == "local costs less"


def test_local_can_lose() -> None:
    found = ledger(measured(5.346), "ministral-8b-latest")
    assert found.comparison is not None
    assert found.comparison.verdict == "cloud costs less"


def test_a_price_inside_the_range_is_too_close_to_tell() -> None:
    report = make_report([make_energy("decode_j_per_token", [8.0, 9.0, 10.0])])
    found = ledger(report)
    assert found.comparison is not None
    assert found.comparison.verdict == "too close to tell"


def test_the_range_has_both_ends() -> None:
    report = make_report(
        [
            make_measurement("tg_tok_per_s", [4.0, 6.0, 5.0]),
            make_energy("decode_j_per_token", [2.2, 2.7, 2.4]),
        ]
    )
    found = ledger(report)
    assert found.decode is not None
    cost = found.decode.cost_per_million
    assert cost.low == pytest.approx(2.2 / 3.6 * 0.165)
    assert cost.median == pytest.approx(2.4 / 3.6 * 0.165)
    assert cost.high == pytest.approx(2.7 / 3.6 * 0.165)
    assert cost.n_samples == 3


def test_missing_energy_gives_the_reports_reason_and_no_number() -> None:
    found = ledger(unmetered(5.0))
    assert found.decode is None
    assert found.decode_reason == "no energy meter on this machine"
    assert found.comparison is not None
    assert found.comparison.verdict is None
    assert found.comparison.break_even_w is not None
    assert found.comparison.break_even_w.median == pytest.approx(0.40 / 1e6 * 5.0 * 3.6e6 / 0.165)


def test_a_report_that_does_not_say_why() -> None:
    found = ledger(make_report())
    assert found.decode_reason == "the report has no decode_j_per_token, and does not say why"
    assert found.speed_reason is not None
    assert "decode_tok_per_s or tg_tok_per_s" in found.speed_reason
    assert found.comparison is not None
    assert found.comparison.break_even_reason == "tokens per second are unknown"


def test_reasons_are_also_found_beside_the_results() -> None:
    report = msgspec.structs.replace(make_report(), missing=[NO_METER])
    assert ledger(report).decode_reason == "no energy meter on this machine"


def test_stated_watts_are_marked_modelled() -> None:
    found = ledger(unmetered(5.0, 4.0, 6.0), stated_watts=7.5)
    assert found.decode is not None
    energy = found.decode.energy
    assert (energy.method, energy.basis, energy.stated_w) == (
        "modelled",
        "modelled (watts stated by you)",
        7.5,
    )
    span = energy.j_per_token
    assert (span.low, span.median, span.high) == (7.5 / 6, 7.5 / 5, 7.5 / 4)
    assert found.warnings == []


def test_measured_energy_is_not_replaced_by_stated_watts() -> None:
    found = ledger(measured(2.4), stated_watts=100.0)
    assert found.decode is not None
    assert found.decode.energy.stated_w is None
    assert found.decode.energy.j_per_token.median == 2.4
    assert [text for text in found.warnings if "100 W is not used" in text]


def test_stated_watts_need_tokens_per_second() -> None:
    found = ledger(make_report(), stated_watts=7.5)
    assert found.decode is None
    assert [text for text in found.warnings if "7.5 W is not used" in text]


def test_energy_that_the_report_models_stays_modelled() -> None:
    report = make_report([make_energy("decode_j_per_token", [2.0], method="modelled")])
    found = ledger(report)
    assert found.decode is not None
    assert found.decode.energy.basis.startswith("modelled")


def test_real_text_is_preferred_to_the_engine() -> None:
    chat = Workload(id="chat", about="real text", regime="text", n_gen=64, prompts=["Hello"])
    engine = make_report([make_measurement("tg_tok_per_s", [9.0])]).results[0]
    text = Result(workload=chat, measurements=[make_measurement("decode_tok_per_s", [8.0])], missing=[])
    found = ledger(make_report(results=[engine, text]))
    assert found.speed is not None
    assert (found.speed.quantity, found.speed.workload) == ("decode_tok_per_s", "chat")
    assert found.speed.tok_per_s.median == 8.0
    only_engine = ledger(make_report(results=[engine])).speed
    assert only_engine is not None
    assert (only_engine.quantity, only_engine.workload) == ("tg_tok_per_s", "tg128")


def test_prefill_is_its_own_figure_and_never_modelled() -> None:
    found = ledger(unmetered(5.0), stated_watts=7.5)
    assert found.prefill is None
    assert found.prefill_reason is not None
    report = make_report([make_energy("prefill_j_per_token", [0.36])])
    assert ledger(report).prefill is not None


def test_unlike_currencies_are_not_compared_without_a_rate() -> None:
    found = ledger(measured(2.4), tariff="0.30 EUR")
    assert found.comparison is not None
    assert found.comparison.verdict is None
    assert found.comparison.output_per_million is None
    assert found.comparison.break_even_w is None
    assert found.comparison.break_even_reason is not None
    assert "EUR" in found.comparison.break_even_reason
    assert "USD" in found.comparison.break_even_reason
    assert found.decode is not None


def test_a_stated_rate_makes_them_comparable() -> None:
    found = ledger(measured(2.4), tariff="0.30 EUR", rate=0.9)
    assert found.comparison is not None
    assert found.comparison.output_per_million == pytest.approx(0.36)
    assert found.comparison.rate == 0.9
    assert found.comparison.verdict == "local costs less"


def test_a_rate_that_converts_nothing_is_said_to_be_unused() -> None:
    found = ledger(measured(2.4), rate=0.9)
    assert found.comparison is not None
    assert found.comparison.output_per_million == 0.40
    assert [text for text in found.warnings if "0.9 is not used" in text]


@pytest.mark.parametrize(
    ("today", "allow_stale", "stale"),
    [("2027-02-01", False, False), ("2027-02-02", False, True), ("2027-02-02", True, False)],
)
def test_prices_grow_stale_after_180_days(today: str, allow_stale: bool, stale: bool) -> None:
    found = ledger(measured(2.4), today=datetime.date.fromisoformat(today), allow_stale=allow_stale)
    assert any("days old" in text for text in found.warnings) == stale


def test_dates_that_lie_ahead_are_noticed() -> None:
    found = ledger(measured(2.4), "claude-sonnet-5", today=datetime.date(2026, 8, 1))
    assert any("is this clock right" in text for text in found.warnings)
    assert any("announced for 2026-09-01" in text for text in found.warnings)


def test_what_the_report_warns_about_is_repeated() -> None:
    report = make_report(
        [make_energy("decode_j_per_token", [2.4])], warnings=["throttled"], verdict="unstable"
    )
    found = ledger(report)
    assert found.warnings == ["the report's own verdict is unstable", "the report says: throttled"]


@pytest.mark.parametrize(
    ("hardware_price", "j_per_token", "model", "million_tokens"),
    [
        (200, 2.914, "gpt-4o-mini", 429),
        (120, 2.439, "gpt-5-nano", 417),
        (600, 1.441, "ministral-8b-latest", 17_670),
        (600, 1.441, "claude-4.5-haiku", 122),
        (200, 2.914, "ministral-3b-latest", None),
    ],
)
def test_hardware_pays_back_or_never(
    hardware_price: float, j_per_token: float, model: str, million_tokens: float | None
) -> None:
    hardware = Hardware(price=hardware_price, years=4, hours_per_day=8)
    found = ledger(measured(j_per_token, tok_per_s=10.0), model, hardware=hardware).hardware
    assert found is not None
    assert found.life_tokens == 10 * 3600 * 8 * 365 * 4
    assert found.cost_per_million.median == pytest.approx(hardware_price / 420.48)
    if million_tokens is None:
        assert found.break_even_tokens is None
        assert found.break_even_reason is not None
        assert found.break_even_reason.startswith("never")
    else:
        assert found.break_even_tokens is not None
        assert found.break_even_tokens / 1e6 == pytest.approx(million_tokens, rel=0.005)
        assert found.break_even_s == pytest.approx(found.break_even_tokens / 10.0)


def test_hardware_needs_speed_energy_and_a_price_in_the_same_currency() -> None:
    hardware = Hardware(price=100, years=4, hours_per_day=8)
    assert ledger(make_report(), hardware=hardware).hardware_reason == "tokens per second are unknown"
    for report, more, reason in (
        (unmetered(5.0), {}, "the electricity of a token is unknown"),
        (measured(2.4), {"against": None}, "no cloud price was chosen"),
        (measured(2.4), {"tariff": "0.3 EUR"}, "no rate was given"),
    ):
        found = ledger(report, hardware=hardware, **more).hardware
        assert found is not None
        assert found.break_even_tokens is None
        assert reason in (found.break_even_reason or "")


def test_standby_counts_towards_the_break_even() -> None:
    hardware = Hardware(price=100, years=4, hours_per_day=1, idle_w=3.0)
    found = ledger(measured(2.4, tok_per_s=1.0), hardware=hardware).hardware
    assert found is not None
    assert found.standby_per_million is not None
    assert found.standby_per_million.median > 1.0
    assert (found.break_even_reason or "").startswith("never")


def test_free_electricity_has_no_break_even_power() -> None:
    found = ledger(measured(2.4), tariff="0 USD")
    assert found.comparison is not None
    assert found.comparison.break_even_w is None
    assert found.comparison.verdict == "local costs less"


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_statements_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="stated_watts"):
        ledger(measured(2.4), stated_watts=value)
    with pytest.raises(ValueError, match="rate"):
        ledger(measured(2.4), rate=value)


@pytest.mark.parametrize(
    "changes",
    [
        {"price": -1},
        {"residual": 101},
        {"years": 0},
        {"hours_per_day": 0},
        {"hours_per_day": 25},
        {"idle_w": -1},
    ],
)
def test_impossible_hardware_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        Hardware(**{"price": 100.0, "years": 4.0, "hours_per_day": 8.0, **changes})


@pytest.mark.parametrize("sample", [0.0, -2.0])
def test_impossible_samples_are_refused(sample: float) -> None:
    with pytest.raises(BadInputError, match="tg_tok_per_s"):
        ledger(unmetered(5.0, sample))


def test_a_ledger_survives_json() -> None:
    hardware = Hardware(price=100, years=4, hours_per_day=8, idle_w=2.0)
    found = ledger(unmetered(5.0, 6.0), stated_watts=7.5, hardware=hardware, tariff="0.3 EUR", rate=0.9)
    assert from_json(Ledger, to_json(found), "test") == found


@given(rates=RATES, tariff=st.floats(min_value=0.01, max_value=2))
def test_stating_the_break_even_power_gives_the_cloud_price(rates: list[float], tariff: float) -> None:
    text = f"{tariff:.4f} USD"
    comparison = ledger(unmetered(*rates), tariff=text).comparison
    assert comparison is not None
    assert comparison.break_even_w is not None
    back = ledger(unmetered(*rates), tariff=text, stated_watts=comparison.break_even_w.median)
    assert back.decode is not None
    cost = back.decode.cost_per_million
    assert cost.median == pytest.approx(0.40)
    assert cost.low <= cost.median <= cost.high


@given(rates=RATES, watts=st.floats(min_value=0.1, max_value=1000))
def test_the_verdict_agrees_with_the_break_even_power(rates: list[float], watts: float) -> None:
    comparison = ledger(unmetered(*rates), stated_watts=watts).comparison
    assert comparison is not None
    assert comparison.break_even_w is not None
    if comparison.verdict == "local costs less":
        assert watts < comparison.break_even_w.low * (1 + 1e-9)
    elif comparison.verdict == "cloud costs less":
        assert watts > comparison.break_even_w.high * (1 - 1e-9)
    else:
        assert comparison.break_even_w.low * (1 - 1e-9) <= watts <= comparison.break_even_w.high * (1 + 1e-9)

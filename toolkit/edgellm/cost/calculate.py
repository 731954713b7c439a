"""Works a ledger out of a report: which samples are used, what follows, and why something is unknown."""

from __future__ import annotations

import datetime
import math
import statistics

from edgellm.cost import formulas
from edgellm.cost.ledger import (
    SCHEMA,
    Comparison,
    Electricity,
    Energy,
    Hardware,
    HardwareCost,
    Ledger,
    Span,
    Speed,
    Verdict,
)
from edgellm.cost.prices import CLOUD_CURRENCY, STALE_AFTER_DAYS, Price, Tariff
from edgellm.errors import BadInputError
from edgellm.report import Measurement, Report

STATED = "modelled (watts stated by you)"
QUALITY_NOTE = (
    "quality is not equal: a small quantized model is another product than the cloud model beside it"
)
PLAUSIBLE = (1e-12, 1e15)
SPEEDS = ("decode_tok_per_s", "tg_tok_per_s")


def compute(
    report: Report,
    tariff: Tariff,
    against: Price | None,
    *,
    today: datetime.date,
    stated_watts: float | None = None,
    rate: float | None = None,
    hardware: Hardware | None = None,
    allow_stale: bool = False,
) -> Ledger:
    """Work out the ledger.

    Args:
        against: the cloud price to set beside it; None compares with nothing.
        stated_watts: power while generating, in W; used only where the report has no measured decode energy.
        rate: what one US dollar is in the tariff's currency; without it unlike currencies are not compared.
        hardware: adds the purchase, on its own line.
        allow_stale: do not warn about old prices.

    Raises:
        ValueError: stated_watts or rate is not a positive number.
        BadInputError: a sample in the report is not a positive number.
    """
    for name, value in (("stated_watts", stated_watts), ("rate", rate)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}, expected a positive number")
    speed = _speed(report)
    energy = _reported(report, "decode_j_per_token")
    if energy is None and stated_watts is not None and speed:
        energy = _modelled(stated_watts, speed.tok_per_s)
    decode = _electricity(energy, tariff) if energy else None
    prefill_energy = _reported(report, "prefill_j_per_token")
    comparison = _compare(tariff, against, rate, speed, decode) if against else None
    return Ledger(
        schema=SCHEMA,
        report_id=report.report_id,
        model=report.model.model,
        quant=report.model.quant,
        target=report.device.target,
        tariff=tariff,
        speed=speed,
        speed_reason=None if speed else _why_missing(report, *SPEEDS),
        decode=decode,
        decode_reason=None if decode else _why_missing(report, "decode_j_per_token"),
        prefill=_electricity(prefill_energy, tariff) if prefill_energy else None,
        prefill_reason=None if prefill_energy else _why_missing(report, "prefill_j_per_token"),
        comparison=comparison,
        hardware=_spread(hardware, tariff, speed, decode, comparison) if hardware and speed else None,
        hardware_reason="tokens per second are unknown" if hardware and not speed else None,
        warnings=[
            *_input_warnings(report, tariff, energy, against, stated_watts, rate),
            *(_price_warnings(against, today, allow_stale=allow_stale) if against else []),
        ],
    )


def _speed(report: Report) -> Speed | None:
    for quantity in SPEEDS:
        for result in report.results:
            found = result.find(quantity)
            if found:
                return Speed(
                    quantity=quantity, workload=result.workload.id, tok_per_s=_span(found, report.report_id)
                )
    return None


def _reported(report: Report, quantity: str) -> Energy | None:
    found = report.find(quantity)
    if found is None:
        return None
    return Energy(
        j_per_token=_span(found, report.report_id),
        method=found.method,
        basis=f"{found.method} ({found.source}, {found.scope})",
    )


def _modelled(stated_w: float, tok_per_s: Span) -> Energy:
    return Energy(
        j_per_token=_inverse(tok_per_s, stated_w),
        method="modelled",
        basis=STATED,
        stated_w=stated_w,
    )


def _electricity(energy: Energy, tariff: Tariff) -> Electricity:
    kwh = _scaled(energy.j_per_token, formulas.kwh_per_million(1.0))
    return Electricity(
        energy=energy, kwh_per_million=kwh, cost_per_million=_scaled(kwh, tariff.price_per_kwh)
    )


def _compare(
    tariff: Tariff, price: Price, rate: float | None, speed: Speed | None, decode: Electricity | None
) -> Comparison:
    output = price.output_usd_per_million
    if tariff.currency != CLOUD_CURRENCY:
        output_here = output * rate if rate else None
    else:
        output_here, rate = output, None
    break_even, reason = _break_even_power(tariff, speed, output_here)
    verdict = _verdict(decode.cost_per_million, output_here) if decode and output_here is not None else None
    return Comparison(
        price=price,
        rate=rate,
        output_per_million=output_here,
        break_even_w=break_even,
        break_even_reason=reason,
        verdict=verdict,
        note=QUALITY_NOTE,
    )


def _break_even_power(
    tariff: Tariff, speed: Speed | None, output_here: float | None
) -> tuple[Span | None, str | None]:
    if output_here is None:
        return (
            None,
            f"the tariff is in {tariff.currency}, the price in {CLOUD_CURRENCY}, and no rate was given",
        )
    if speed is None:
        return None, "tokens per second are unknown"
    if tariff.price_per_kwh == 0:
        return None, "electricity costs nothing at this tariff"
    return _scaled(speed.tok_per_s, formulas.break_even_w(output_here, 1.0, tariff.price_per_kwh)), None


def _verdict(local: Span, cloud: float) -> Verdict:
    if local.high < cloud:
        return "local costs less"
    if local.low > cloud:
        return "cloud costs less"
    return "too close to tell"


def _spread(
    hardware: Hardware,
    tariff: Tariff,
    speed: Speed,
    decode: Electricity | None,
    comparison: Comparison | None,
) -> HardwareCost:
    tok_per_s = speed.tok_per_s
    life_tokens = formulas.lifetime_tokens(tok_per_s.median, hardware.hours_per_day, hardware.years)
    cost = formulas.hardware_per_million(hardware.price, hardware.residual, life_tokens)
    standby = None
    if hardware.idle_w is not None:
        standby = formulas.standby_per_million(
            hardware.idle_w, hardware.hours_per_day, tok_per_s.median, tariff.price_per_kwh
        )
    tokens, reason = None, None
    if comparison is None:
        reason = "no cloud price was chosen"
    elif comparison.output_per_million is None:
        reason = comparison.break_even_reason
    elif decode is None:
        reason = "the electricity of a token is unknown"
    else:
        local = decode.cost_per_million.median + (standby or 0.0)
        tokens = formulas.break_even_tokens(hardware.price, comparison.output_per_million, local)
        reason = None if tokens is not None else "never: a local token costs as much as the cloud's, or more"
    return HardwareCost(
        stated=hardware,
        life_tokens=life_tokens,
        cost_per_million=_inverse(tok_per_s, cost * tok_per_s.median),
        standby_per_million=None if standby is None else _inverse(tok_per_s, standby * tok_per_s.median),
        break_even_tokens=tokens,
        break_even_s=tokens / tok_per_s.median if tokens is not None else None,
        break_even_reason=reason,
    )


def _input_warnings(
    report: Report,
    tariff: Tariff,
    energy: Energy | None,
    against: Price | None,
    stated_watts: float | None,
    rate: float | None,
) -> list[str]:
    warnings = []
    if stated_watts is not None and energy is None:
        warnings.append(
            f"{stated_watts:g} W is not used: the report has no tokens per second to divide it by"
        )
    elif stated_watts is not None and energy and energy.stated_w is None:
        warnings.append(f"{stated_watts:g} W is not used: the report has energy of its own, {energy.basis}")
    if rate is not None and (against is None or tariff.currency == CLOUD_CURRENCY):
        warnings.append(f"the exchange rate {rate:g} is not used: nothing has to be converted")
    if report.verdict != "ok":
        warnings.append(f"the report's own verdict is {report.verdict}")
    return warnings + [f"the report says: {text}" for text in report.warnings]


def _price_warnings(price: Price, today: datetime.date, *, allow_stale: bool) -> list[str]:
    warnings = []
    age_days = (today - price.as_of).days
    if age_days > STALE_AFTER_DAYS and not allow_stale:
        warnings.append(
            f"the cloud price is {age_days} days old ({price.as_of}): check it before relying on it"
        )
    if age_days < 0:
        warnings.append(
            f"the cloud price is dated {price.as_of}, after today ({today}): is this clock right?"
        )
    if price.valid_from and price.valid_from > today:
        warnings.append(f"the cloud price is announced for {price.valid_from}, after today ({today})")
    return warnings


def _why_missing(report: Report, *quantities: str) -> str:
    stated = [missing for result in report.results for missing in result.missing] + report.missing
    for quantity in quantities:
        for missing in stated:
            if missing.quantity == quantity:
                return missing.reason
    return f"the report has no {' or '.join(quantities)}, and does not say why"


def _span(measurement: Measurement, report_id: str) -> Span:
    for sample in measurement.samples:
        if not PLAUSIBLE[0] < sample < PLAUSIBLE[1]:
            raise BadInputError(
                f"report {report_id}: a sample of {measurement.quantity} is {sample}, not a plausible positive number",
                hint="profile again",
            )
    unit = "tok/s" if measurement.quantity.endswith("tok_per_s") else "J/token"
    if measurement.unit != unit:
        raise BadInputError(
            f"report {report_id}: {measurement.quantity} is in {measurement.unit!r}, expected {unit!r}",
            hint="profile again",
        )
    return Span(
        low=min(measurement.samples),
        median=statistics.median(measurement.samples),
        high=max(measurement.samples),
        n_samples=len(measurement.samples),
    )


def _scaled(span: Span, factor: float) -> Span:
    return Span(
        low=span.low * factor,
        median=span.median * factor,
        high=span.high * factor,
        n_samples=span.n_samples,
    )


def _inverse(span: Span, factor: float) -> Span:
    return Span(
        low=factor / span.high,
        median=factor / span.median,
        high=factor / span.low,
        n_samples=span.n_samples,
    )

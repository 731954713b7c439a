"""The ledger as about a dozen lines of text: computed figures with two digits, prices as they are listed."""

from __future__ import annotations

from edgellm.cost.ledger import Comparison, Electricity, HardwareCost, Ledger, Span
from edgellm.cost.prices import CLOUD_CURRENCY, Tariff
from edgellm.units import format_seconds

_LABEL_WIDTH = 14
_SECONDS_PER_DAY = 24 * 3600
_SECONDS_PER_YEAR = 365 * _SECONDS_PER_DAY


def render_text(ledger: Ledger) -> str:
    """What `edgellm cost` prints for one report, with a final newline."""
    lines = [
        f"A million tokens of {ledger.model} {ledger.quant} on {ledger.target}, report {ledger.report_id}",
        _line("speed", _speed(ledger)),
        *_decode_lines(ledger),
        _line("prompt tokens", _prefill(ledger)),
    ]
    if ledger.hardware:
        lines += _hardware_lines(ledger, ledger.hardware)
    elif ledger.hardware_reason:
        lines.append(_line("hardware", f"not known: {ledger.hardware_reason}"))
    if ledger.comparison:
        lines += _comparison_lines(ledger, ledger.comparison)
    elif ledger.decode is None:
        lines.append(
            _line("break-even", "choose a cloud price with --against NAME to see the watts it allows")
        )
    lines += [_line("warning", text) for text in ledger.warnings]
    return "\n".join(lines) + "\n"


def headline(ledger: Ledger) -> list[str]:
    """The ledger in a few lines: electricity or why it is unknown, the comparison, its limits."""
    tariff, comparison = ledger.tariff, ledger.comparison
    at = f"{as_listed(tariff.price_per_kwh, tariff.currency)} per kWh"
    if ledger.decode:
        lines = [f"a million tokens: {_cost(ledger.decode, tariff)} of electricity at {at} ({tariff.name})"]
    else:
        lines = [
            f"electricity of a million tokens not known: no energy was measured (tariff {at}, {tariff.name})"
        ]
    if comparison is None:
        return lines
    price = comparison.price
    listed = f"{price.model} lists {as_listed(price.output_usd_per_million, CLOUD_CURRENCY)} per million ({price.as_of})"
    if ledger.decode is None and comparison.break_even_w:
        watts = two_digits(comparison.break_even_w.median)
        lines.append(
            f"{listed}: this machine's electricity is cheaper if it draws less than {watts} W, dearer if more"
        )
    else:
        lines.append(f"{listed}: {comparison.verdict or comparison.note}")
    return [
        *lines,
        "quality is not equal: this small model is another product than the cloud model beside it",
    ]


def two_digits(value: float) -> str:
    """A number rounded to two significant digits, without an exponent: `0.11`, `430`, `1,200`."""
    if value == 0:
        return "0"
    rounded = f"{value:.1e}"
    decimals = max(0, 1 - int(rounded.partition("e")[2]))
    return f"{float(rounded):,.{decimals}f}"


def as_listed(amount: float, currency: str) -> str:
    """A price with all the digits it is listed with, and at least two decimals: `USD 0.165`, `USD 5.00`."""
    whole, _, decimals = f"{amount:.9f}".rstrip("0").partition(".")
    return f"{currency} {whole}.{decimals:0<2}"


def _line(label: str, text: str) -> str:
    return f"{label:<{_LABEL_WIDTH}}{text}"


def _span(span: Span) -> str:
    low, median, high = two_digits(span.low), two_digits(span.median), two_digits(span.high)
    return median if low == high else f"{median} ({low} to {high})"


def _speed(ledger: Ledger) -> str:
    speed = ledger.speed
    if speed is None:
        return f"not known: {ledger.speed_reason}"
    n = speed.tok_per_s.n_samples
    samples = f"{n} samples" if n > 1 else "1 sample, so no range"
    return f"{_span(speed.tok_per_s)} tok/s; {speed.quantity} of workload {speed.workload}, {samples}"


def _decode_lines(ledger: Ledger) -> list[str]:
    tariff = ledger.tariff
    if ledger.decode is None:
        return [
            _line("energy", f"not measured: {ledger.decode_reason}"),
            _line("electricity", f"not known at {_tariff(tariff)}; state the power with --watts to model it"),
        ]
    energy = ledger.decode.energy
    watts = f", {energy.stated_w:g} W" if energy.stated_w is not None else ""
    return [
        _line(
            "energy",
            f"{_span(energy.j_per_token)} J/token, {_span(ledger.decode.kwh_per_million)} kWh; "
            f"{energy.basis}{watts}",
        ),
        _line("electricity", f"{_cost(ledger.decode, tariff)} at {_tariff(tariff)}"),
    ]


def _prefill(ledger: Ledger) -> str:
    prefill = ledger.prefill
    if prefill is None:
        return f"cost not known: {ledger.prefill_reason}"
    return (
        f"{_span(prefill.energy.j_per_token)} J/token, {_cost(prefill, ledger.tariff)} per million; "
        f"{prefill.energy.basis}"
    )


def _cost(electricity: Electricity, tariff: Tariff) -> str:
    return f"{tariff.currency} {_span(electricity.cost_per_million)}{_mark(electricity)}"


def _mark(electricity: Electricity | None) -> str:
    if electricity is None or electricity.energy.method != "modelled":
        return ""
    return f", {electricity.energy.basis},"


def _tariff(tariff: Tariff) -> str:
    price = f"{as_listed(tariff.price_per_kwh, tariff.currency)} per kWh"
    if not tariff.date:
        return f"{price} ({tariff.source})"
    return f"{price} ({tariff.name}: {tariff.kind}, {tariff.date}, {tariff.source})"


def _hardware_lines(ledger: Ledger, hardware: HardwareCost) -> list[str]:
    stated, currency = hardware.stated, ledger.tariff.currency
    bought = as_listed(stated.price, currency)
    if stated.residual:
        bought += f", less {as_listed(stated.residual, currency)} when sold,"
    spread = f"{currency} {_span(hardware.cost_per_million)} on top"
    duty = f"lasts {stated.years:g} years at {stated.hours_per_day:g} h a day"
    lines = [_line("hardware", f"{spread}, if {bought} {duty} (stated by you)")]
    if hardware.standby_per_million:
        standby = f"{currency} {_span(hardware.standby_per_million)} on top"
        lines.append(
            _line(
                "stand-by", f"{standby}, if it draws {stated.idle_w:g} W in the other hours (stated by you)"
            )
        )
    return [*lines, _line("paid back", _paid_back(ledger, hardware))]


def _paid_back(ledger: Ledger, hardware: HardwareCost) -> str:
    tokens, life = hardware.break_even_tokens, hardware.life_tokens
    if tokens is None or hardware.break_even_s is None:
        reason = hardware.break_even_reason or ""
        return reason if reason.startswith("never") else f"not known: {reason}"
    text = f"after {_tokens(tokens)}, {_duration(hardware.break_even_s)} of generating without a pause"
    if tokens > life:
        text += f", more than the {_tokens(life)} of its life"
    return text + _mark(ledger.decode).removesuffix(",")


def _comparison_lines(ledger: Ledger, comparison: Comparison) -> list[str]:
    price, currency = comparison.price, ledger.tariff.currency
    listed = as_listed(price.output_usd_per_million, CLOUD_CURRENCY)
    lines = [
        _line(
            "cloud",
            f"{price.model} lists {listed} per million output tokens, "
            f"{as_listed(price.input_usd_per_million, CLOUD_CURRENCY)} input ({price.as_of}, {price.source})",
        )
    ]
    output = comparison.output_per_million
    if output is None:
        lines.append(
            _line(
                "comparison",
                f"none: {comparison.break_even_reason}; state what a dollar is worth with --rate",
            )
        )
        return [*lines, _line("note", comparison.note)]
    if comparison.rate is not None:
        listed = f"{currency} {two_digits(output)}"
        lines.append(
            _line(
                "rate", f"1 USD = {comparison.rate:g} {currency} (stated by you), so the cloud lists {listed}"
            )
        )
    lines.append(_line("comparison", _verdict(ledger, comparison, listed)))
    lines.append(_line("note", f"electricity and output tokens only; {comparison.note}"))
    if ledger.tariff.taxes_included:
        lines.append(_line("note", "the tariff includes taxes, list prices usually do not"))
    return lines


def _verdict(ledger: Ledger, comparison: Comparison, listed: str) -> str:
    model = comparison.price.model
    if ledger.decode and comparison.verdict:
        words = {
            "local costs less": f"local electricity costs less than {model}",
            "cloud costs less": f"local loses: {model} costs less than local electricity",
            "too close to tell": f"local electricity and {model} are too close to tell apart",
        }[comparison.verdict]
        return f"{words}: {_cost(ledger.decode, ledger.tariff)} against {listed}"
    if comparison.break_even_w:
        power = f"{_span(comparison.break_even_w)} W"
        return (
            f"break-even power {power}: on less, electricity costs less than {model}; on more, it costs more"
        )
    return f"not known: {comparison.break_even_reason}"


def _tokens(n: float) -> str:
    for unit, scale in (("billion", 1e9), ("million", 1e6), ("thousand", 1e3)):
        if n >= scale:
            return f"{two_digits(n / scale)} {unit} tokens"
    return f"{two_digits(n)} tokens"


def _duration(seconds: float) -> str:
    for unit, scale in (("years", _SECONDS_PER_YEAR), ("days", _SECONDS_PER_DAY), ("hours", 3600)):
        if seconds >= scale:
            return f"{two_digits(seconds / scale)} {unit}"
    return format_seconds(seconds)

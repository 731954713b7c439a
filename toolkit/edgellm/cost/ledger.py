"""The ledger: one report, one tariff and perhaps one cloud price, worked out with both ends of every range.

Format history
    edgellm.ledger/1   first version

Money for a million tokens is in the tariff's currency unless a field's name says USD. A figure comes from
measured energy or is modelled from stated watts, never from both: `Energy.basis` says which.
"""

from __future__ import annotations

import math
from typing import Literal

from edgellm.cost.prices import Price, Tariff
from edgellm.formats.records import Record
from edgellm.report import Method

SCHEMA = "edgellm.ledger/1"
Verdict = Literal["local costs less", "cloud costs less", "too close to tell"]


class Span(Record):
    """A value with the lowest and the highest that the samples allow; one sample shows no spread."""

    low: float
    median: float
    high: float
    n_samples: int


class Speed(Record):
    """Tokens generated per second, and the quantity and workload of the report that say so."""

    quantity: str
    workload: str
    tok_per_s: Span


class Energy(Record):
    """Energy of one token.

    Attributes:
        basis: `measured (SOURCE, SCOPE)`, or `modelled (...)`, to be shown beside every figure made from it.
        stated_w: the watts the user stated, where the figure comes from them.
    """

    j_per_token: Span
    method: Method
    basis: str
    stated_w: float | None = None


class Electricity(Record):
    """Energy of a million tokens, and what it costs in the tariff's currency."""

    energy: Energy
    kwh_per_million: Span
    cost_per_million: Span


class Comparison(Record):
    """Local electricity beside the cloud's price for the same number of output tokens.

    Attributes:
        output_per_million: the cloud's price in the tariff's currency; None where no rate was given.
        break_even_w: draw less than this and electricity costs less than the cloud; None where unknown.
        break_even_reason: why it is unknown.
        verdict: None where local cost or the rate is unknown.
    """

    price: Price
    rate: float | None
    output_per_million: float | None
    break_even_w: Span | None
    break_even_reason: str | None
    verdict: Verdict | None
    note: str


class Hardware(Record):
    """What the user says about the device; all of it is an assumption, in the tariff's currency.

    Attributes:
        price, residual: what it costs, and what it sells for after `years`.
        hours_per_day: hours of generating at full speed.
        idle_w: drawn in the other hours, where it stays on only for this; None leaves stand-by out.
    """

    price: float
    years: float
    hours_per_day: float
    residual: float = 0.0
    idle_w: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.price < math.inf:
            raise ValueError(f"price is {self.price}, expected at least 0")
        if not 0 <= self.residual <= self.price:
            raise ValueError(f"residual is {self.residual}, outside 0 to the price of {self.price}")
        if self.idle_w is not None and not 0 <= self.idle_w < math.inf:
            raise ValueError(f"idle_w is {self.idle_w}, expected at least 0")
        if not 0 < self.years < math.inf:
            raise ValueError(f"years is {self.years}, expected more than 0")
        if not 0 < self.hours_per_day <= 24:
            raise ValueError(f"hours_per_day is {self.hours_per_day}, outside 0 to 24")


class HardwareCost(Record):
    """The purchase spread over its tokens; never added to electricity.

    Attributes:
        break_even_tokens: at the median cost; None is never, or unknown, and `break_even_reason` says which.
        break_even_s: time to make them without a pause.
    """

    stated: Hardware
    life_tokens: float
    cost_per_million: Span
    standby_per_million: Span | None
    break_even_tokens: float | None
    break_even_s: float | None
    break_even_reason: str | None


class Ledger(Record):
    """What a million generated tokens cost; what is unknown is None and its reason stands beside it.

    Attributes:
        prefill: the same for a million prompt tokens, from measured energy only.
        hardware_reason: why a stated purchase could not be spread over tokens.
    """

    schema: str
    report_id: str
    model: str
    quant: str
    target: str
    tariff: Tariff
    speed: Speed | None
    speed_reason: str | None
    decode: Electricity | None
    decode_reason: str | None
    prefill: Electricity | None
    prefill_reason: str | None
    comparison: Comparison | None
    hardware: HardwareCost | None
    hardware_reason: str | None
    warnings: list[str]

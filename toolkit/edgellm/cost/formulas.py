"""The arithmetic of cost, each formula once. Money is in whatever currency the caller uses throughout.

Units: J per token, W, tokens/s, and money per kWh, per token or per million tokens as named.
"""

from __future__ import annotations

J_PER_KWH = 3.6e6
TOKENS_PER_MILLION = 1e6
SECONDS_PER_HOUR = 3600
DAYS_PER_YEAR = 365
HOURS_PER_YEAR = 24 * DAYS_PER_YEAR


def kwh_per_million(j_per_token: float) -> float:
    """kWh for a million tokens.

    Definition: J/token * 1e6 tokens / 3.6e6 J/kWh.
    """
    return j_per_token * TOKENS_PER_MILLION / J_PER_KWH


def electricity_per_million(j_per_token: float, price_per_kwh: float) -> float:
    """Money for the electricity of a million tokens."""
    return kwh_per_million(j_per_token) * price_per_kwh


def j_per_token(power_w: float, tok_per_s: float) -> float:
    """Energy per token at a steady power: W / (tokens/s) = J/token."""
    return power_w / tok_per_s


def break_even_w(price_per_million: float, tok_per_s: float, price_per_kwh: float) -> float:
    """The power at which electricity costs as much per token as a cloud's price; draw less and it costs less.

    Definition: price/token * tokens/s = money/s; divided by money/kWh = kWh/s; times 3.6e6 J/kWh = J/s = W.
    """
    price_per_token = price_per_million / TOKENS_PER_MILLION
    return price_per_token * tok_per_s * J_PER_KWH / price_per_kwh


def lifetime_tokens(tok_per_s: float, hours_per_day: float, years: float) -> float:
    """Tokens a device makes in its life at that duty."""
    return tok_per_s * SECONDS_PER_HOUR * hours_per_day * DAYS_PER_YEAR * years


def hardware_per_million(price: float, residual: float, life_tokens: float) -> float:
    """Purchase price less what it sells for, spread over a life's tokens; money per million tokens."""
    return (price - residual) / (life_tokens / TOKENS_PER_MILLION)


def standby_per_million(idle_w: float, hours_per_day: float, tok_per_s: float, price_per_kwh: float) -> float:
    """Electricity of the hours in which a device waits, per million tokens it makes in the others.

    Definition: idle W * (8760 - busy hours) / 1000 * price per kWh / (tokens per year / 1e6).
    """
    idle_kwh = idle_w * (HOURS_PER_YEAR - hours_per_day * DAYS_PER_YEAR) / 1000
    return idle_kwh * price_per_kwh / (lifetime_tokens(tok_per_s, hours_per_day, 1) / TOKENS_PER_MILLION)


def break_even_tokens(price: float, cloud_per_million: float, local_per_million: float) -> float | None:
    """Tokens after which a device has paid for itself; None is never: a local token costs as much or more."""
    saved_per_million = cloud_per_million - local_per_million
    if saved_per_million <= 0:
        return None
    return price / saved_per_million * TOKENS_PER_MILLION

"""The formulas against the figures published beside them, and against each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.cost import formulas

POSITIVE = st.floats(min_value=1e-3, max_value=1e6)

# Device and model, J/token, kWh per million, then money at 0.139, 0.165, 0.2872 and 0.3835 per kWh.
WORKED = [
    ("Raspberry Pi 5, 3B", 2.439, 0.677, 0.094, 0.112, 0.195, 0.260),
    ("Raspberry Pi 5, 8B", 5.346, 1.485, 0.206, 0.245, 0.426, 0.569),
    ("Raspberry Pi 400, 3B", 3.750, 1.042, 0.145, 0.172, 0.299, 0.399),
    ("Intel N150, 3B", 2.914, 0.809, 0.113, 0.134, 0.232, 0.310),
    ("Radxa Orion O6, 8B", 4.500, 1.250, 0.174, 0.206, 0.359, 0.479),
    ("Framework 13, 3B", 2.146, 0.596, 0.083, 0.098, 0.171, 0.229),
    ("Mac mini M4, 3B", 0.729, 0.202, 0.028, 0.033, 0.058, 0.078),
    ("Mac mini M4, 8B", 1.441, 0.400, 0.056, 0.066, 0.115, 0.153),
    ("Jetson AGX Orin, 7B", 1.538, 0.427, 0.059, 0.070, 0.123, 0.164),
    ("iPhone 17 Pro, 3B", 0.245, 0.068, 0.009, 0.011, 0.020, 0.026),
    ("iPhone 17 Pro, 0.6B", 0.066, 0.018, 0.003, 0.003, 0.005, 0.007),
    ("M4 Max, E2B", 0.247, 0.069, 0.010, 0.011, 0.020, 0.026),
]


@pytest.mark.parametrize("row", WORKED, ids=[row[0] for row in WORKED])
def test_worked_table(row: tuple[str, float, float, float, float, float, float]) -> None:
    _, j_per_token, kwh, *costs = row
    assert formulas.kwh_per_million(j_per_token) == pytest.approx(kwh, abs=0.0006)
    for price_per_kwh, cost in zip((0.139, 0.165, 0.2872, 0.3835), costs, strict=True):
        assert formulas.electricity_per_million(j_per_token, price_per_kwh) == pytest.approx(cost, abs=0.0006)


@pytest.mark.parametrize(
    ("price", "cloud", "local", "million_tokens"),
    [(200, 0.60, 0.134, 429), (120, 0.40, 0.112, 417), (600, 0.10, 0.066, 17_647), (600, 5.00, 0.066, 122)],
)
def test_break_even_tokens(price: float, cloud: float, local: float, million_tokens: float) -> None:
    tokens = formulas.break_even_tokens(price, cloud, local)
    assert tokens is not None
    assert tokens / 1e6 == pytest.approx(million_tokens, rel=0.005)


@pytest.mark.parametrize("cloud", [0.04, 0.134])
def test_break_even_tokens_never(cloud: float) -> None:
    assert formulas.break_even_tokens(200, cloud, 0.134) is None


def test_a_device_that_cost_nothing_is_paid_back_at_once() -> None:
    assert formulas.break_even_tokens(0, 0.4, 0.1) == 0


def test_standby_of_a_light_user() -> None:
    # A board that idles at 3 W all year uses 26.28 kWh, USD 4.34 at 0.165.
    tok_per_s = 1e6 / (3600 * 365)
    nearly_always_idle = formulas.standby_per_million(3, 1e-9, tok_per_s, 0.165) * 1e-9
    assert nearly_always_idle == pytest.approx(4.336, abs=0.001)
    assert formulas.standby_per_million(3, 24, tok_per_s, 0.165) == 0


def test_lifetime_and_amortisation() -> None:
    life = formulas.lifetime_tokens(10, 8, 4)
    assert life == 10 * 3600 * 8 * 365 * 4
    assert formulas.hardware_per_million(120, 20, 50e6) == pytest.approx(2.0)


@given(price=POSITIVE, tok_per_s=POSITIVE, price_per_kwh=POSITIVE)
def test_at_the_break_even_power_electricity_costs_the_cloud_price(
    price: float, tok_per_s: float, price_per_kwh: float
) -> None:
    power_w = formulas.break_even_w(price, tok_per_s, price_per_kwh)
    energy = formulas.j_per_token(power_w, tok_per_s)
    assert formulas.electricity_per_million(energy, price_per_kwh) == pytest.approx(price)


@given(j_per_token=POSITIVE, price_per_kwh=POSITIVE, factor=st.floats(min_value=1.01, max_value=100))
def test_more_energy_costs_more(j_per_token: float, price_per_kwh: float, factor: float) -> None:
    cost = formulas.electricity_per_million(j_per_token, price_per_kwh)
    assert formulas.electricity_per_million(j_per_token * factor, price_per_kwh) == pytest.approx(
        cost * factor
    )


@given(price=POSITIVE, cloud=POSITIVE, local=POSITIVE)
def test_after_the_break_even_tokens_both_sides_have_spent_the_same(
    price: float, cloud: float, local: float
) -> None:
    tokens = formulas.break_even_tokens(price, cloud, local)
    if cloud <= local:
        assert tokens is None
        return
    assert tokens is not None
    millions = tokens / 1e6
    assert price + millions * local == pytest.approx(millions * cloud)

"""What a token costs: a report, an electricity tariff and a dated cloud price make a ledger that can lose.

Electricity comes from measured energy, or from watts a user states, and then says `modelled` everywhere.
Nothing here measures, converts money at a rate of its own, or picks a country.
"""

from __future__ import annotations

from edgellm.cost.calculate import compute
from edgellm.cost.ledger import Hardware, Ledger
from edgellm.cost.prices import Price, PriceList, Tariff, load_prices, load_tariff, tariff_names
from edgellm.cost.render import headline, render_text

__all__ = [
    "Hardware",
    "Ledger",
    "Price",
    "PriceList",
    "Tariff",
    "compute",
    "headline",
    "load_prices",
    "load_tariff",
    "render_text",
    "tariff_names",
]

"""`edgellm cost`"""

from __future__ import annotations

import datetime
from pathlib import Path

import click

from edgellm.cli.common import FiniteRange, json_option, print_json, show


@click.command("cost")
@click.argument("report", type=click.Path(path_type=Path))
@click.option(
    "--tariff",
    required=True,
    metavar="NAME|PRICE",
    help="A named tariff, or a price per kWh such as '0.30 EUR'.",
)
@click.option("--against", metavar="MODEL", help="A cloud model's list price to set beside it.")
@click.option("--rate", type=FiniteRange(0, min_open=True), help="What 1 USD is in the tariff's currency.")
@click.option(
    "--watts",
    type=FiniteRange(0, min_open=True),
    metavar="W",
    help="Power while generating, if you know it and no meter did.",
)
@click.option(
    "--hardware", type=FiniteRange(0), metavar="PRICE", help="Price of the device, for its own line."
)
@click.option(
    "--years",
    type=FiniteRange(0, min_open=True),
    default=4.0,
    show_default=True,
    help="How long it is used.",
)
@click.option(
    "--hours-per-day",
    type=FiniteRange(0, 24, min_open=True),
    default=1.0,
    show_default=True,
    help="How long it generates each day.",
)
@click.option("--allow-stale-prices", is_flag=True, help="No warning about old cloud prices.")
@json_option
def command(
    report: Path,
    tariff: str,
    against: str | None,
    rate: float | None,
    watts: float | None,
    hardware: float | None,
    years: float,
    hours_per_day: float,
    allow_stale_prices: bool,
    as_json: bool,
) -> None:
    """What a million tokens cost, from a REPORT of `edgellm profile` and a tariff.

    Measured energy is used where the report has it. Without it there is no price: the power is shown below which
    generating here costs less than the cloud price, or, with --watts, a figure marked as modelled.
    """
    from edgellm import cost
    from edgellm.api.profiling import read_report

    prices = cost.load_prices()
    ledger = cost.compute(
        read_report(report),
        cost.load_tariff(tariff),
        prices.find(against) if against else None,
        today=datetime.datetime.now(datetime.UTC).date(),
        stated_watts=watts,
        rate=rate,
        hardware=cost.Hardware(price=hardware, years=years, hours_per_day=hours_per_day)
        if hardware is not None
        else None,
        allow_stale=allow_stale_prices,
    )
    if as_json:
        print_json(ledger)
    else:
        show(cost.render_text(ledger).rstrip("\n"))

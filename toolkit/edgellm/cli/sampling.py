"""Options of `run` and `chat` that say how tokens are drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from edgellm.cli.common import FiniteRange

F = TypeVar("F", bound=Callable[..., Any])


def _check_stops(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    from edgellm.runtime.text import TextAssembler

    try:
        TextAssembler(value)
    except ValueError as err:
        raise click.BadParameter(str(err), ctx, param) from err
    return value


_OPTIONS = (
    click.option(
        "--max-tokens", type=click.IntRange(1, 1 << 22), metavar="N", help="Stop after so many tokens."
    ),
    click.option(
        "--temperature",
        type=FiniteRange(0, 100),
        default=0.8,
        show_default=True,
        help="0 takes the most likely token.",
    ),
    click.option(
        "--top-k",
        type=click.IntRange(0, 1 << 20),
        default=40,
        show_default=True,
        help="Keep the K best tokens; 0 keeps all.",
    ),
    click.option(
        "--top-p",
        type=FiniteRange(0, 1),
        default=0.95,
        show_default=True,
        help="Keep the smallest set this likely.",
    ),
    click.option(
        "--min-p",
        type=FiniteRange(0, 1),
        default=0.05,
        show_default=True,
        help="Drop tokens this much less likely than the best.",
    ),
    click.option(
        "--repeat-penalty",
        type=FiniteRange(0.01, 100),
        default=1.0,
        show_default=True,
        help="Divide the logits of recent tokens.",
    ),
    click.option("--seed", type=click.IntRange(0, 2**32 - 2), help="The same seed gives the same text."),
    click.option(
        "--stop",
        multiple=True,
        metavar="TEXT",
        callback=_check_stops,
        help="End the answer before this text; may be repeated.",
    ),
)


def sampling_options(function: F) -> F:
    """Add all sampling options to a command."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function

"""Options of `run` and `chat` that say how tokens are drawn, and what the text must fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from edgellm.cli.common import FiniteRange

F = TypeVar("F", bound=Callable[..., Any])
CONSTRAINTS = ("json_schema", "regex", "grammar")
MAX_CONSTRAINT_BYTES = 1024**2
_FILE = click.Path(path_type=Path)


def _check_stops(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    from edgellm.runtime.text import TextAssembler

    try:
        TextAssembler(value)
    except ValueError as err:
        raise click.BadParameter(str(err), ctx, param) from err
    return value


def _read_text(ctx: click.Context, param: click.Parameter, value: Path | None) -> str | None:
    if value is None:
        return None
    from edgellm.formats.records import read_bounded

    try:
        return read_bounded(value, MAX_CONSTRAINT_BYTES).decode("utf-8")
    except UnicodeDecodeError as err:
        raise click.BadParameter(f"{value}: not UTF-8 text: {err}", ctx, param) from err


def _read_schema(ctx: click.Context, param: click.Parameter, value: Path | None) -> str | None:
    text = _read_text(ctx, param, value)
    if text is not None:
        try:
            json.loads(text)
        except (ValueError, RecursionError) as err:
            raise click.BadParameter(f"{value}: not JSON: {str(err)[:200]}", ctx, param) from err
    return text


def _check_one(given: dict[str, Any]) -> None:
    """At most one constraint; what the runtime would call wrong use is wrong usage here."""
    asked = [f"--{name.replace('_', '-')}" for name in CONSTRAINTS if given.get(name) is not None]
    if len(asked) > 1:
        raise click.UsageError(f"{asked[0]} and {asked[1]} together: give one")


_OPTIONS = (
    click.option(
        "--max-tokens", type=click.IntRange(1, 1 << 22), metavar="N", help="Stop after so many tokens."
    ),
    click.option(
        "--temperature",
        metavar="X",
        type=FiniteRange(0, 100),
        default=0.8,
        show_default=True,
        help="0 takes the most likely token.",
    ),
    click.option(
        "--top-k",
        metavar="K",
        type=click.IntRange(0, 1 << 20),
        default=40,
        show_default=True,
        help="Keep the K best tokens; 0 keeps all.",
    ),
    click.option(
        "--top-p",
        metavar="X",
        type=FiniteRange(0, 1),
        default=0.95,
        show_default=True,
        help="Keep the smallest set this likely.",
    ),
    click.option(
        "--min-p",
        metavar="X",
        type=FiniteRange(0, 1),
        default=0.05,
        show_default=True,
        help="Drop tokens this much less likely than the best.",
    ),
    click.option(
        "--repeat-penalty",
        metavar="X",
        type=FiniteRange(0.01, 100),
        default=1.0,
        show_default=True,
        help="Divide the logits of recent tokens.",
    ),
    click.option(
        "--presence-penalty",
        metavar="X",
        type=FiniteRange(-10, 10),
        default=0.0,
        show_default=True,
        help="Take this off the logits of recent tokens, once.",
    ),
    click.option(
        "--frequency-penalty",
        metavar="X",
        type=FiniteRange(-10, 10),
        default=0.0,
        show_default=True,
        help="Take this off them for each time they occur.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0, 2**32 - 2),
        metavar="N",
        help="The same seed gives the same text.",
    ),
    click.option(
        "--stop",
        multiple=True,
        metavar="TEXT",
        callback=_check_stops,
        help="End the answer before this text; may be repeated.",
    ),
    click.option(
        "--json-schema",
        type=_FILE,
        metavar="FILE",
        callback=_read_schema,
        help="The answer is JSON that fits the schema in this file.",
    ),
    click.option("--regex", metavar="PATTERN", help="The answer fits this regular expression, as a whole."),
    click.option(
        "--grammar",
        type=_FILE,
        metavar="FILE",
        callback=_read_text,
        help="The answer fits the grammar in this file, in llguidance's notation or in GBNF.",
    ),
    click.option(
        "--overflow",
        type=click.Choice(["error", "shift", "middle"]),
        default="error",
        show_default=True,
        help="Where the context is too small: fail, drop the oldest tokens, or the middle of the prompt.",
    ),
    click.option(
        "--keep-tokens",
        type=click.IntRange(0, 1 << 22),
        metavar="N",
        default=0,
        show_default=True,
        help="With --overflow: tokens at the beginning that are not dropped.",
    ),
    click.option(
        "--no-speculation",
        is_flag=True,
        help="Try no guesses of what comes next. They change the time an answer takes, never its text.",
    ),
)


def sampling_of(options: dict[str, Any]) -> dict[str, Any]:
    """What is left of a command's options as those of a generation.

    Raises:
        click.UsageError: options that contradict each other.
    """
    _check_one(options)
    if options.get("keep_tokens") and options.get("overflow") in (None, "error"):
        raise click.UsageError("--keep-tokens needs --overflow shift or middle")
    no_speculation = options.pop("no_speculation")
    return {**options, "speculate": not no_speculation}


def sampling_options(function: F) -> F:
    """Add all sampling options to a command."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function

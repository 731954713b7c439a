"""What several commands share: JSON output, progress bars, number types with bounds."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
MAX_LAYERS = 10_000


def _gpu_layers(_: click.Context, __: click.Parameter, value: str) -> int | str:
    if value == "auto":
        return value
    if not value.isdecimal() or int(value) > MAX_LAYERS:
        raise click.BadParameter(f"{value!r} is neither auto nor a number of layers")
    return int(value)


gpu_option = click.option(
    "--gpu-layers",
    default="auto",
    show_default=True,
    metavar="auto|N",
    callback=_gpu_layers,
    help="Layers for a GPU, where the library has one.",
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Threads; by default the physical cores.",
)
context_option = click.option(
    "--context", type=click.IntRange(1, 1 << 22), metavar="N", help="Tokens of prompt and answer together."
)
draft_option = click.option(
    "--draft",
    metavar="MODEL",
    help="A smaller model with the same vocabulary, which guesses what comes next: faster, the same text.",
)
engine_option = click.option(
    "--reference-engine",
    "engine",
    type=click.Choice(["auto", "transformers", "gguf"]),
    default="auto",
    show_default=True,
    help="What computes the reference: auto is transformers where it is installed, else the unquantized GGUF.",
)


class Size(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A number of bytes as people write it: 500M, 1.5GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The bytes.

        Raises:
            click.BadParameter: not a size, or none at all.
        """
        from edgellm.errors import SpecError
        from edgellm.units import parse_bytes

        try:
            n_bytes = value if isinstance(value, int) else parse_bytes(value)
        except SpecError as err:
            self.fail(f"{err.message}; {err.hint}", param, ctx)
        if not 0 < n_bytes < 1 << 50:
            self.fail(f"{value} is no size of a file", param, ctx)
        return n_bytes


class NewPath(click.Path):  # type: ignore[type-arg,unused-ignore]
    """A path to be made. An empty one, as from a variable that is not set, would mean the directory we are in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, or a usage error."""
        if not str(value):
            self.fail("the name is empty", param, ctx)
        return super().convert(value, param, ctx)


class FiniteRange(click.FloatRange):
    """A float with bounds; NaN, which is within all of click's bounds, is within none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, or a usage error."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


min_cosine_option = click.option(
    "--min-cosine",
    type=FiniteRange(-1, 1),
    metavar="COSINE",
    help="Of a model that gives embeddings: fail if the cosine of one with the original is less than this.",
)


def printable(text: str) -> str:
    """Text in which control characters of foreign names are written out: they must not move the cursor or add lines."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def show(text: str, *, err: bool = False) -> None:
    """Lines of words for the terminal, on stdout or stderr, with control characters written out."""
    click.echo("\n".join(map(printable, text.split("\n"))), err=err)


def show_answer(text: str) -> None:
    """A piece of a model's answer; on a terminal its control characters are written out, since they could be commands."""
    if sys.stdout.isatty():
        text = "".join(
            c if c.isprintable() or c in "\n\t" or ord(c) > MAX_CONTROL else repr(c)[1:-1] for c in text
        )
    click.echo(text, nl=False)


MAX_CONTROL = 0x9F
ProgressCallback = Callable[[str, int, int], None]
_STAGES = {
    "download": "downloading",
    "convert": "converting",
    "verify": "comparing with the source",
    "hash": "checking hashes",
}


def print_json(value: Any) -> None:
    """A record, or plain data, as JSON on stdout."""
    from edgellm.formats.records import Record, to_json

    if isinstance(value, Record):
        click.echo(to_json(value).decode(), nl=False)
    else:
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))


@contextlib.contextmanager
def progress_bars() -> Iterator[ProgressCallback]:
    """A callback that draws one bar per stage on a terminal, and nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bars: dict[str, Any] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(_STAGES.get(stage, stage), total=total)
            progress.update(bars[stage], completed=done, total=total)

        yield update


@contextlib.contextmanager
def status_line() -> Iterator[Callable[[str], None]]:
    """A callback that shows what is being done: a spinner on a terminal, one line each elsewhere."""
    if not sys.stderr.isatty():
        yield lambda text: click.echo(text, err=True)
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield lambda text: status.update(text)

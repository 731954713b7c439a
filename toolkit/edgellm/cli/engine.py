"""Options of `run` and `chat` that say how the model is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from edgellm.cli.common import context_option, draft_option, gpu_option, threads_option

F = TypeVar("F", bound=Callable[..., Any])
MAX_LORA_SCALE = 100.0


class Engine(NamedTuple):
    """What the options come to.

    Attributes:
        settings: for `api.load`.  options: for each generation.
    """

    settings: dict[str, Any]
    options: dict[str, Any]


def _adapters(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, float]]:
    return [_adapter(value, ctx, param) for value in values]


def _adapter(value: str, ctx: click.Context, param: click.Parameter) -> tuple[str, float]:
    """PATH or PATH:SCALE; a path with a colon in its name is that path."""
    path, colon, after = value.rpartition(":")
    if not colon or Path(value).exists():
        return value, 1.0
    try:
        scale = float(after)
    except ValueError:
        return value, 1.0
    if not abs(scale) <= MAX_LORA_SCALE:
        raise click.BadParameter(
            f"the scale {after} is outside -{MAX_LORA_SCALE:g} to {MAX_LORA_SCALE:g}", ctx, param
        )
    return path, scale


_OPTIONS = (
    context_option,
    threads_option,
    gpu_option,
    click.option("--kv-type", metavar="TYPE", help="Type of the KV cache, for example F16 or Q8_0."),
    click.option(
        "--flash-attention",
        type=click.Choice(["auto", "on", "off"]),
        default="auto",
        show_default=True,
        help="A quantized KV cache needs it on.",
    ),
    click.option(
        "--lora",
        multiple=True,
        metavar="PATH[:SCALE]",
        callback=_adapters,
        help="A LoRA adapter, a GGUF file or a directory of `convert`; may be repeated.",
    ),
    draft_option,
    click.option("--isolate", is_flag=True, help="Keep native code in a child; its death is an error here."),
)


def engine_options(function: F) -> F:
    """Add all of them to a command."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def spare_threads() -> None:
    """Before numpy is imported: its linear algebra, which a generation does not use, would start a thread per core."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def engine_of(options: dict[str, Any]) -> Engine:
    """Take them out of a command's options.

    Raises:
        click.UsageError: options that contradict each other.
    """
    if options["draft"] is not None and options.get("no_speculation"):
        raise click.UsageError("--draft and --no-speculation together: a draft model only makes guesses")
    names = ("context", "threads", "gpu_layers", "kv_type", "flash_attention", "draft", "isolate")
    settings = {name: options.pop(name) for name in names}
    adapters = {f"lora{number}": adapter for number, adapter in enumerate(options.pop("lora"), 1)}
    settings["adapters"] = {name: path for name, (path, _) in adapters.items()}
    return Engine(settings, {"adapters": {name: scale for name, (_, scale) in adapters.items()}})

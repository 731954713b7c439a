"""Sliding windows: which layers have one, as config.json says it."""

from __future__ import annotations

import dataclasses

from edgellm.convert.architectures.hyper import Hyper
from edgellm.convert.source import HeaderValue
from edgellm.errors import BadInputError, UnsupportedError
from edgellm.formats.plain_json import Fields

LAYER_TYPES = ("full_attention", "sliding_attention")


def listed_layers(fields: Fields, n_layers: int) -> tuple[bool, ...] | None:
    """Whether each layer slides, by `layer_types`; None where that is not there.

    Raises:
        BadInputError: not one name for each layer.
        UnsupportedError: another kind of layer.
    """
    if "layer_types" not in fields:
        return None
    names = fields.values["layer_types"]
    if not isinstance(names, list) or len(names) != n_layers:
        raise fields.wrong("layer_types", names, f"a list of {n_layers} names, one for each layer")
    for name in names:
        if name not in LAYER_TYPES:
            raise UnsupportedError(
                f"{fields.where}: {fields.prefix}layer_types names {str(name)[:40]!r}; llama.cpp runs this family with "
                f"{' and '.join(LAYER_TYPES)}"
            )
    return tuple(name == LAYER_TYPES[1] for name in names)


def switched_window(fields: Fields, hyper: Hyper, first: str | None = None) -> Hyper:
    """The same with its window only if `layer_types` or `use_sliding_window` switches it on for some layer.

    Args:
        first: the key that says from which layer on the switch counts; None where it counts for all.

    Raises:
        BadInputError: layers slide, but the window has no size.
    """
    slides = listed_layers(fields, hyper.n_layers)
    if slides is None:
        first_layer = fields.integer(first, 0, 1 << 20, default=0) if first else 0
        on = fields.flag("use_sliding_window", default=False) and hyper.window is not None
        slides = tuple(on and i >= first_layer for i in range(hyper.n_layers))
    return with_windows(fields, hyper, slides)


def with_windows(fields: Fields, hyper: Hyper, slides: tuple[bool, ...]) -> Hyper:
    """The same with a window in the layers that slide.

    Raises:
        BadInputError: layers slide, but the window has no size.
    """
    if any(slides) and hyper.window is None:
        raise BadInputError(
            f"{fields.where}: {sum(slides)} layers slide, but {fields.prefix}sliding_window is null"
        )
    return dataclasses.replace(
        hyper, window=hyper.window if any(slides) else None, n_window_layers=sum(slides)
    )


def window_header(hyper: Hyper, slides: tuple[bool, ...], usual: tuple[bool, ...]) -> dict[str, HeaderValue]:
    """The window's keys without prefix, for a graph that slides; layers are listed where they are not the usual ones."""
    header = {}
    if hyper.window is not None:
        header["attention.sliding_window"] = HeaderValue("UINT32", hyper.window)
    if slides != usual:
        header["attention.sliding_window_pattern"] = HeaderValue("ARRAY", list(slides), "BOOL")
    return header


def every(period: int, n_layers: int) -> tuple[bool, ...]:
    """All layers slide but each `period`-th."""
    return tuple((i + 1) % period != 0 for i in range(n_layers))

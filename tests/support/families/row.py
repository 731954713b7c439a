"""A row: how to make a tiny model of one family, and the changes that must be noticed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgellm.convert.source import HeaderValue, Part, Source

Change = Callable[[Source], Source]


@dataclasses.dataclass(frozen=True)
class Row:
    """One tiny model.

    Attributes:
        model_class, config_class: of transformers.
        config: arguments of the configuration; small sizes, windows and original contexts below 256 tokens.
        controls: name -> a wrong conversion, whose divergence must be seen.
        saved: keys of config.json that are changed after saving, as old repositories have them; None removes one.
        renamed: (old, new) prefix of every tensor's name, as some repositories have them.
        theirs: GGUF keys and tensors in which llama.cpp's converter differs, with the reason.
        theirs_fails: why llama.cpp's converter cannot convert it, where it cannot.
        n_tokens: tokens compared; fewer than all where llama.cpp has no window and the context ends with it.
        pooling: an encoder, whose embeddings are compared, not its logits: what its pooling_mode_* is.
        within_share: how near its embeddings are, relative to their length.
        reference: a module of tests/support/references with both classes, where transformers has none.
    """

    name: str
    model_class: str
    config_class: str
    config: Mapping[str, Any]
    controls: Mapping[str, Change]
    saved: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    renamed: tuple[str, str] | None = None
    theirs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    theirs_fails: str | None = None
    n_tokens: int = 256
    pooling: str | None = None
    within_share: float = 1e-3
    reference: str | None = None

    @property
    def embeds(self) -> bool:
        """Whether it is an encoder."""
        return self.pooling is not None


def unordered(ending: str) -> Change:
    """Leave the rows of these tensors where Hugging Face has them."""

    def change(source: Source) -> Source:
        return _each(source, ending, lambda part: part._replace(order=None))

    return change


def untransposed(ending: str) -> Change:
    """Read these tensors, which are square, as if they were not stored transposed."""

    def change(source: Source) -> Source:
        return _each(source, ending, lambda part: part._replace(transposed=False))

    return change


def rolled(ending: str) -> Change:
    """Begin these tensors with the second half of their rows."""

    def roll(part: Part) -> Part:
        n_rows = part.n_rows
        return part._replace(order=lambda rows: (rows + n_rows // 2) % n_rows, group_rows=n_rows)

    def change(source: Source) -> Source:
        return _each(source, ending, roll)

    return change


def zeroed(ending: str) -> Change:
    """Replace the values of these tensors by zeros."""

    def change(source: Source) -> Source:
        def zeros(part: Part, columns: int) -> Part:
            return Part(np.zeros((part.n_rows, columns), dtype=np.float32), part.n_rows)

        return _replaced(
            source, ending, lambda t: t._replace(parts=tuple(zeros(p, t.n_columns) for p in t.parts))
        )

    return change


def not_added(ending: str) -> Change:
    """Leave out the constant that is added to these tensors."""

    def change(source: Source) -> Source:
        return _replaced(source, ending, lambda t: t._replace(plus=0.0))

    return change


def shifted(ending: str) -> Change:
    """Add a constant to the values of these tensors."""

    def change(source: Source) -> Source:
        return _replaced(source, ending, lambda t: t._replace(plus=t.plus + 1.0))

    return change


def backwards(ending: str) -> Change:
    """Stack the parts of these tensors in reverse: experts, or heads, in the wrong order."""

    def change(source: Source) -> Source:
        return _replaced(source, ending, lambda t: t._replace(parts=t.parts[::-1]))

    return change


def swapped(first: str, second: str) -> Change:
    """Give these two kinds of tensors, which have the same shape, each other's values."""

    def change(source: Source) -> Source:
        parts = {t.name: t.parts for t in source.tensors}

        def other(tensor: Any) -> Any:
            old, new = (first, second) if tensor.name.endswith(first) else (second, first)
            return tensor._replace(parts=parts[tensor.name.removesuffix(old) + new])

        return _replaced(_replaced(source, first, other), second, other)

    return change


def without(ending: str) -> Change:
    """Leave these tensors out."""

    def change(source: Source) -> Source:
        kept = tuple(t for t in source.tensors if not t.name.endswith(ending))
        assert len(kept) < len(source.tensors), ending
        return dataclasses.replace(source, tensors=kept)

    return change


def with_header(key: str, value: object) -> Change:
    """Write another value for a key that is there (without the architecture's prefix), of the same type."""

    def change(source: Source) -> Source:
        name = f"{source.shape.architecture}.{key}"
        entry: HeaderValue = source.header[name]
        assert entry.value != value, f"{name} is {value} already"
        return dataclasses.replace(source, header={**source.header, name: entry._replace(value=value)})

    return change


def without_header(*keys: str) -> Change:
    """Leave keys out (without the architecture's prefix)."""

    def change(source: Source) -> Source:
        names = {f"{source.shape.architecture}.{key}" for key in keys}
        assert names <= set(source.header), names
        return dataclasses.replace(
            source, header={key: value for key, value in source.header.items() if key not in names}
        )

    return change


def _each(source: Source, ending: str, change: Callable[[Part], Part]) -> Source:
    return _replaced(source, ending, lambda t: t._replace(parts=tuple(map(change, t.parts))))


def _replaced(source: Source, ending: str, change: Callable[[Any], Any]) -> Source:
    assert any(t.name.endswith(ending) for t in source.tensors), f"no tensor {ending}"
    tensors = tuple(change(t) if t.name.endswith(ending) else t for t in source.tensors)
    return dataclasses.replace(source, tensors=tensors)

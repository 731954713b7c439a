"""The environment in which a model's chat template runs: jinja2's immutable sandbox, with a budget.

The sandbox keeps a template away from Python. It does not keep it from looping or growing for ever, so each loop
turn, macro call, printed value, call and operator is counted here, and arguments that make one call huge are refused.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes, pass_context
from jinja2.ext import loopcontrols
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_STEPS = 1 << 19
_STEPS_PER_CALL = 4
MAX_CHARS = 1 << 26
MAX_ARGUMENT = 1 << 20
MAX_BITS = 4096
_WIDE_FORMAT = re.compile(r"\d{7}")
_TICK, _BOUND = "edgellm_tick", "edgellm_bound"


class Budget:
    """What one rendering may still do."""

    def __init__(self) -> None:
        self.steps, self.chars = MAX_STEPS, MAX_CHARS

    def spend(self, n_chars: int, n_steps: int) -> None:
        """Take steps that handle so many characters or items."""
        self.steps -= n_steps
        self.chars -= n_chars
        if self.steps < 0 or self.chars < 0:
            raise TemplateError("it computes too long or too much")


_budget: ContextVar[Budget | None] = ContextVar("budget", default=None)


@contextmanager
def budget() -> Iterator[None]:
    """What is rendered inside shares one new budget."""
    token = _budget.set(Budget())
    try:
        yield
    finally:
        _budget.reset(token)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox with Hugging Face's helpers and settings, and the budget."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        self.filters = {name: _bounded(function) for name, function in self.filters.items()}
        self.filters |= {"tojson": _bounded(_to_json), _TICK: _tick, _BOUND: _bound}
        self.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        del self.globals["lipsum"]

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """A call out of the template; parameter names as in jinja2, which passes keywords through."""
        method = getattr(__obj, "__wrapped__", __obj)  # str.format arrives wrapped
        _check_arguments(getattr(method, "__self__", None), *args, *kwargs.values())
        _spend(0, _STEPS_PER_CALL)
        return _bound(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operator of the template; its result is bounded before it is made."""
        if operator == "%" and isinstance(left, str):
            _check_arguments(left, *(right if isinstance(right, tuple) else (right,)))
        elif operator == "**":
            if not _small(left) or not _small(right) or _bits(left) * abs(right) > MAX_BITS:
                raise TemplateError("it raises a number to a huge power")
        elif operator == "*":
            for items, count in ((left, right), (right, left)):
                if isinstance(items, Sized) and isinstance(count, int):
                    _spend(len(items) * max(count, 0))
        return _bound(super().call_binop(context, operator, left, right))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        found: list[Any] = list(tree.find_all((nodes.Output, nodes.Concat)))
        for output in found:
            output.nodes = [
                node if isinstance(node, nodes.TemplateData) else _filter(node, _BOUND, node.lineno)
                for node in output.nodes
            ]
        found = list(tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)))
        for block in found:
            n_chars = sum(len(data.data) for data in block.find_all(nodes.TemplateData))
            tick = _filter(nodes.Const(n_chars), _TICK, block.lineno)
            block.body.insert(0, nodes.ExprStmt(tick, lineno=block.lineno))
        tree.set_environment(self)
        return tree


def _filter(node: nodes.Expr, name: str, lineno: int) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=lineno)


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        _check_arguments(None, *args, *kwargs.values())
        return _bound(function(*args, **kwargs))

    return checked


def _bound(value: Any) -> Any:
    """The value, once its size is paid for."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > MAX_BITS:
        raise TemplateError(f"it makes a number of {value.bit_length()} bits")
    _spend(len(value) if isinstance(value, str | list | tuple | dict | set) else 0)
    return value


@pass_context
def _tick(_: Context, n_chars: int) -> str:
    _spend(n_chars)
    return ""


def _spend(n_chars: int, n_steps: int = 1) -> None:
    left = _budget.get()
    if left is not None:
        left.spend(n_chars, n_steps)
    elif n_chars > MAX_CHARS:  # while compiling, where constants are folded
        raise TemplateError("it makes a huge constant")


def _check_arguments(subject: Any, *arguments: Any) -> None:
    for value in arguments:
        if isinstance(value, int | float) and abs(value) > MAX_ARGUMENT:
            raise TemplateError(f"it calls something with the number {value:.3g}")
    for text in (subject, *arguments[:1]):
        if isinstance(text, str) and ("%" in text or "{" in text) and _WIDE_FORMAT.search(text):
            raise TemplateError("it uses a format with a huge width")


def _small(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= 1 << 64


def _bits(value: float) -> int:
    return max(1, int(abs(value)).bit_length())


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _now(pattern: str) -> str:
    import datetime

    return datetime.datetime.now().astimezone().strftime(pattern)


def _refuse(message: object) -> NoReturn:
    raise TemplateError(str(message)[:300])

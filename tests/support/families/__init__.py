"""Tiny random-weight models of every family, one row each, made by transformers."""

from __future__ import annotations

from tests.support.families import llama
from tests.support.families.row import Row

_MODULES = (llama,)
ROWS: dict[str, Row] = {row.name: row for module in _MODULES for row in module.ROWS}

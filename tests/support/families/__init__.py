"""Tiny random-weight models of every family, one row each, made by transformers."""

from __future__ import annotations

from tests.support.families import layer_norm, llama, phi3
from tests.support.families.row import Row

_MODULES = (llama, layer_norm, phi3)
ROWS: dict[str, Row] = {row.name: row for module in _MODULES for row in module.ROWS}

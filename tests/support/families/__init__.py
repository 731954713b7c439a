"""Tiny random-weight models of every family, one row each, made by transformers."""

from __future__ import annotations

from tests.support.families import bert, gemma, layer_norm, llama, llama_like, mistral, phi3, qwen
from tests.support.families.row import Row

_MODULES = (llama, bert, gemma, layer_norm, llama_like, mistral, phi3, qwen)
ROWS: dict[str, Row] = {row.name: row for module in _MODULES for row in module.ROWS}

"""Fixtures for the tests of file formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

WriteBytes = Callable[[bytes], Path]


@pytest.fixture
def write_gguf(tmp_path: Path) -> WriteBytes:
    """Writes bytes as `model.gguf` and gives its path."""

    def write(content: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return path

    return write

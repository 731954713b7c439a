"""A header is read once for opening a model and loading it, and again where the file is another."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgellm.errors import BadInputError, MissingInputError
from edgellm.formats import gguf
from edgellm.formats.gguf_checked import read_checked
from tests.support.gguf_files import gguf_bytes, key


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Each time a file is read."""
    found: list[Path] = []
    plain = gguf.read_gguf

    def read(path: Path) -> gguf.GGUFFile:
        found.append(path)
        return plain(path)

    monkeypatch.setattr(gguf, "read_gguf", read)
    return found


def write(path: Path, name: str = "a") -> Path:
    path.write_bytes(gguf_bytes([key("general.architecture", "STRING", name)]))
    return path


def test_who_opens_and_then_loads_reads_once(reads: list[Path], tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf")
    first = read_checked(path, keep=True)
    assert read_checked(path) is first
    assert len(reads) == 1
    assert read_checked(path) is not first
    assert read_checked(path) is not first
    assert len(reads) == 3


def test_another_file_or_a_changed_one_is_read(reads: list[Path], tmp_path: Path) -> None:
    path, other = write(tmp_path / "a.gguf"), write(tmp_path / "b.gguf")
    read_checked(path, keep=True)
    assert read_checked(other).path == other
    read_checked(path, keep=True)
    write(path, "b")
    assert read_checked(path).get("general.architecture", str, "") == "b"
    assert len(reads) == 4


def test_a_file_replaced_by_a_broken_one_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf")
    read_checked(path, keep=True)
    path.write_bytes(b"GGUF")
    with pytest.raises(BadInputError):
        read_checked(path)
    path.unlink()
    with pytest.raises(MissingInputError):
        read_checked(path)

"""A model file that is cut or removed before, while and after it is loaded: an error with its reason, and no loop of crashes."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgellm import api
from edgellm.api import models, quarantine
from edgellm.errors import BackendError, BadInputError, MissingInputError, NativeCrash
from edgellm.formats.gguf import GGUFFile
from edgellm.runtime import isolate
from edgellm.runtime.isolate import IsolatedEngine
from edgellm.runtime.model import Model

STORY = "Once upon a time, in a village by the sea, there lived"


@pytest.fixture
def path(tmp_path: Path, smollm2_gguf: Path) -> Path:
    return Path(shutil.copyfile(smollm2_gguf, tmp_path / "model.gguf"))


@pytest.fixture
def model(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    monkeypatch.setattr(isolate, "FIRST_PAUSE_S", 0.01)
    with api.load(path, context=512, threads=1, isolate=True) as opened:
        yield opened


def engine_of(model: Model) -> IsolatedEngine:
    assert isinstance(model._engine, IsolatedEngine)
    return model._engine


def cut(path: Path) -> None:
    """Take away the second half."""
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
        os.fsync(file.fileno())


def test_cut_while_it_generates(model: Model, path: Path) -> None:
    stream = model.stream(STORY, temperature=0, overflow="shift")
    next(stream)
    cut(path)
    with pytest.raises(NativeCrash, match="died of SIGBUS") as caught:
        list(stream)
    assert caught.value.signal_name == "SIGBUS"
    for _ in range(quarantine.MAX_CRASHES + 1):  # as often as would put a file into quarantine
        with pytest.raises(BadInputError, match=r"ends at byte \d+, the file has \d+: truncated\?"):
            model.generate(STORY, max_tokens=1)
    with pytest.raises(BadInputError, match="truncated"):
        api.load(path)


def test_removed_while_it_generates(model: Model, path: Path) -> None:
    stream = model.stream(STORY, max_tokens=30, temperature=0)
    next(stream)
    path.unlink()
    assert len(list(stream)) > 5
    assert model.generate(STORY, max_tokens=3).token_ids
    pid = engine_of(model).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises((NativeCrash, MissingInputError)):
        model.generate(STORY, max_tokens=300, overflow="shift")
    for _ in range(2):
        with pytest.raises(MissingInputError):
            model.generate(STORY, max_tokens=1)


def cut_once_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is whole while it is checked, and short when it is loaded."""
    whole = models.read_model

    def read_and_cut(place: Path) -> GGUFFile:
        file = whole(place)
        cut(place)
        return file

    monkeypatch.setattr(models, "read_model", read_and_cut)


def test_cut_before_it_is_loaded(path: Path) -> None:
    cut(path)
    for isolated in (False, True):
        with pytest.raises(BadInputError, match="truncated"):
            api.load(path, isolate=isolated)


def test_cut_between_the_check_and_the_load(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_once_read(monkeypatch)
    with pytest.raises(BackendError, match="not within the file bounds"):
        api.load(path, check=False)


def test_cut_while_the_child_tries_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_once_read(monkeypatch)
    with pytest.raises(BadInputError, match="truncated"):
        api.load(path)

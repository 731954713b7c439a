"""A file that crashes native code three times is not loaded again until someone says so."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from edgellm import api, artifact
from edgellm.api import first_load, loading, quarantine
from edgellm.errors import BackendError, NativeCrash
from edgellm.runtime import isolate
from tests.support import tiny_lora


def crash(signal_name: str | None = "SIGSEGV") -> NativeCrash:
    return NativeCrash("child: died", signal_name=signal_name)


def test_three_crashes_are_too_many_and_can_be_forgiven(tmp_path: Path) -> None:
    bad, twin, other = tmp_path / "bad.gguf", tmp_path / "copy.gguf", tmp_path / "other.gguf"
    bad.write_bytes(b"bad bytes")
    twin.write_bytes(b"bad bytes")
    other.write_bytes(b"not so bad"[:9])
    for _ in range(3):
        quarantine.check(bad)
        quarantine.note(bad, crash())
    for path in (bad, twin):
        with pytest.raises(BackendError, match=r"crashed 3 times and is quarantined.*SIGSEGV") as caught:
            quarantine.check(path)
        assert "edgellm doctor --unquarantine" in (caught.value.hint or "")
    quarantine.check(other)
    found = quarantine.release(quarantine.records()[0].sha256[:12])
    assert [record.n_crashes for record in found] == [3]
    quarantine.check(bad)
    assert quarantine.records() == []


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGILL", None])
def test_a_kill_from_outside_is_not_held_against_the_file(tmp_path: Path, name: str | None) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"x")
    for _ in range(4):
        quarantine.note(path, crash(name))
    quarantine.check(path)


def test_damaged_records_and_files_that_are_gone_are_no_errors(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"x")
    quarantine.note(path, crash())
    record = next(quarantine.directory().iterdir())
    record.write_bytes(b"{")
    assert quarantine.records() == []
    quarantine.note(tmp_path / "gone", crash())
    quarantine.check(tmp_path / "gone")
    quarantine.note(path, crash())
    assert quarantine.records()[0].n_crashes == 1


def test_a_file_is_hashed_once_while_it_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    plain = artifact.sha256_file
    monkeypatch.setattr(artifact, "sha256_file", lambda path: (hashed.append(path), plain(path))[1])
    path = tmp_path / "model.gguf"
    path.write_bytes(b"some bytes")
    for _ in range(3):
        quarantine.note(path, crash())
    with pytest.raises(BackendError):
        quarantine.check(path)
    assert len(hashed) == 1
    path.write_bytes(b"other byte")
    os.utime(path, ns=(1, 1))
    quarantine.check(path)
    assert len(hashed) == 2


def test_three_crashes_of_a_loaded_model_quarantine_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolate, "FIRST_PAUSE_S", 0.01)
    base, _ = tiny_lora.write(tmp_path)
    with api.load(base, isolate=True, context=64, threads=1) as model:
        expected = model.generate("ab", max_tokens=3, temperature=0).token_ids
        for _ in range(3):
            stream = model.stream("ab", overflow="shift", temperature=0)
            os.kill(model._engine.pid, signal.SIGSEGV)  # type: ignore[attr-defined]
            with pytest.raises(NativeCrash, match="SIGSEGV"):
                list(stream)
        for load in (
            lambda: model.generate("ab"),
            lambda: api.load(base),
            lambda: api.load(base, isolate=True),
        ):
            with pytest.raises(BackendError, match="quarantined"):
                load()
        assert len(quarantine.release(quarantine.records()[0].sha256[:12])) == 1
        assert model.generate("ab", max_tokens=3, temperature=0).token_ids == expected


def test_crashes_with_an_adapter_leave_a_model_usable_that_was_sound_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolate, "FIRST_PAUSE_S", 0.01)
    base, adapters = tiny_lora.write(tmp_path)
    first_load.note_sound(base)
    red = {"red": str(adapters["red"])}
    with api.load(base, isolate=True, context=64, threads=1, adapters=red) as model:
        for _ in range(3):
            stream = model.stream("ab", overflow="shift", temperature=0)
            os.kill(model._engine.pid, signal.SIGSEGV)  # type: ignore[attr-defined]
            with pytest.raises(NativeCrash, match="SIGSEGV"):
                list(stream)
        with pytest.raises(BackendError, match=r"red\.gguf: crashed 3 times and is quarantined"):
            model.generate("ab")
    for is_isolated in (True, False):
        with pytest.raises(BackendError, match=r"red\.gguf: crashed 3 times and is quarantined"):
            api.load(base, isolate=is_isolated, context=64, adapters=red)
    with api.load(base, context=64, threads=1) as model:
        assert model.generate("ab", max_tokens=1).token_ids


def test_the_model_is_blamed_unless_it_is_known_to_be_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_load, "_of_this_process", set())
    model, draft, adapter = (tmp_path / f"{name}.gguf" for name in ("model", "draft", "adapter"))
    for path in (model, draft, adapter):
        path.write_bytes(b"x")
    assert loading.suspects(model, draft, [adapter]) == [model]
    first_load.note_sound(model)
    assert loading.suspects(model, None, []) == [model]
    assert loading.suspects(model, draft, [adapter]) == [draft, adapter]
    first_load.note_sound(draft)
    assert loading.suspects(model, draft, [adapter]) == [adapter]
    assert loading.suspects(model, draft, []) == [draft]

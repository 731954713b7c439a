"""A file from elsewhere is loaded in a child first, once; what it does to that child is an error in this process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgellm import api, process
from edgellm.api import first_load, launch, quarantine
from edgellm.errors import BackendError, BadInputError, EdgeLLMError, NativeCrash, ResourceError
from edgellm.native.llama_options import LlamaOptions
from tests.support.cli import EDGELLM
from tests.support.gguf_files import write_model
from tests.support.tiny_gguf import write_tiny_gguf

OPTIONS = LlamaOptions(n_threads=1)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that no process has loaded yet."""
    monkeypatch.setattr(first_load, "_of_this_process", set())
    return write_tiny_gguf(tmp_path / "model.gguf", n_layers=1)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What children were asked to load; they only say that they did."""
    asked: list[dict[str, Any]] = []

    def answer(_: str, spec: dict[str, Any], **__: object) -> dict[str, Any]:
        asked.append(spec)
        return {"n_tokens": 1}

    monkeypatch.setattr(launch, "launch", answer)
    return asked


def becomes(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Children run this program instead."""
    monkeypatch.setattr(process, "python_argv", lambda _: [sys.executable, "-c", code])


def test_the_child_loads_tokenizes_and_generates(model: Path) -> None:
    found = launch.launch(
        "_first_load",
        {"model": str(model), "adapters": [], "options": {"n_threads": 1}},
        timeout_s=60,
        memory_limit_bytes=first_load._limit_bytes(model.stat().st_size),
    )
    assert found["n_tokens"] > 1000


def test_a_file_is_tried_once_and_again_when_it_or_the_library_changes(
    model: Path, children: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_in_a_new_process() -> None:
        first_load._of_this_process.clear()
        with api.load(model, context=64, threads=1) as opened:
            opened.generate("ab", max_tokens=1)

    load_in_a_new_process()
    assert [spec["model"] for spec in children] == [str(model)]
    load_in_a_new_process()
    assert len(children) == 1
    os.utime(model, ns=(1, 1))
    load_in_a_new_process()
    assert len(children) == 2
    monkeypatch.setattr(first_load, "_library_identity", lambda: "another library")
    load_in_a_new_process()
    assert len(children) == 3
    twin = model.with_name("twin.gguf")
    twin.write_bytes(model.read_bytes())
    with api.load(twin, context=64, threads=1):
        assert len(children) == 4
    with api.load(model, context=64, threads=1, check=False), api.load(twin, context=64, threads=1):
        assert len(children) == 4


def test_an_unwritable_cache_means_once_in_each_process(
    model: Path, children: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELLM_CACHE", "/dev/null/nothing")
    for _ in range(2):
        first_load.check(model, OPTIONS)
    assert len(children) == 1
    first_load._of_this_process.clear()
    first_load.check(model, OPTIONS)
    assert len(children) == 2


def test_the_embedded_model_and_what_was_just_run_are_not_tried(
    model: Path, children: list[dict[str, Any]], smollm2_gguf: Path
) -> None:
    first_load.check(smollm2_gguf, OPTIONS)
    first_load.note_sound(model)
    first_load._of_this_process.clear()
    first_load.check(model, OPTIONS)
    assert children == []


def test_an_adapter_is_tried_with_its_model(
    model: Path, children: list[dict[str, Any]], tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter.gguf"
    adapter.write_bytes(b"x")
    for adapters in ([], [adapter], [adapter], []):
        first_load.check(model, OPTIONS, adapters)
    assert [spec["adapters"] for spec in children] == [[], [str(adapter)]]


def test_a_crash_with_an_adapter_is_held_against_the_adapter_alone(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = tmp_path / "good.gguf", tmp_path / "bad.gguf"
    good.write_bytes(b"x")
    bad.write_bytes(b"yy")

    def answer(_: str, spec: dict[str, Any], **__: object) -> dict[str, Any]:
        if str(bad) in spec["adapters"]:
            raise NativeCrash("child: died of SIGSEGV", signal_name="SIGSEGV")
        return {"n_tokens": 1}

    monkeypatch.setattr(launch, "launch", answer)
    for _ in range(quarantine.MAX_CRASHES):
        with pytest.raises(NativeCrash, match=r"bad\.gguf: tried in a child first, with model\.gguf"):
            first_load.check(model, OPTIONS, [good, bad])
    assert [(record.n_bytes, record.n_crashes) for record in quarantine.records()] == [(2, 3)]
    quarantine.check(model)
    quarantine.check(good)
    first_load.check(model, OPTIONS, [good])


def test_a_malformed_file_reaches_no_child(tmp_path: Path, children: list[dict[str, Any]]) -> None:
    path = write_model(tmp_path / "model.gguf", metadata={"tokenizer.ggml.merges": ("ARRAY:STRING", ["x"])})
    with pytest.raises(BadInputError, match="merge 0"):
        api.load(path)
    assert children == []


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS"])
def test_a_crash_is_named_and_the_third_is_the_last(
    model: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    becomes(monkeypatch, f"import os, signal; os.kill(os.getpid(), signal.{name})")
    for _ in range(quarantine.MAX_CRASHES):
        with pytest.raises(
            NativeCrash, match=rf"model\.gguf: tried in a child first.*died of {name}"
        ) as caught:
            api.load(model, context=64)
        assert caught.value.signal_name == name
    with pytest.raises(BackendError, match="quarantined"):
        api.load(model, context=64)
    assert first_load._of_this_process == set()


def test_an_illegal_instruction_is_not_held_against_the_file(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    becomes(monkeypatch, "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    for _ in range(quarantine.MAX_CRASHES + 1):
        with pytest.raises(NativeCrash) as caught:
            api.load(model, context=64)
    assert "another CPU" in str(caught.value.hint)


def test_a_hang_is_ended_and_counted(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    becomes(monkeypatch, "import time; time.sleep(600)")
    monkeypatch.setattr(first_load, "LEAST_TIMEOUT_S", 0.2)
    monkeypatch.setattr(first_load, "LEAST_BYTES_PER_S", 1e12)
    with pytest.raises(NativeCrash, match=r"which hung: .* not done after 0\.2 s"):
        api.load(model, context=64)
    assert [record.n_crashes for record in quarantine.records()] == [1]


def test_a_child_that_takes_too_much_memory_is_a_resource_error(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    becomes(monkeypatch, "bytearray(1 << 40)")
    with pytest.raises(ResourceError, match="ran out of memory"):
        api.load(model, context=64)
    assert quarantine.records() == []


def test_a_refusal_of_the_library_arrives_as_it_is(model: Path, tmp_path: Path) -> None:
    """The header is sound, and llama.cpp misses a tensor."""
    path = write_model(tmp_path / "half.gguf")
    with pytest.raises(BackendError, match=r"llama\.cpp cannot load it") as caught:
        api.load(path)
    assert type(caught.value) is BackendError


def test_a_file_that_changes_meanwhile_is_not_taken(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def touch(*_: object, **__: object) -> dict[str, Any]:
        os.utime(model, ns=(1, 1))
        return {}

    monkeypatch.setattr(launch, "launch", touch)
    with pytest.raises(BadInputError, match="was changed while it was checked"):
        first_load.check(model, OPTIONS)


def test_what_is_remembered_is_bounded_and_may_be_damaged(
    model: Path, children: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_load, "MAX_REMEMBERED", 20)
    for number in range(30):
        first_load._remember(f"{number:064x}")
    assert first_load._remembered() == [f"{number:064x}" for number in range(10, 30)]
    for content in (b"", b"{", b'{"identities": 3}', b"[" * 10_000, b"x" * (1 << 20)):
        first_load.place().write_bytes(content)
        first_load._of_this_process.clear()
        children.clear()
        first_load.check(model, OPTIONS)
        assert len(children) == 1
        assert len(first_load._remembered()) == 1


def test_as_many_as_are_remembered_fit_into_what_is_read() -> None:
    from edgellm.formats.records import to_json

    whole = first_load.Sound(identities=["0" * 64] * first_load.MAX_REMEMBERED)
    assert len(to_json(whole)) < first_load.MAX_CACHE_BYTES


def test_a_library_that_kills_whoever_loads_it_is_one_line(
    model: Path, tmp_path: Path, run_with: Callable[[Path], subprocess.CompletedProcess[str]]
) -> None:
    libraries = tmp_path / "lib"
    libraries.mkdir()
    source = tmp_path / "dies.c"
    source.write_text(
        "#include <signal.h>\n__attribute__((constructor)) static void die(void) { raise(SIGSEGV); }"
    )
    for name in ("libggml-base.so", "libggml.so", "libllama.so"):
        subprocess.run(["cc", "-shared", "-fPIC", source, "-o", libraries / name], check=True)
    done = run_with(libraries)
    assert done.returncode == EdgeLLMError.exit_code
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[0].startswith("error: ")
    assert "died of SIGSEGV" in done.stderr.splitlines()[0]


@pytest.fixture
def run_with(model: Path) -> Callable[[Path], subprocess.CompletedProcess[str]]:
    """`edgellm run` of the model with other native libraries."""

    def run(libraries: Path) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "LLAMA_CPP_LIB_PATH": str(libraries)}
        return subprocess.run(
            [*EDGELLM, "run", str(model), "ab", "--max-tokens", "1"], env=env, capture_output=True, text=True, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    return run

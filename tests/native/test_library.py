"""Finding the native libraries: what is absent is said in one line with what to do, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgellm import machine
from edgellm.errors import BackendUnavailable
from edgellm.native import library

LOAD = """
import sys
from pathlib import Path
from edgellm.errors import BackendUnavailable
from edgellm.native.llama import LlamaModel, LlamaOptions
try:
    LlamaModel(Path(sys.argv[1]), LlamaOptions(n_threads=1), vocab_only=True)
except BackendUnavailable as err:
    print(err.message)
    print(err.hint)
else:
    print("loaded")
"""


def load_in_a_child(model: Path, lib_path: Path | None) -> list[str]:
    env = {k: v for k, v in os.environ.items() if k != "LLAMA_CPP_LIB_PATH"}
    env |= {"LLAMA_CPP_LIB_PATH": str(lib_path)} if lib_path else {}
    argv = [sys.executable, "-c", LOAD, str(model)]
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_installed_libraries_load(smollm2_gguf: Path) -> None:
    assert load_in_a_child(smollm2_gguf, None) == ["loaded"]


def test_a_path_to_nowhere_is_named_with_what_to_do(smollm2_gguf: Path, tmp_path: Path) -> None:
    message, hint = load_in_a_child(smollm2_gguf, tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in message
    assert "LLAMA_CPP_LIB_PATH" in hint


def test_an_empty_directory_is_named_with_what_to_do(smollm2_gguf: Path, tmp_path: Path) -> None:
    message, hint = load_in_a_child(smollm2_gguf, tmp_path)
    assert "does not load" in message
    assert "LLAMA_CPP_LIB_PATH" in hint


def test_a_library_that_is_no_library_is_named(
    smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("libllama.so", "libggml-base.so", "libggml.so"):
        (tmp_path / name).write_bytes(b"not a library")
    assert "does not load" in load_in_a_child(smollm2_gguf, tmp_path)[0]
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    with pytest.raises(BackendUnavailable, match="does not load"):
        library.load.__wrapped__("ggml-base")
    with pytest.raises(BackendUnavailable, match="no library 'nothing'"):
        library.load.__wrapped__("nothing")


def test_the_build_record_is_read_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    assert library.build_record() is None
    record = tmp_path / "edgellm-build.json"
    record.write_text(json.dumps({"flags": ["-mno-amx"]}))
    assert library.build_record() == {"flags": ["-mno-amx"]}
    for broken in ("", "[1]", "{"):
        record.write_text(broken)
        assert library.build_record() is None


def test_no_build_record_where_there_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path / "nowhere"))
    assert library.build_record() is None


def test_finding_the_libraries_imports_nothing_native() -> None:
    code = "import sys; from edgellm.native import library; library.library_directory(); print('llama_cpp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("record", "missing"),
    [
        ({"cpu": {"flags": "fpu avx2 fma avx512f avx512_vnni"}, "flags": []}, "AVX512F, AVX512_VNNI"),
        ({"cpu": {"flags": "avx2 amx_tile amx_int8"}, "flags": ["-mno-amx-tile", "-mno-amx-int8"]}, None),
        ({"cpu": {"flags": "avx2 amx_tile"}, "flags": []}, "AMX_TILE"),
        ({"cpu": {"flags": "avx2"}}, None),
        ({"cpu": {"Features": "fp asimd asimddp"}}, "NEON, DOTPROD"),
        ({"cpu": "avx512f"}, None),
        ({}, None),
    ],
)
def test_a_library_built_for_more_than_this_cpu_has_is_refused_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: dict[str, object], missing: str | None
) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    (tmp_path / "edgellm-build.json").write_text(json.dumps(record))
    monkeypatch.setattr(machine, "isa", lambda: ["AVX", "AVX2", "FMA"])
    if missing is None:
        library.check_cpu.__wrapped__()
        return
    for enter in (library.check_cpu.__wrapped__, lambda: library.load.__wrapped__("ggml-base")):
        library.check_cpu.cache_clear()
        with pytest.raises(
            BackendUnavailable, match=f"built for a CPU with {missing}, which .* lacks"
        ) as caught:
            enter()
        assert caught.value.exit_code == 69
    monkeypatch.setattr(machine, "isa", list)  # unknown
    library.check_cpu.__wrapped__()

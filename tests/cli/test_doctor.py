"""The doctor: a decode that works is proven, one that dies is explained, and nothing of it is suffered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgellm import doctor, machine
from edgellm.errors import BackendUnavailable, NativeCrash
from tests.support.cli import edgellm, succeed


def test_a_healthy_installation_is_ok_in_every_needed_line() -> None:
    done = edgellm("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("ok       decode: llama.cpp ")
    assert "Paris" in lines[0]
    for subject in ("machine", "instruction sets", "native build", "meter rapl", "meter battery"):
        assert any(f" {subject}: " in line for line in lines)
    assert not any(line.startswith("broken") for line in lines)


def test_decode_only_is_one_finding_and_json_is_a_list() -> None:
    (finding,) = json.loads(succeed("doctor", "--decode-only", "--json"))
    assert (finding["subject"], finding["state"]) == ("decode", "ok")


@pytest.mark.parametrize("place", ["empty", "nowhere"])
def test_a_missing_library_is_broken_with_a_remedy_and_exit_69(tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    done = edgellm("doctor", LLAMA_CPP_LIB_PATH=str(tmp_path / place))
    assert done.returncode == 69
    assert done.stdout.startswith("broken   decode: ")
    assert "LLAMA_CPP_LIB_PATH" in done.stdout.splitlines()[1]
    assert "instruction sets: " in done.stdout
    assert done.stderr.startswith("error: not working: decode")
    findings = json.loads(edgellm("doctor", "--json", LLAMA_CPP_LIB_PATH=str(tmp_path / place)).stdout)
    assert findings[0]["state"] == "broken"
    assert findings[0]["remedy"]


def test_a_model_that_is_not_there_is_broken(tmp_path: Path) -> None:
    done = edgellm("doctor", "--decode-only", "--model", str(tmp_path / "nothing"))
    assert done.returncode == 69
    assert "nothing" in done.stdout


def crash(signal_name: str | None) -> Any:
    def prove() -> dict[str, Any]:
        raise NativeCrash(f"edgellm _decode: died of {signal_name}", signal_name=signal_name)

    return prove


def test_an_illegal_instruction_names_another_cpu_as_the_likely_cause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "isa", lambda: ["AVX2"])
    finding = doctor.check_decode(crash("SIGILL"))
    assert finding.state == "broken"
    assert "SIGILL" in finding.found
    assert "another CPU" in finding.found
    assert "scripts/setup" in finding.remedy


def test_a_crash_on_a_cpu_with_amx_names_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    detected = machine.isa(Path(__file__).parents[1] / "data" / "machines" / "amd-laptop")
    assert "AMX" not in " ".join(detected).upper()
    monkeypatch.setattr(machine, "isa", lambda: ["AVX2", "AMX_TILE"])
    for signal_name in ("SIGILL", "SIGSEGV"):
        assert "AMX" in doctor.check_decode(crash(signal_name)).found


def test_amx_is_called_what_the_doctor_looks_for(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    proc.mkdir()
    flags = "fpu sse3 avx avx2 fma f16c amx_bf16 amx_tile amx_int8"
    (proc / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: {flags}\n")
    assert {"AMX_TILE", "AMX_INT8"} & set(machine.isa(tmp_path))


@pytest.mark.parametrize("signal_name", ["SIGABRT", "SIGKILL", None])
def test_another_death_is_not_blamed_on_the_cpu(signal_name: str | None) -> None:
    finding = doctor.check_decode(crash(signal_name))
    assert finding.state == "broken"
    assert "CPU" not in finding.found


def test_an_error_of_ours_keeps_its_hint() -> None:
    def prove() -> dict[str, Any]:
        raise BackendUnavailable("no library", hint="install it")

    finding = doctor.check_decode(prove)
    assert (finding.state, finding.found, finding.remedy) == ("broken", "no library", "install it")

"""The doctor: what works, what does not, the likely cause and the repair."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgellm import doctor, machine
from edgellm.api import quarantine
from edgellm.errors import BackendUnavailable, EdgeLLMError, NativeCrash
from tests.support.cli import edgellm, refused, succeed


def raising(error: EdgeLLMError) -> Callable[[], dict[str, Any]]:
    def prove() -> dict[str, Any]:
        raise error

    return prove


@pytest.mark.usefixtures("one_processor")
def test_a_decode_is_proven_and_the_machine_described() -> None:
    findings = json.loads(succeed("doctor", "--json"))
    assert all(set(finding) == {"subject", "state", "found", "remedy"} for finding in findings)
    by_subject = {finding["subject"]: finding for finding in findings}
    decode = by_subject["decode"]
    assert decode["state"] == "ok"
    assert "llama.cpp" in decode["found"]
    assert "Paris" in decode["found"]
    assert {"machine", "instruction sets", "native build", "free memory"} <= set(by_subject)
    assert any(subject.startswith("meter ") for subject in by_subject)


@pytest.mark.usefixtures("one_processor")
def test_the_page_has_a_line_per_finding_and_decode_only_one() -> None:
    (line,) = succeed("doctor", "--decode-only").splitlines()
    assert line.startswith("ok       decode: llama.cpp")


def test_a_library_that_is_not_there_is_broken_with_its_remedy(tmp_path: Path) -> None:
    done = edgellm("doctor", LLAMA_CPP_LIB_PATH=str(tmp_path))
    assert done.returncode == 69
    first, remedy, *others = done.stdout.splitlines()
    assert first.startswith("broken   decode: ")
    assert remedy.strip().startswith("do: unset LLAMA_CPP_LIB_PATH")
    assert any(line.startswith("ok       machine: ") for line in others)
    assert done.stderr.splitlines()[0] == "error: not working: decode"
    assert "Traceback" not in done.stdout + done.stderr


def test_broken_with_json_is_a_list_on_stdout_and_an_error_on_stderr(tmp_path: Path) -> None:
    done = edgellm("doctor", "--decode-only", "--json", LLAMA_CPP_LIB_PATH=str(tmp_path))
    assert done.returncode == 69
    (finding,) = json.loads(done.stdout)
    assert finding["state"] == "broken"
    assert finding["remedy"]
    assert json.loads(done.stderr)["error"]["exit_code"] == 69


def test_a_model_that_is_not_there_is_broken_not_a_crash(tmp_path: Path) -> None:
    done = edgellm("doctor", "--decode-only", "--model", str(tmp_path / "nothing.gguf"))
    assert done.returncode == 69
    assert "nothing.gguf" in done.stdout


@pytest.mark.parametrize("signal_name", ["SIGILL", "SIGSEGV"])
@pytest.mark.parametrize(
    ("isa", "cause"),
    [({"AVX2"}, "built for another CPU"), ({"AVX2", "AMX_TILE"}, "AMX"), ({"AMX_INT8"}, "AMX")],
)
def test_a_crash_names_the_likely_cause(
    monkeypatch: pytest.MonkeyPatch, signal_name: str, isa: set[str], cause: str
) -> None:
    monkeypatch.setattr(machine, "isa", lambda: isa)
    crash = NativeCrash(f"edgellm _decode: died of {signal_name}", signal_name=signal_name)
    finding = doctor.check_decode(raising(crash))
    assert finding.state == "broken"
    assert signal_name in finding.found
    assert cause in finding.found
    assert "scripts/setup" in finding.remedy


@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGABRT", None])
def test_another_crash_is_not_blamed_on_the_build(signal_name: str | None) -> None:
    finding = doctor.check_decode(raising(NativeCrash("edgellm _decode: died", signal_name=signal_name)))
    assert finding.state == "broken"
    assert finding.found == "edgellm _decode: died"


def test_an_error_of_ours_brings_its_own_hint_as_the_remedy() -> None:
    finding = doctor.check_decode(raising(BackendUnavailable("no library", hint="build one")))
    assert (finding.state, finding.found, finding.remedy) == ("broken", "no library", "build one")
    assert doctor.check_decode(raising(BackendUnavailable("no library"))).remedy == ""


def test_a_quarantined_file_is_shown_and_released(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF no more")
    for _ in range(3):
        quarantine.note(path, NativeCrash("child: died", signal_name="SIGABRT"))
    name = quarantine.records()[0].sha256[:12]
    assert f"model {name}: crashed 3 times" in succeed("doctor")
    assert succeed("doctor", "--unquarantine", name) == f"{name}: 3 crashes forgotten\n"
    error, hint = refused(66, "doctor", "--unquarantine", name)
    assert name in error
    assert "none has crashed" in hint

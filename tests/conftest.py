"""Settings of the whole suite, and the models that several tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from edgellm import api
from tests.support import smollm2

# Threads that wait sleep instead of spinning: on a busy machine spinning makes models many times slower. Set before
# the native library is loaded, and inherited by every child.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Repeatable, and without a time limit per example: a busy machine is not a bug.
settings.register_profile(
    "edgellm", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("edgellm")

USER_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgellm" / "tests"


@pytest.fixture(autouse=True)
def clean_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of its own for every test, and none of the user's settings."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(home / ".local" / "share"))
    for name in [name for name in os.environ if name.startswith(("EDGELLM_", "HF_"))]:
        monkeypatch.delenv(name)
    # No test reaches the real hub; those of tests/hub have one of their own.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The embedded model as it ships: SmolLM2-135M-Instruct, Q4_1."""
    return api.resolve("builtin:smollm2").path


@pytest.fixture(scope="session")
def smollm2_hf(smollm2_gguf: Path) -> Path:
    """The same model as a Hugging Face directory in BF16, dithered."""
    return smollm2.cached_checkpoint(smollm2_gguf, USER_CACHE)


@pytest.fixture(scope="session")
def smollm2_q8(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Path:
    """An artifact of the embedded model in Q8_0, made for this machine."""
    out = tmp_path_factory.mktemp("artifacts") / "smollm2-q8"
    api.convert("builtin:smollm2", quant="Q8_0", output=out)
    return out


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A table of where the time went, by file."""
    seconds: dict[str, float] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                name = report.nodeid.split("::")[0]
                seconds[name] = seconds.get(name, 0.0) + report.duration
    total = sum(seconds.values())
    if total < 1:
        return
    terminalreporter.section("where the time went")
    for name, spent in sorted(seconds.items(), key=lambda row: -row[1])[:25]:
        terminalreporter.write_line(f"{spent:8.1f} s  {spent / total:5.1%}  {name}")
    terminalreporter.write_line(f"{total:8.1f} s  in all")

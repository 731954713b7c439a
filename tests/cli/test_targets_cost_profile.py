"""Devices, prices and measurements on the command line: words for people, JSON for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgellm import report as reporting
from edgellm import targets
from edgellm.cost.ledger import Ledger
from edgellm.formats.records import from_json, to_json
from edgellm.report import Missing
from edgellm.targets import Target
from tests.samples import make_energy, make_measurement, make_report
from tests.support.cli import edgellm, refused, succeed


def test_targets_are_listed_with_host() -> None:
    text = succeed("targets")
    assert text == succeed("targets", "list")
    for name in targets.available():
        assert f"{name} " in text
    assert "host" in text


def test_targets_as_json_are_the_records() -> None:
    rows = json.loads(succeed("targets", "list", "--json"))
    assert [row["id"] for row in rows] == targets.available()


def test_a_target_is_shown_with_the_source_of_its_values() -> None:
    text = succeed("targets", "show", "rpi5")
    target = targets.load("rpi5")
    assert str(target.ram_bytes) in text
    for source in target.sources.values():
        assert source in text
    for reason in target.why.values():
        assert reason in text
    assert from_json(Target, succeed("targets", "show", "rpi5", "--json").encode(), "stdout") == target


def test_this_machine_is_a_target() -> None:
    found = from_json(Target, succeed("targets", "detect", "--json").encode(), "stdout")
    assert found.id == "host"
    assert found.ram_bytes > 0
    assert found.cores > 0
    assert "host" in succeed("targets", "show", "host")


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A report with measured energy."""
    path = tmp_path / "measured.json"
    rates = [make_measurement("pp_tok_per_s", [100.0]), make_measurement("tg_tok_per_s", [20.0])]
    path.write_bytes(
        to_json(
            make_report(
                [*rates, make_energy("decode_j_per_token", [0.5]), make_energy("prefill_j_per_token", [0.1])]
            )
        )
    )
    return path


@pytest.fixture
def unmeasured(tmp_path: Path) -> Path:
    """A report without energy."""
    path = tmp_path / "unmeasured.json"
    rates = [make_measurement("pp_tok_per_s", [100.0]), make_measurement("tg_tok_per_s", [20.0])]
    missing = [Missing(quantity="decode_j_per_token", reason="no meter here")]
    path.write_bytes(to_json(make_report(rates, missing)))
    return path


def test_cost_of_measured_energy_beside_a_cloud_price(measured: Path) -> None:
    options = ["cost", measured, "--tariff", "0.36 USD", "--against", "ministral-3b-latest"]
    text = succeed(*options)
    assert "0.05" in text
    ledger = from_json(Ledger, succeed(*options, "--json").encode(), "stdout")
    assert "0.05" in json.dumps(json.loads(to_json(ledger)))


def test_cost_without_energy_is_no_price_but_a_limit(unmeasured: Path) -> None:
    text = succeed("cost", unmeasured, "--tariff", "0.36 USD", "--against", "ministral-3b-latest")
    assert "no meter here" in text or "missing" in text
    assert " W" in text


def test_stated_watts_are_marked_as_modelled(unmeasured: Path) -> None:
    text = succeed("cost", unmeasured, "--tariff", "0.36 USD", "--watts", "5")
    assert "modelled" in text


def test_cost_with_a_named_tariff_and_hardware(measured: Path) -> None:
    text = succeed(
        "cost",
        measured,
        "--tariff",
        "world-2025q2",
        "--hardware",
        "80",
        "--years",
        "4",
        "--hours-per-day",
        "2",
    )
    assert text.strip()


@pytest.mark.parametrize(
    "bad", [["--tariff", "atlantis"], ["--tariff", "-1 EUR"], ["--tariff", "0.3 USD", "--against", "gpt-99"]]
)
def test_an_unknown_tariff_or_price_is_a_usage_error(measured: Path, bad: list[str]) -> None:
    refused(64, "cost", measured, *bad)


def test_a_report_that_is_no_report_is_bad_input(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    for content in (b"", b"{", b"[]", b"\xff", b"[" * 100_000):
        path.write_bytes(content)
        refused(65, "cost", path, "--tariff", "0.3 USD")
    refused(65, "cost", tmp_path, "--tariff", "0.3 USD")


def test_profile_writes_a_report_that_loads_back(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    done = edgellm(
        "profile", "builtin:smollm2", "--workload", "tg128", "--reps", "2", "--threads", "1", "-o", path
    )
    assert done.returncode == 0, done.stderr
    assert "measuring tg128 1/1" in done.stderr
    assert f"report: {path}" in done.stderr
    report = reporting.read(path.read_bytes(), str(path))
    assert list(tmp_path.iterdir()) == [path]
    seconds, rate = report.find("tg_s"), report.find("tg_tok_per_s")
    assert seconds is not None
    assert rate is not None
    assert len(seconds.samples) == 2
    assert rate.samples == [128 / s for s in seconds.samples]
    energy = report.find("decode_j_per_token")
    missing = [m for m in report.results[0].missing if m.quantity == "decode_j_per_token"]
    assert (energy is None) == bool(missing)
    assert all(m.reason for m in missing)
    assert (report.runtime.n_threads, report.runtime.engine) == (1, "llama.cpp")
    assert report.model.quant == "Q4_1"
    assert "decode" in done.stdout
    assert ("missing" in done.stdout) == bool(missing)
    assert succeed("cost", path, "--tariff", "0.3 USD")


def test_profile_json_is_the_report_also_of_a_workload_file(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(
        'id = "tiny"\nabout = "a tiny one"\nregime = "text"\nn_gen = 4\nreps = 1\nprompts = ["Hi"]\n'
    )
    options = ["--workload", path, "--workload", "memory", "--threads", "1", "--json"]
    report = reporting.read(succeed("profile", "builtin:smollm2", *options).encode(), "stdout")
    assert [r.workload.id for r in report.results] == ["tiny", "memory"]
    assert report.find("ttft_s") is not None
    peak = report.find("peak_rss_bytes")
    assert peak is not None
    assert peak.samples[0] > 50e6


def test_profile_of_a_malformed_workload_is_bad_input(tmp_path: Path) -> None:
    path = tmp_path / "w.toml"
    path.write_text('id = "w"\nabout = "x"\nregime = "engine"\nn_promt = 4\n')
    assert "n_promt" in refused(65, "profile", "builtin:smollm2", "--workload", path)[0]

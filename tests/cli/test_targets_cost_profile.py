"""targets, profile, cost, verify and plans: what they print and what they leave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgellm import artifact, report, targets
from edgellm.formats.records import from_json, to_json
from tests.support.cli import edgellm, refused, refused_json, succeed

MODEL = "builtin:smollm2"
CLOUD = "ministral-3b-latest"


def test_targets_without_a_subcommand_lists_every_target_and_this_machine() -> None:
    listed = succeed("targets")
    assert [line.split()[0] for line in listed.splitlines()] == [*targets.available(), "host"]
    assert succeed("targets", "list") == listed
    rows = json.loads(succeed("targets", "list", "--json"))
    assert [row["id"] for row in rows] == targets.available()


@pytest.mark.parametrize("name", ["rpi5", "x86-avx2"])
def test_a_target_is_shown_with_the_source_of_every_number(name: str) -> None:
    shown = succeed("targets", "show", name)
    target = targets.load(name)
    for key in target.sources:
        assert any(line.startswith(key) and line.rstrip().endswith("]") for line in shown.splitlines()), key
    assert all(reason in shown for reason in target.why.values())
    found = from_json(targets.Target, succeed("targets", "show", name, "--json").encode(), "shown")
    assert found == target


def test_this_machine_is_detected_the_same_twice() -> None:
    detected = json.loads(succeed("targets", "detect", "--json"))
    assert detected["id"] == "host"
    assert detected["cores"] >= 1
    assert detected["ram_bytes"] > 0
    assert json.loads(succeed("targets", "show", "host", "--json")) == detected
    assert detected["name"] in succeed("targets", "detect")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two repetitions of tg128 on the embedded model."""
    folder = tmp_path_factory.mktemp("measured")
    path = folder / "report.json"
    done = edgellm(
        "profile", MODEL, "--workload", "tg128", "--reps", "2", "--threads", "1", "-o", path, HOME=str(folder)
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("smollm2 Q4_1")
    assert "tok/s" in done.stdout
    *progress, last = done.stderr.splitlines()
    assert progress
    assert all(line.startswith("measuring tg128") for line in progress)
    assert last == f"report: {path}"
    assert [made.name for made in folder.iterdir()] == [path.name]
    return path


def test_a_report_holds_every_sample_and_a_reason_for_what_is_missing(measured: Path) -> None:
    found = report.read(measured.read_bytes(), str(measured))
    (result,) = found.results
    assert result.workload.id == "tg128"
    speed = next(m for m in result.measurements if m.quantity == "tg_tok_per_s")
    assert len(speed.samples) == 2
    assert all(sample > 0 for sample in speed.samples)
    assert found.runtime.n_threads == 1
    energy = {m.quantity for m in result.measurements} | {m.quantity for m in result.missing if m.reason}
    assert "decode_j_per_token" in energy


def test_a_price_without_power_is_a_break_even_and_with_stated_watts_it_is_marked_as_modelled(
    measured: Path,
) -> None:
    arguments = ["cost", str(measured), "--tariff", "0.30 EUR", "--against", CLOUD, "--rate", "0.9"]
    modelled = succeed(*arguments, "--watts", "8")
    assert "modelled (watts stated by you), 8 W" in modelled
    assert "EUR 0.30 per kWh (stated by you)" in modelled
    assert "quality is not equal" in modelled
    ledger = json.loads(succeed(*arguments, "--watts", "8", "--json"))
    assert ledger["tariff"] == ledger["tariff"] | {"currency": "EUR", "price_per_kwh": 0.3}
    assert ledger["decode"]["energy"]["method"] == "modelled"
    assert ledger["comparison"]["price"]["model"] == CLOUD
    per_million = ledger["decode"]["cost_per_million"]["median"]
    joules = 8 / ledger["speed"]["tok_per_s"]["median"]
    assert per_million == pytest.approx(joules * 1e6 / 3.6e6 * 0.3, rel=1e-6)
    bare = json.loads(succeed(*arguments, "--json"))
    energy_was_measured = bare["decode"] is not None and bare["decode"]["energy"]["method"] == "measured"
    assert energy_was_measured or (bare["decode"] is None and bare["decode_reason"])
    assert bare["comparison"]["break_even_w"]["median"] > 0


def test_an_unknown_tariff_or_cloud_price_is_a_usage_error_with_the_known_ones(measured: Path) -> None:
    assert "world-2025q2" in refused(64, "cost", measured, "--tariff", "wurld-2025q2")[1]
    assert CLOUD in refused(64, "cost", measured, "--tariff", "0.30 EUR", "--against", "ministral-3b")[1]


def test_a_plan_gives_its_reasons_and_writes_nothing(tmp_path: Path) -> None:
    done = edgellm("convert", MODEL, "--target", "rpi5", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("would write smollm2-rpi5: Q8_0 for rpi5, 136 MiB\n")
    assert {"quant", "context", "kv_type", "threads"} <= {
        line.split()[0] for line in done.stdout.splitlines()
    }
    assert done.stderr.startswith("warning: the source is already quantized")
    plan = json.loads(succeed("convert", MODEL, "--target", "rpi5", "--dry-run", "--json", cwd=tmp_path))
    assert plan["recipe"]["quant"] == "Q8_0"
    assert len(plan["recipe"]["tensor_types"]) == 272
    assert plan["recipe"]["reasons"]
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_does_not_fit_is_refused_before_any_work(tmp_path: Path) -> None:
    arguments = ["convert", MODEL, "--target", "rpi-zero2w", "--quant", "F32", "--context", "8192"]
    error, *table, hint = refused(65, *arguments, cwd=tmp_path)
    assert "rpi-zero2w" in error
    assert any(row.split()[0] == "Q8_0" for row in table)
    assert "--quant" in hint
    assert list(tmp_path.iterdir()) == []


def test_a_good_artifact_verifies(smollm2_q8: Path) -> None:
    assert [entry.name for entry in artifact.open_directory(smollm2_q8).manifest.files] == ["model.gguf"]
    assert succeed("verify", smollm2_q8) == f"{smollm2_q8}: 1 file matches its manifest\n"
    found = json.loads(succeed("verify", smollm2_q8, "--json"))
    assert found["manifest_hash_in_model"] is True
    assert found["manifest"]["quant"] == "Q8_0"
    assert found["receipt"] is None


def test_a_plain_gguf_verifies_without_hashes() -> None:
    assert "no manifest, so no hashes" in succeed("verify", MODEL)


@pytest.fixture
def damaged(smollm2_q8: Path, tmp_path: Path) -> Path:
    """A copy whose last weight byte is another one."""
    copy = Path(shutil.copytree(smollm2_q8, tmp_path / "damaged"))
    with (copy / "model.gguf").open("r+b") as file:
        file.seek(-1, 2)
        byte = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([byte ^ 1]))
    return copy


def test_a_flipped_bit_a_missing_byte_and_a_missing_file_are_found(damaged: Path) -> None:
    model = damaged / "model.gguf"
    error, hint = refused(65, "verify", damaged)
    assert f"{model}: sha256 is" in error
    assert "convert" in hint
    assert refused_json(65, "verify", damaged)["type"] == "ArtifactError"
    with model.open("r+b") as file:
        file.truncate(model.stat().st_size - 1)
    for verb in (["verify", str(damaged)], ["run", str(damaged), "Hi"]):
        assert "the manifest says" in refused(65, *verb)[0]
    model.unlink()
    assert "not a file there" in refused(65, "verify", damaged)[0]


def test_a_manifest_that_names_a_file_outside_is_refused(damaged: Path) -> None:
    path = damaged / "manifest.json"
    text = to_json(artifact.open_directory(damaged).manifest)
    path.write_bytes(text.replace(b'"model.gguf"', b'"../damaged/model.gguf"'))
    error = refused(65, "verify", damaged)[0]
    assert "not a plain file name" in error

"""The demo, once: offline, from conversion to cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgellm import artifact, cost, report
from edgellm.api.demo import Demo
from edgellm.formats.records import from_json
from tests.support.cli import edgellm, refused


@pytest.mark.usefixtures("one_processor")
def test_the_demo_tells_the_whole_story(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = edgellm("demo", "--json", "-o", out, timeout_s=580)
    assert done.returncode == 0, done.stderr
    found = from_json(Demo, done.stdout.encode(), "demo")
    assert set(json.loads(done.stdout)) == {
        "artifacts", "question", "answer", "report", "report_path", "ledger",
    }  # fmt: skip
    assert "Paris" in found.answer
    assert [made.manifest.target for made in found.artifacts] == ["host", "rpi5"]
    for made in found.artifacts:
        opened = artifact.open_directory(Path(made.path))
        artifact.verify_hashes(opened)
        assert opened.receipt is not None
        assert opened.receipt.verdict == "pass"
    path = Path(found.report_path)
    assert report.read(path.read_bytes(), str(path)) == found.report
    assert {result.workload.id for result in found.report.results} == {
        "pp512",
        "tg128",
        "chat",
        "load",
        "memory",
    }
    assert isinstance(found.ledger, cost.Ledger)
    assert found.ledger.report_id == found.report.report_id
    assert found.ledger.comparison is not None
    assert {made.name for made in out.iterdir()} == {
        ".edgellm-demo", "report.json", "smollm2-host", "smollm2-rpi5",
    }  # fmt: skip
    assert [made.name for made in tmp_path.iterdir()] == ["demo"]


def test_a_directory_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    error, hint = refused(73, "demo", "-o", tmp_path)
    assert "not made by the demo" in error
    assert "--output" in hint
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_place_that_cannot_be_a_directory_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    refused(74, "demo", "-o", tmp_path / "file" / "demo")
    (tmp_path / "empty").touch()
    assert refused(73, "demo", "-o", tmp_path / "empty")

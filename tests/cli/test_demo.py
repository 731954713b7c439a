"""The demo: the whole story in one command, once, in both its forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgellm import api
from edgellm import report as reporting
from edgellm.api import demo
from edgellm.errors import OutputExistsError
from edgellm.formats.records import from_builtins
from tests.support.cli import edgellm, refused


def test_the_demo_converts_verifies_answers_measures_and_prices(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = edgellm("demo", "--output", out, "--json", timeout_s=600)
    assert done.returncode == 0, done.stderr
    found = from_builtins(demo.Demo, json.loads(done.stdout), "stdout")
    assert "Paris" in found.answer
    assert [a.manifest.target for a in found.artifacts] == ["host", "rpi5"]
    for made in found.artifacts:
        assert made.receipt is not None
        assert made.receipt.verdict == "pass"
        api.verify(made.path)
    assert reporting.read(Path(found.report_path).read_bytes(), "report") == found.report
    assert {r.workload.id for r in found.report.results} == {"pp512", "tg128", "chat", "load", "memory"}
    assert sorted(p.name for p in out.iterdir()) == [
        demo.MARKER,
        "report.json",
        "smollm2-host",
        "smollm2-rpi5",
    ]


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    error, hint = refused(73, "demo", "--output", tmp_path)
    assert "not made by the demo" in error
    assert "--output" in hint
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]


def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(OutputExistsError):
        demo.prepare(path)
    refused(73, "demo", "--output", path)
    assert path.read_text() == "x"


def test_a_directory_made_by_the_demo_or_empty_is_used_again(tmp_path: Path) -> None:
    for _ in range(2):
        demo.prepare(tmp_path / "demo")
    (tmp_path / "demo" / "report.json").write_text("{}")
    demo.prepare(tmp_path / "demo")
    (tmp_path / "empty").mkdir()
    demo.prepare(tmp_path / "empty")

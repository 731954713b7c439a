"""Children of a frozen application: the application itself, once it has said that it knows of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import edgellm
from edgellm.errors import BackendError
from edgellm.process import frozen, python_argv


@pytest.fixture
def application(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process as a frozen application that has not called `freeze_support` yet."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "argv", ["app", "document.txt"])
    monkeypatch.setattr(frozen, "_is_ready", False)


@pytest.mark.usefixtures("application")
def test_an_application_that_knows_nothing_of_children_starts_none() -> None:
    with pytest.raises(BackendError, match=r"has not called edgellm\.freeze_support") as caught:
        python_argv(["_engine"])
    assert "call edgellm.freeze_support() first" in (caught.value.hint or "")


@pytest.mark.usefixtures("application")
def test_an_application_starts_itself() -> None:
    edgellm.freeze_support()
    assert sys.argv == ["app", "document.txt"]
    assert python_argv(["_engine"]) == [sys.executable, "--edgellm-child", "_engine"]


def test_outside_of_applications_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program", frozen.CHILD_OPTION, "--version"])
    edgellm.freeze_support()
    assert sys.argv[1] == frozen.CHILD_OPTION


def test_a_child_does_its_work_and_never_becomes_the_application(tmp_path: Path) -> None:
    """Its errors and exit codes are those of the command."""
    program = tmp_path / "app.py"
    program.write_text(
        "import sys; sys.frozen = True\n"
        "import edgellm\n"
        "edgellm.freeze_support()\n"
        "print('the application runs')\n"
    )

    def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, program, *arguments], input=stdin, capture_output=True, check=False
        )

    assert run("--version").stdout == b"the application runs\n"
    assert run(frozen.CHILD_OPTION, "--version").stdout.startswith(b"edgellm, version")
    refused = run(frozen.CHILD_OPTION, "_tokenize", stdin=b"nonsense")
    assert (refused.returncode, refused.stdout) == (65, b"")
    assert json.loads(refused.stderr)["error"]["type"] == "BadInputError"

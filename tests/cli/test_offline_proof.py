"""`--offline-proof`: a plain run opens no socket at all, and one that tries to fails and says what."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import click
import psutil
import pytest

from edgellm.cli.offline import proof_lines, prove_offline
from edgellm.errors import UnsupportedError
from edgellm.process import offline_command
from edgellm.process.offline_command import Watched
from edgellm.process.proof import OfflineProof
from edgellm.report import Missing
from tests.support.cli import CAPITAL, EDGELLM, edgellm, refused, refused_json, succeed

MODEL = "builtin:smollm2"
RUN = ("run", MODEL, CAPITAL, "--temperature", "0", "--threads", "1", "--offline-proof")
ANSWER = "The capital of France is Paris."
# What a library that calls home might do; only in the watched child, as the parent imports it too.
CALLS_HOME = """
import atexit, socket, sys

def call():
    with socket.socket() as s:
        try:
            s.connect(("192.0.2.1", 443))
        except OSError:
            pass

if "_watched" in sys.orig_argv:
    atexit.register(call)
"""


@pytest.fixture
def calls_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python imports this into each interpreter."""
    import os

    (tmp_path / "sitecustomize.py").write_text(CALLS_HOME)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))


def test_a_plain_run_opens_no_socket_and_says_by_which_methods_that_is_known() -> None:
    done = edgellm(*RUN)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ANSWER + "\n"
    assert "tok/s" in done.stderr
    assert "\noffline: no" in done.stderr


def test_json_carries_the_proof_beside_the_answer() -> None:
    found = json.loads(succeed(*RUN, "--json"))
    assert found["text"] == ANSWER
    proof = found["offline_proof"]
    assert proof["verdict"] == "offline"
    assert proof["n_attempts"] == 0
    assert "audit hook" in proof["methods"]
    for method, quantity in (
        ("seccomp", "attempts of native code and of other programs"),
        ("namespace", "bytes"),
    ):
        assert (method in proof["methods"]) != (quantity in [gap["quantity"] for gap in proof["missing"]])
    assert proof["sent_bytes"] == proof["received_bytes"] == (0 if "namespace" in proof["methods"] else None)


def test_what_calls_home_at_the_very_end_fails_the_run_by_name(calls_home: None) -> None:
    done = edgellm(*RUN)
    assert done.returncode == 77
    assert done.stdout == ANSWER + "\n"
    error = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "connect to 192.0.2.1 port 443" in error
    assert "sitecustomize.py line" in error


def test_with_json_an_attempt_is_an_error_object_and_no_result(calls_home: None) -> None:
    done = edgellm(*RUN, "--json", "--max-tokens", "1")
    assert done.returncode == 77
    assert done.stdout == ""
    error = json.loads(done.stderr.splitlines()[-1])["error"]
    assert error["type"] == "NetworkAttemptError"
    assert "192.0.2.1" in error["message"]


def test_a_chat_is_watched_too() -> None:
    done = edgellm(
        "chat", MODEL, "--temperature", "0", "--threads", "1", "--quiet", "--offline-proof", stdin=CAPITAL
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ANSWER + "\n"
    assert "offline: no" in done.stderr


def test_errors_of_the_watched_command_keep_their_words_and_code() -> None:
    assert "nowhere.gguf" in refused(66, "run", "nowhere.gguf", "Hi", "--offline-proof")[0]
    assert "nowhere.gguf" in refused_json(66, "run", "nowhere.gguf", "Hi", "--offline-proof")["message"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_watched_child(number: signal.Signals) -> None:
    child = subprocess.Popen(
        [*EDGELLM, "run", MODEL, "Tell me a long story.", "--threads", "1", "--seed", "1", "--offline-proof"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert child.stdout is not None
    first = child.stdout.read(1)
    inner = psutil.Process(child.pid).children()
    child.send_signal(number)
    _, stderr = child.communicate(timeout=60)
    assert first
    assert child.returncode == 128 + number
    assert b"Traceback" not in stderr
    assert inner
    assert not any(process.is_running() for process in inner)


def test_the_words_say_what_was_not_watched() -> None:
    proof = OfflineProof(
        verdict="offline", methods=["audit hook"], n_attempts=0, attempts=[], received_bytes=None, sent_bytes=None,
        missing=[Missing(quantity="bytes", reason="no namespaces here")],
    )  # fmt: skip
    assert proof_lines(proof) == [
        "offline: no request by Python code (audit hook)",
        "offline: not watched: bytes: no namespaces here",
    ]


def test_what_nothing_watched_fails_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    proof = OfflineProof(
        verdict="unwatched", methods=[], n_attempts=0, attempts=[], received_bytes=None, sent_bytes=None,
        missing=[Missing(quantity="bytes", reason="no namespaces here")],
    )  # fmt: skip
    monkeypatch.setattr(offline_command, "run_watched", lambda *_, **__: Watched(0, b"{}", proof))
    with (
        click.Context(click.Command("run"), obj=["run"]),
        pytest.raises(UnsupportedError, match="no namespaces here"),
    ):
        prove_offline(as_json=True)

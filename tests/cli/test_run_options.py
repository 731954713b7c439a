"""Options of `run` and unusual input of `chat` reach the engine, or are refused."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.cli import CAPITAL, EDGELLM, edgellm, refused, succeed

MODEL = "builtin:smollm2"
GREEDY = ["--threads", "1", "--context", "512", "--temperature", "0"]
COUNT = ["run", MODEL, "one two one two one two one", "--raw", "--max-tokens", "8", *GREEDY]


def test_a_repeat_penalty_changes_the_answer() -> None:
    plain, penalised = (
        json.loads(succeed(*COUNT, "--json", *extra)) for extra in ([], ["--repeat-penalty", "2"])
    )
    assert plain["token_ids"] != penalised["token_ids"]


def test_a_kv_type_is_taken_in_small_letters_and_an_unknown_one_refused() -> None:
    succeed(*COUNT, "--kv-type", "q8_0", "--flash-attention", "on")
    assert "Q8_0" in refused(64, *COUNT, "--kv-type", "Q8_1")[1]


def test_quiet_says_nothing_on_stderr() -> None:
    assert edgellm(*COUNT, "--quiet").stderr == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_answer_keeps_what_was_printed(number: signal.Signals) -> None:
    child = subprocess.Popen(
        [*EDGELLM, "run", MODEL, "Tell me a long story.", "--threads", "1", "--seed", "1"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout is not None
    first = child.stdout.read(1)
    child.send_signal(number)
    _, stderr = child.communicate(timeout=60)
    assert first
    assert child.returncode == 128 + number
    assert b"Traceback" not in stderr


@pytest.mark.parametrize("lenient", ["0", "1"])
def test_chat_input_that_is_not_utf8_is_a_usage_error(lenient: str) -> None:
    options = ["chat", MODEL, *GREEDY, "--quiet", "--max-tokens", "4"]
    assert "UTF-8" in refused(64, *options, stdin=b"\xff\xfe\n", PYTHONUTF8=lenient, LC_ALL="C.UTF-8")[0]


def test_a_chat_line_too_long_for_the_context_is_said_and_the_chat_goes_on() -> None:
    options = ["chat", MODEL, "--threads", "1", "--context", "96", "--temperature", "0"]
    done = edgellm(*options, stdin=f"{'word ' * 200}\n{CAPITAL}\n")
    assert done.returncode == 0
    assert "the context holds 96" in done.stderr
    assert "Paris" in done.stdout


def test_a_model_without_a_template_is_for_run_and_not_for_chat(smollm2_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "plain.gguf"
    path.write_bytes(
        smollm2_gguf.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_templatx", 1)
    )
    error, hint = refused(64, "chat", path, *GREEDY)
    assert "no chat template" in error
    assert "--raw" in hint
    assert "Paris" in succeed(
        "run", path, "The capital of France is", *GREEDY, "--max-tokens", "4", "--quiet"
    )

"""Options of `run` and unusual input of `chat` reach the engine, or are refused."""

from __future__ import annotations

import functools
import json
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import click
import psutil
import pytest

from edgellm.cli import engine
from tests.support.cli import CAPITAL, EDGELLM, edgellm, refused, succeed

MODEL = "builtin:smollm2"
GREEDY = ["--threads", "1", "--context", "512", "--temperature", "0"]
COUNT = ["run", MODEL, "one two one two one two one", "--raw", "--max-tokens", "8", *GREEDY]


@functools.cache
def plain() -> dict[str, Any]:
    """What COUNT gives as it is."""
    found: dict[str, Any] = json.loads(succeed(*COUNT, "--json"))
    return found


def test_a_repeat_penalty_changes_the_answer() -> None:
    penalised = json.loads(succeed(*COUNT, "--json", "--repeat-penalty", "2"))
    assert plain()["token_ids"] != penalised["token_ids"]


def test_a_kv_type_is_taken_in_small_letters_and_an_unknown_one_refused() -> None:
    succeed(*COUNT, "--kv-type", "q8_0", "--flash-attention", "on")
    assert "Q8_0" in refused(64, *COUNT, "--kv-type", "Q8_1")[1]


def test_quiet_says_nothing_on_stderr() -> None:
    assert edgellm(*COUNT, "--quiet").stderr == ""


def test_an_answer_fits_a_schema_a_pattern_or_a_grammar(tmp_path: Path) -> None:
    schema, grammar = tmp_path / "colour.json", tmp_path / "choice.gbnf"
    schema.write_text('{"type": "object", "properties": {"red": {"type": "boolean"}}, "required": ["red"]}')
    grammar.write_text('root ::= "left" | "right"')
    ask = ["run", MODEL, "Is an apple red?", *GREEDY, "--quiet", "--max-tokens", "40"]
    assert set(json.loads(succeed(*ask, "--json-schema", schema))) == {"red"}
    assert re.fullmatch("yes|no", succeed(*ask, "--regex", "yes|no").rstrip("\n"))
    assert succeed(*ask, "--grammar", grammar).rstrip("\n") in ("left", "right")


def test_what_an_answer_must_fit_is_checked_before_or_refused_in_a_line(tmp_path: Path) -> None:
    schema, good, binary = tmp_path / "bad.json", tmp_path / "good.json", tmp_path / "binary"
    schema.write_text("{")
    good.write_text("{}")
    binary.write_bytes(b"\xff\xfe")
    ask = ["run", MODEL, "Hi", *GREEDY]
    assert "--json-schema and --regex together" in refused(64, *ask, "--json-schema", good, "--regex", "a")[0]
    assert f"{schema}: not JSON" in refused(64, *ask, "--json-schema", schema)[0]
    assert "UTF-8" in refused(64, *ask, "--grammar", binary)[0]
    assert "nowhere" in refused(66, *ask, "--grammar", tmp_path / "nowhere")[0]


def test_log_probabilities_are_in_the_json() -> None:
    found = json.loads(succeed(*COUNT, "--json", "--logprobs", "2"))
    assert len(found["logprobs"]) == len(found["token_ids"])
    assert all(len(entry["top"]) == 2 and entry["logprob"] <= 0 for entry in found["logprobs"])
    assert "--json" in refused(64, *COUNT, "--logprobs", "2")[0]


def test_guesses_change_no_text_and_can_be_left_out() -> None:
    without = json.loads(succeed(*COUNT, "--json", "--no-speculation"))
    assert plain()["token_ids"] == without["token_ids"]
    assert without["usage"]["drafted_tokens"] == 0


def test_a_context_that_is_too_small_can_shift_and_keep_the_beginning() -> None:
    small = [
        "run",
        MODEL,
        "word " * 40,
        "--raw",
        "--max-tokens",
        "40",
        "--temperature",
        "0",
        "--threads",
        "1",
    ]
    small += ["--context", "64"]
    found = json.loads(succeed(*small, "--overflow", "shift", "--keep-tokens", "4", "--json"))
    assert len(found["token_ids"]) == 40
    assert found["usage"]["dropped_tokens"] > 0


def test_an_adapter_that_is_not_there_or_has_an_absurd_scale_is_refused(smollm2_gguf: Path) -> None:
    assert "nowhere" in refused(66, *COUNT, "--lora", "nowhere:0.5")[0]
    assert "scale" in refused(64, *COUNT, "--lora", "nowhere:1e9")[0]
    assert "not an adapter" in refused(65, *COUNT, "--lora", smollm2_gguf)[0]


def test_an_adapter_is_a_path_and_perhaps_a_scale(tmp_path: Path) -> None:
    context, option = click.Context(click.Command("run")), click.Option(["--lora"])
    odd = tmp_path / "a:2"
    odd.touch()
    for given, path, scale in (
        ("a.gguf", "a.gguf", 1.0), ("a.gguf:0.5", "a.gguf", 0.5), ("a.gguf:-1", "a.gguf", -1.0), (str(odd), str(odd), 1.0),
        ("C:\\a.gguf", "C:\\a.gguf", 1.0),
    ):  # fmt: skip
        assert engine._adapter(given, context, option) == (path, scale)


def test_an_isolated_run_gives_the_same_answer() -> None:
    assert succeed(*COUNT, "--isolate") == plain()["text"] + "\n"


def test_native_code_that_dies_in_isolation_is_one_line_and_its_exit_code() -> None:
    child = subprocess.Popen(
        [*EDGELLM, "run", MODEL, "Tell me a long story.", "--threads", "1", "--seed", "1", "--isolate"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout is not None
    first = child.stdout.read(1)
    (engine_process,) = psutil.Process(child.pid).children()
    engine_process.send_signal(signal.SIGSEGV)
    _, stderr = child.communicate(timeout=60)
    assert first
    assert child.returncode == 70
    (line,) = [line for line in stderr.decode().splitlines() if line.startswith("error: ")]
    assert "SIGSEGV" in line
    assert b"Traceback" not in stderr


def test_who_stops_reading_an_answer_ends_it_quietly() -> None:
    child = subprocess.Popen(
        [*EDGELLM, "run", MODEL, "Tell me a long story.", "--threads", "1", "--seed", "1"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stderr is not None
    assert child.stdout.read(1)
    child.stdout.close()
    stderr = child.stderr.read()
    child.stderr.close()
    assert child.wait(60) == 0
    assert stderr == b""


def test_a_terminal_of_another_encoding_gets_question_marks_for_what_it_lacks(tmp_path: Path) -> None:
    grammar = tmp_path / "grammar.gbnf"
    grammar.write_text('root ::= "naïve ☃"', encoding="utf-8")
    said = succeed("run", MODEL, "x", *GREEDY, "--quiet", "--grammar", grammar, PYTHONIOENCODING="latin-1")
    assert said.encode("utf-8", "surrogateescape") == "naïve ?\n".encode("latin-1")


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


def test_a_draft_model_changes_nothing_but_the_time() -> None:
    plain, drafted = (json.loads(succeed(*COUNT, "--json", *extra)) for extra in ([], ["--draft", MODEL]))
    assert plain["token_ids"] == drafted["token_ids"]
    assert drafted["usage"]["draft_failure"] is None
    assert drafted["usage"]["accepted_tokens"] > 0
    chat = edgellm("chat", MODEL, "--draft", MODEL, *GREEDY, "--quiet", stdin=f"{CAPITAL}\n")
    assert "Paris" in chat.stdout


def test_a_draft_model_that_is_not_there_is_refused() -> None:
    assert "nowhere.gguf" in refused(66, *COUNT, "--draft", "nowhere.gguf")[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["Hi", "--draft", MODEL, "--no-speculation"], "only makes guesses"),
        (["Hi", "--keep-tokens", "5"], "--overflow"),
        (["  "], "the prompt is empty"),
    ],
)
def test_options_that_would_do_nothing_are_refused(arguments: list[str], words: str) -> None:
    assert words in refused(64, "run", MODEL, *arguments)[0]


def test_an_empty_standard_input_is_no_prompt() -> None:
    assert "the prompt is empty" in refused(64, "run", MODEL, stdin="")[0]


def test_an_answer_that_was_cut_is_said_to_be() -> None:
    assert "; cut:" in edgellm(*COUNT).stderr
    assert "; cut:" not in edgellm("run", MODEL, CAPITAL, *GREEDY).stderr

"""`run` and `chat` as users have them: arguments, pipes, and a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import CAPITAL, EDGELLM, edgellm, refused, succeed

MODEL = "builtin:smollm2"
ANSWER = "The capital of France is Paris."
GREEDY = ("--temperature", "0", "--threads", "1")
DEADLINE_S = 240.0


def generated(*arguments: str, stdin: str = "") -> dict[str, Any]:
    """The object that `run --json` printed."""
    found: dict[str, Any] = json.loads(
        succeed("run", MODEL, *arguments, "--threads", "1", "--json", stdin=stdin)
    )
    return found


def test_a_prompt_as_an_argument_or_on_standard_input_gives_the_same_answer() -> None:
    given = edgellm("run", MODEL, CAPITAL, *GREEDY)
    piped = edgellm("run", MODEL, *GREEDY, "--quiet", stdin=CAPITAL)
    assert given.returncode == piped.returncode == 0
    assert given.stdout == piped.stdout == ANSWER + "\n"
    assert re.fullmatch(
        r"\d+ tokens in, \d+ out; first token after [\d.]+ m?s, then [\d.]+ tok/s(; \d+ of \d+ guesses right)?\n",
        given.stderr,
    )
    assert piped.stderr == ""


def test_a_prompt_on_standard_input_must_be_utf8() -> None:
    assert "UTF-8" in refused(64, "run", MODEL, stdin=b"\xff\xfe")[0]


def test_raw_continues_the_prompt_without_the_template() -> None:
    asked = generated("The capital of France is", "--raw", "--temperature", "0", "--max-tokens", "4")
    assert "Paris" in asked["text"]
    assert asked["usage"]["prompt_tokens"] < 10
    assert asked["usage"]["completion_tokens"] == 4
    assert asked["finish_reason"] == "length"


def test_json_is_one_object_with_usage_and_every_token() -> None:
    found = generated(CAPITAL, "--temperature", "0")
    assert found["text"] == ANSWER
    assert found["finish_reason"] == "stop"
    usage = found["usage"]
    assert usage["completion_tokens"] == len(found["token_ids"])
    assert usage["prompt_tokens"] > 0
    assert usage["ttft_s"] > 0
    assert usage["decode_s"] > 0
    assert usage["energy"]["reason"]


def test_a_system_message_takes_part_in_the_prompt() -> None:
    plain, long = ("You are terse.", "You are terse. " * 8)
    few = generated(CAPITAL, "--system", plain, "--max-tokens", "1")["usage"]["prompt_tokens"]
    many = generated(CAPITAL, "--system", long, "--max-tokens", "1")["usage"]["prompt_tokens"]
    assert many > few + 14


def test_a_system_message_without_a_template_is_a_usage_error() -> None:
    assert "--system" in refused(64, "run", MODEL, "Hi", "--raw", "--system", "Be terse", "--threads", "1")[0]


def test_an_answer_ends_before_a_stop_text_that_spans_tokens() -> None:
    found = generated(CAPITAL, "--temperature", "0", "--stop", "nowhere", "--stop", "France is P")
    assert found["text"] == "The capital of "
    assert found["finish_reason"] == "stop"


def test_the_same_seed_gives_the_same_text_and_another_seed_another() -> None:
    hot = ("Tell me a story about a ship.", "--temperature", "1.5", "--max-tokens", "12", "--seed")
    once, again, other = (generated(*hot, seed) for seed in ("7", "7", "8"))
    assert once["text"] == again["text"]
    assert once["token_ids"] == again["token_ids"]
    assert len(once["token_ids"]) == once["usage"]["completion_tokens"] == 12
    assert once["token_ids"] != other["token_ids"]


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers() -> None:
    error, hint = refused(65, "run", MODEL, "word " * 100, "--context", "64", "--threads", "1")
    has, holds = map(int, re.findall(r"\d+", error))
    assert has > 100
    assert holds == 64
    assert "--context" in hint


def test_chat_from_a_pipe_prints_only_answers() -> None:
    done = edgellm("chat", MODEL, *GREEDY, stdin=f"{CAPITAL}\n\n/reset\n{CAPITAL}\n/exit\nnever\n")
    assert done.returncode == 0
    assert done.stdout == f"{ANSWER}\n{ANSWER}\n"
    first, reset, second = done.stderr.splitlines()
    assert reset == "forgotten"
    assert count_in(first) == count_in(second)


def test_chat_from_a_pipe_that_ends_is_a_normal_end() -> None:
    done = edgellm("chat", MODEL, *GREEDY, "--quiet", stdin=CAPITAL)
    assert done.returncode == 0
    assert done.stdout == f"{ANSWER}\n"
    assert done.stderr.strip() == ""


def count_in(usage: str) -> int:
    found = re.search(r"(\d+) tokens in", usage)
    assert found, usage
    return int(found[1])


class Terminal:
    """A chat on a pseudo-terminal: what a person types and sees."""

    def __init__(self, child: subprocess.Popen[bytes], master: int) -> None:
        self.child = child
        self._master = master
        self._seen = ""

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self._master, text.encode())

    def line(self, text: str) -> None:
        """Type a line and take its echo off the screen."""
        self.type(text + "\n")
        self.until(text + "\r\n")

    def until(self, wanted: str) -> str:
        """What appears on the screen up to these words, and them."""
        deadline = time.monotonic() + DEADLINE_S
        while wanted not in self._seen:
            assert time.monotonic() < deadline, (wanted, self._seen)
            ready, _, _ = select.select([self._master], [], [], 1)
            if ready:
                self._seen += self._read()
        before, found, self._seen = self._seen.partition(wanted)
        return before + found

    def _read(self) -> str:
        with contextlib.suppress(OSError):  # EIO: nobody holds the other end any more
            if data := os.read(self._master, 4096):
                return data.decode("utf-8", errors="replace")
        raise AssertionError(f"the chat ended: {self._seen!r}")

    def end(self, *, pressing: str = "") -> int:
        """The exit code, after everything has been read, with these keys pressed every other second until then."""
        deadline = time.monotonic() + DEADLINE_S
        with contextlib.suppress(AssertionError):
            while time.monotonic() < deadline:
                ready, _, _ = select.select([self._master], [], [], 2)
                if ready:
                    self._seen += self._read()
                elif pressing:
                    self.type(pressing)
        assert "Traceback" not in self._seen
        return self.child.wait(max(deadline - time.monotonic(), 1))


TAKE_TERMINAL = (
    "import fcntl, os, sys, termios\n"
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    "os.execv(sys.argv[1], sys.argv[1:])\n"
)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """A greedy chat that has just shown its first prompt, with the terminal as its own."""
    master, slave = os.openpty()
    argv = [EDGELLM[0], "-c", TAKE_TERMINAL, *EDGELLM, "chat", MODEL, *GREEDY]
    environment = os.environ | {"TERM": "dumb", "INPUTRC": str(tmp_path / "none")}
    child = subprocess.Popen(
        argv, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
    )
    os.close(slave)
    chat = Terminal(child, master)
    try:
        chat.until("> ")
        yield chat
    finally:
        child.kill()
        child.wait()
        os.close(master)


def test_a_conversation_is_remembered_until_reset(terminal: Terminal) -> None:
    terminal.line(CAPITAL)
    first = terminal.until("> ")
    assert ANSWER in first
    terminal.line(CAPITAL)
    second = terminal.until("> ")
    assert count_in(second) > count_in(first)
    assert "cached" in second
    terminal.line("/help")
    assert "/reset" in terminal.until("> ")
    terminal.line("/reset")
    assert "forgotten" in terminal.until("> ")
    terminal.line(CAPITAL)
    third = terminal.until("> ")
    assert ANSWER in third
    assert count_in(third) == count_in(first)
    terminal.line("/exit")
    assert terminal.end() == 0


def test_ctrl_c_stops_an_answer_and_the_chat_goes_on(terminal: Terminal) -> None:
    terminal.line("Write a very long story about a dragon and a princess.")
    terminal.until(" the ")
    terminal.type("\x03")
    terminal.until("(stopped)")
    terminal.until("> ")
    terminal.line("/reset")
    terminal.until("> ")
    terminal.line(CAPITAL)
    assert ANSWER in terminal.until("> ")
    terminal.type("\x04")
    assert terminal.end() == 0


def test_ctrl_c_at_the_prompt_leaves(terminal: Terminal) -> None:
    # More than once, as a person would: Python's input() misses a signal between its prompt and its wait for keys.
    terminal.type("\x03")
    assert terminal.end(pressing="\x03") == 0

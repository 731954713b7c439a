"""`chat --session`: a conversation that goes on with the next start, also after kill -9 in the middle of an answer."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.support.cli import CAPITAL, EDGELLM, edgellm, refused

MODEL = "builtin:smollm2"
ANSWER = "The capital of France is Paris."
OPTIONS = ("--temperature", "0", "--threads", "1", "--context", "512")
DEADLINE_S = 240.0


def chat(path: Path, *lines: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return edgellm(
        "chat", MODEL, "--session", path, *OPTIONS, *options, stdin="".join(f"{s}\n" for s in lines)
    )


def messages(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_bytes())["messages"]
    return found


def test_a_chat_that_is_killed_in_mid_answer_goes_on_where_the_last_answer_ended(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    child = subprocess.Popen(
        [*EDGELLM, "chat", MODEL, "--session", str(path), *OPTIONS],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=0,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    with child:
        child.stdin.write(f"{CAPITAL}\n")
        assert child.stdout.read(len(ANSWER) + 1) == ANSWER + "\n"
        deadline = time.monotonic() + DEADLINE_S
        while len(messages(path)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        before = path.read_bytes()
        child.stdin.write("Write a very long story about a dragon and a princess.\n")
        assert len(child.stdout.read(20)) == 20
        child.kill()
    assert path.read_bytes() == before
    assert [message["content"] for message in messages(path)] == [CAPITAL, ANSWER]

    done = chat(path, "And of Italy?")
    assert done.returncode == 0, done.stderr
    assert "resumed 2 messages" in done.stderr
    assert "computed again" in done.stderr
    assert len(messages(path)) == 4
    assert [entry.name for entry in tmp_path.iterdir() if "partial" in entry.name] == []

    again = chat(path, "And of Spain?")
    assert again.returncode == 0, again.stderr
    assert "tokens in the cache" in again.stderr
    assert "cached)" in again.stderr
    assert len(messages(path)) == 6


def test_reset_and_a_system_message(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    done = chat(path, CAPITAL, "/reset", options=("--system", "Be terse.", "--quiet"))
    assert (done.returncode, done.stderr.strip()) == (0, "forgotten")
    assert messages(path) == [{"role": "system", "content": "Be terse."}]
    done = chat(path, CAPITAL, options=("--system", "Be terse.", "--max-tokens", "4"))
    assert done.returncode == 0
    assert len(messages(path)) == 3
    before = path.read_bytes()
    assert "--system" in refused(64, "chat", MODEL, "--session", path, "--system", "Be long.")[0]
    assert path.read_bytes() == before


def test_what_is_no_session_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    path.write_text('{"notes": []}')
    assert "not a valid SessionFile" in refused(65, "chat", MODEL, "--session", path)[0]
    assert path.read_text() == '{"notes": []}'

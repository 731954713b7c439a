"""Sessions and saved caches of the embedded model, over the ends of processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgellm import api
from edgellm.errors import BadInputError
from edgellm.runtime.model import Model

QUESTIONS = ("What is the capital of France?", "And of Italy?")
LONG = "Once upon a time, in a village by the sea, there lived an old man who had a boat and a cat. " * 3


def ask(path: Path, said: str, *more: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.session_child", str(path), said, *more],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with api.load("builtin:smollm2", context=512, threads=1) as opened:
        yield opened


def test_a_conversation_goes_on_in_other_processes_as_if_nothing_had_been(
    tmp_path: Path, model: Model
) -> None:
    path, without = tmp_path / "chat.json", tmp_path / "without.json"
    first = ask(path, QUESTIONS[0])
    without.write_bytes(path.read_bytes())
    second = ask(path, QUESTIONS[1], "isolate")
    anew = ask(without, QUESTIONS[1])
    messages = json.loads(path.read_bytes())["messages"]
    session = model.session(system=messages[0]["content"], temperature=0, max_tokens=24)
    for said, answer in zip(QUESTIONS, (first, second), strict=True):
        done = session.chat(said)
        assert done.token_ids == answer["token_ids"]
        assert done.usage.prompt_tokens == answer["prompt_tokens"]
    assert session.messages == messages
    assert second["restored"]
    assert second["cached_tokens"] >= first["prompt_tokens"]
    assert not anew["restored"]
    assert anew["because"]
    assert (anew["token_ids"], anew["cached_tokens"]) == (second["token_ids"], 0)


def test_the_cache_of_all_comes_back_for_its_owners_only(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "all.cache"
    told = model.generate(LONG, max_tokens=12, temperature=0, owner="a")
    model.generate("Something else: " + LONG, max_tokens=2, temperature=0, owner="b")
    done = model.save_cache(path)
    assert {"a", "b"} <= set(done.owners)
    with api.load("builtin:smollm2", context=512, threads=1, isolate=True) as other:
        assert other.load_cache(path) == done
        assert other.generate(LONG, max_tokens=2, temperature=0, owner="c").usage.cached_tokens == 0
        again = other.generate(LONG, max_tokens=12, temperature=0, owner="a")
        assert again.usage.cached_tokens == again.usage.prompt_tokens - 1
        assert again.token_ids == told.token_ids
        assert other.save_cache(tmp_path / "again.cache").n_states >= 2


def test_other_settings_or_another_model_refuse_it(tmp_path: Path, model: Model, smollm2_q8: Path) -> None:
    path = tmp_path / "all.cache"
    model.generate(LONG, max_tokens=2, temperature=0)
    model.save_cache(path)
    others: list[tuple[Any, dict[str, Any], str]] = [
        ("builtin:smollm2", {"kv_type": "Q8_0"}, "KV type"),
        ("builtin:smollm2", {"parallel": 2}, "parallel"),
        (smollm2_q8, {}, "another model file"),
    ]
    for source, settings, says in others:
        with (
            api.load(source, context=512, threads=1, **settings) as other,
            pytest.raises(BadInputError, match=says),
        ):
            other.load_cache(path)

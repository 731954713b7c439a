"""Workload files: those that ship, and what a file must not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgellm import workload
from edgellm.errors import BadInputError, MissingInputError, SpecError
from edgellm.formats.records import from_json, to_json
from edgellm.workload import Workload


def make(**changes: Any) -> Workload:
    fields: dict[str, Any] = {"id": "x", "about": "a test", "regime": "engine", "n_gen": 1}
    return Workload(**{**fields, **changes})


def test_shipped_workloads_load_and_are_called_like_their_files() -> None:
    assert {"pp512", "tg128", "chat", "load", "memory"} <= set(workload.available())
    for name in workload.available():
        found = workload.load(name)
        assert found.id == name
        assert found.about.endswith(".")
        assert len(found.about) > 40


def test_the_engine_pair_is_llama_benchs_default() -> None:
    pp512, tg128 = workload.load("pp512"), workload.load("tg128")
    assert (pp512.regime, pp512.n_prompt, pp512.n_gen, pp512.n_depth, pp512.reps) == ("engine", 512, 0, 0, 5)
    assert (tg128.regime, tg128.n_prompt, tg128.n_gen, tg128.n_depth, tg128.reps) == ("engine", 0, 128, 0, 5)


def test_chat_has_prompts_of_different_lengths() -> None:
    chat = workload.load("chat")
    words = [len(prompt.split()) for prompt in chat.prompts]
    assert len(set(words)) == len(words) == 4
    assert min(words) < 10
    assert max(words) > 140
    assert (chat.regime, chat.n_gen, chat.reps) == ("text", 64, 1)


def test_a_path_is_loaded_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('id = "mine"\nabout = "longer"\nregime = "engine"\nn_gen = 256\n')
    assert workload.load(str(path)).n_gen == 256


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(SpecError, match="unknown workload 'tg129'") as caught:
        workload.load("tg129")
    assert "tg128" in (caught.value.hint or "")
    with pytest.raises(SpecError):
        workload.load("../workloads/tg128")


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError):
        workload.load(str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    "text",
    [
        "id = ",
        'id = "x"\nabout = "y"\nregime = "engine"\nn_gen = 1\nspeed = 3\n',
        'id = "x"\nabout = "y"\nregime = "warp"\nn_gen = 1\n',
        'id = "x"\nabout = "y"\nregime = "engine"\nn_gen = "many"\n',
        'id = "x"\nabout = "y"\nregime = "engine"\n',
        'id = "x"\n',
        "\x00",
    ],
)
def test_malformed_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(BadInputError, match=r"bad\.toml"):
        workload.load(str(path))


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "big.toml"
    path.write_bytes(b"#" * (workload.MAX_WORKLOAD_BYTES + 1))
    with pytest.raises(BadInputError, match="larger than"):
        workload.load(str(path))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_prompt", -1),
        ("n_gen", (1 << 20) + 1),
        ("n_depth", -1),
        ("reps", 0),
        ("reps", 1001),
        ("invocations", 0),
        ("warmup_reps", -1),
        ("cool_down_s", -0.1),
        ("cool_down_s", float("nan")),
    ],
)
def test_bounds(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is"):
        make(**{name: value})


def test_regimes_need_what_they_measure() -> None:
    with pytest.raises(ValueError, match="n_prompt or n_gen"):
        make(n_gen=0)
    with pytest.raises(ValueError, match="prompts and n_gen"):
        make(regime="text")
    with pytest.raises(ValueError, match="prompts and n_gen"):
        make(regime="text", prompts=["Hello"], n_gen=0)


def test_round_trip() -> None:
    chat = workload.load("chat")
    assert from_json(Workload, to_json(chat), "test") == chat

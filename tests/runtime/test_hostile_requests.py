"""Templates and constraints that explode, through a real model: one error each, and the others do not notice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgellm import api
from edgellm.errors import BadInputError, EdgeLLMError, SpecError
from edgellm.formats.gguf import read_gguf
from edgellm.runtime.isolate import IsolatedEngine
from edgellm.runtime.model import Model
from tests.support.hostile_specs import GRAMMARS, PATTERNS, SCHEMAS

STORY = "Once upon a time, in a village by the sea, there lived"
TEMPLATE = (
    "{% set c=messages[0].content %}{% if c=='loop' %}{% for i in range(99999) %}{% for j in range(99999) %}"
    "{% endfor %}{% endfor %}{% elif c=='write' %}{% for i in range(99999) %}{{ c*9999 }}{% endfor %}"
    "{% elif c=='raise' %}{{ raise_exception('no') }}{% endif %}{{ c }}"
)
BAD_MESSAGES = {
    "loop": "it computes too long or too much", "write": "it writes more|it computes too long or too much",
    "raise": "no",
}  # fmt: skip
BAD_CONSTRAINTS: list[dict[str, Any]] = [
    {"json_schema": SCHEMAS[name]}
    for name in (
        "cycle",
        "very deep",
        "pattern of patterns",
        "minItems",
        "doubled anyOf",
        "larger product",
        "required",
    )
]
BAD_CONSTRAINTS += [
    {"grammar": GRAMMARS[name]}
    for name in ("left recursion", "repeated", "nullable rules", "gbnf parentheses")
]
BAD_CONSTRAINTS += [{"regex": PATTERNS[name]} for name in ("repeated", "dots", "classes")]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Path:
    """The embedded model with another template, as long as its own."""
    own = read_gguf(smollm2_gguf).get("tokenizer.chat_template", str, "").encode()
    other = TEMPLATE.encode() + b"{#" + b"x" * (len(own) - len(TEMPLATE) - 4) + b"#}"
    assert len(other) == len(own)
    content = smollm2_gguf.read_bytes()
    assert content.count(own) == 1
    made = tmp_path_factory.mktemp("m") / "hostile.gguf"
    made.write_bytes(content.replace(own, other))
    return made


@pytest.fixture(scope="module", params=[False, True], ids=["here", "isolated"])
def model(request: pytest.FixtureRequest, path: Path) -> Iterator[Model]:
    with api.load(path, context=256, threads=1, parallel=2, isolate=request.param) as opened:
        yield opened


class Neighbour(threading.Thread):
    """Another user of the model, who asks the same again and again and compares."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self._model = model
        self._expected = self._ask()
        self._over = threading.Event()
        self.n_asked = 0
        self.wrong: list[object] = []

    def _ask(self) -> list[int]:
        return self._model.generate(
            STORY, max_tokens=24, temperature=0, cache_prompt=False, owner="neighbour"
        ).token_ids

    def run(self) -> None:
        while not self._over.is_set() or not self.n_asked:
            try:
                found: object = self._ask()
            except Exception as err:
                found = err
            self.n_asked += 1
            if found != self._expected:
                self.wrong.append(found)

    def __enter__(self) -> Neighbour:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


def test_a_template_that_explodes_is_the_error_of_who_asked(model: Model) -> None:
    with Neighbour(model) as neighbour:
        for content, words in BAD_MESSAGES.items():
            with pytest.raises(
                BadInputError, match=rf"the model's chat template fails: .*({words})"
            ) as caught:
                model.generate([{"role": "user", "content": content}], max_tokens=1)
            assert "\n" not in caught.value.message
        assert model.generate([{"role": "user", "content": "Hello"}], max_tokens=2).token_ids
    assert neighbour.wrong == []
    assert neighbour.n_asked


def test_a_constraint_that_explodes_is_the_error_of_who_asked(model: Model) -> None:
    tried = BAD_CONSTRAINTS[:: 3 if isinstance(model._engine, IsolatedEngine) else 1]  # the same code in both
    refused: list[str] = []
    with Neighbour(model) as neighbour:
        for constraint in tried:
            try:
                model.generate("x", max_tokens=4, temperature=0, **constraint)
            except SpecError as err:
                refused.append(err.message)
        plain = model.generate(STORY, max_tokens=4, temperature=0, json_schema={"type": "integer"})
    assert len(refused) >= len(tried) // 2
    assert not any("\n" in message for message in refused)
    assert plain.text.strip().lstrip("-").isdecimal()
    assert neighbour.wrong == []


def test_a_prompt_of_ten_megabytes_is_refused_and_the_others_go_on(model: Model) -> None:
    with Neighbour(model) as neighbour:
        for text in ("x" * 10_000_000, " " * 10_000_000, "\U0001f600" * 2_500_000, "a b\n" * 2_500_000):
            with pytest.raises(EdgeLLMError, match="the context holds 256") as caught:
                model.generate(text, max_tokens=1)
            assert caught.value.exit_code == 65
    assert neighbour.wrong == []

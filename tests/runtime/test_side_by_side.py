"""Real models side by side: adapters, guesses, saved prefixes and company change no token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgellm import api
from edgellm.errors import BadInputError, MissingInputError
from edgellm.runtime.model import Model
from tests.support import tiny_lora

STORIES = [
    "Once upon a time there was a",
    "The capital of France is",
    "One, two, three, four, one, two, three,",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """A tiny random base as GGUF, and two random adapters of it."""
    return tiny_lora.write(tmp_path_factory.mktemp("tiny"))


def load_tiny(tiny: tuple[Path, dict[str, Path]], parallel: int) -> Model:
    base, adapters = tiny
    names = {name: str(path) for name, path in adapters.items()}
    return api.load(base, context=128, threads=1, parallel=parallel, adapters=names)


def test_two_adapters_and_none_at_once_equal_each_alone(tiny: tuple[Path, dict[str, Path]]) -> None:
    asked = [{}, {"red": 1.0}, {"blue": 1.0}, {"red": 0.5, "blue": 2.0}, {}, {"red": 1.0}]
    options = {"max_tokens": 24, "temperature": 0, "cache_prompt": False}
    with load_tiny(tiny, 1) as model:
        alone = [model.generate("in the end", adapters=a, **options).token_ids for a in asked]  # type: ignore[arg-type]
    with load_tiny(tiny, 4) as model:
        streams = [model.stream("in the end", adapters=a, **options) for a in asked]  # type: ignore[arg-type]
        together = [[t for piece in stream for t in piece.token_ids] for stream in streams]
        assert together == alone
        assert len({tuple(ids) for ids in alone}) == 4
        beside = model.stream("in the end", **options)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="unknown adapter 'green'"):
            model.stream("in", adapters={"green": 1.0}, max_tokens=1)
        assert [t for piece in beside for t in piece.token_ids] == alone[0]
        with pytest.raises(ValueError, match="scale"):
            model.stream("in", adapters={"red": float("nan")}, max_tokens=1)
        assert model.generate("in the end", **options).token_ids == alone[0]  # type: ignore[arg-type]


def test_what_is_no_adapter_is_refused(
    tiny: tuple[Path, dict[str, Path]], smollm2_gguf: Path, tmp_path: Path
) -> None:
    base, adapters = tiny
    with pytest.raises(BadInputError, match="a model, not an adapter"):
        api.load(base, adapters={"red": str(base)})
    with pytest.raises(MissingInputError, match="no adapter"):
        api.load(base, adapters={"red": str(tmp_path)})
    with pytest.raises(BadInputError, match="an adapter of another model"):
        api.load(smollm2_gguf, context=64, adapters={"red": str(adapters["red"])})


@pytest.fixture(scope="module")
def alone(smollm2_gguf: Path) -> list[list[int]]:
    """What each story becomes on an idle machine, one by one, without guesses."""
    with api.load(smollm2_gguf, context=256, cache_bytes=0) as model:
        return [
            model.generate(story, max_tokens=24, temperature=0, speculate=False, cache_prompt=False).token_ids
            for story in STORIES
        ]


@pytest.fixture(scope="module")
def busy(smollm2_gguf: Path) -> Iterator[Model]:
    with api.load(smollm2_gguf, context=256, parallel=3) as model:
        yield model


@pytest.mark.parametrize("speculate", [True, False])
def test_greedy_answers_in_company_equal_those_alone(
    busy: Model, alone: list[list[int]], speculate: bool
) -> None:
    streams = [busy.stream(s, max_tokens=24, temperature=0, speculate=speculate) for s in STORIES * 2]
    found = [[t for piece in stream for t in piece.token_ids] for stream in streams]
    assert found == alone * 2


def test_a_seed_gives_one_text_whatever_goes_on_beside(busy: Model) -> None:
    options = {"max_tokens": 16, "temperature": 0.9, "seed": 5}
    first = busy.generate(STORIES[2], **options, speculate=False).token_ids  # type: ignore[arg-type]
    beside = busy.stream(STORIES[0], max_tokens=60, temperature=0)
    assert busy.generate(STORIES[2], **options).token_ids == first  # type: ignore[arg-type]
    beside.close()


SAMPLING: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.9, "top_k": 5, "seed": 3},
    {"temperature": 1.1, "top_p": 0.8, "min_p": 0.02, "seed": 11},
    {"temperature": 0.7, "repeat_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.2, "seed": 5},
    {"temperature": 0, "repeat_penalty": 1.3, "logit_bias": {28: 2.0}},
    {"temperature": 0.8, "seed": 2, "regex": "( (one|two|three|four),){12}"},
    {
        "temperature": 0.8, "seed": 4,
        "json_schema": {
            "type": "object", "required": ["first", "second"], "additionalProperties": False,
            "properties": {name: {"type": "string", "maxLength": 12} for name in ("first", "second")},
        },
    },
]  # fmt: skip


def test_guesses_change_no_token_however_it_is_drawn(busy: Model) -> None:
    prompt = "one, two, three, four, one, two, three, four, one, two, three, four, one,"
    n_right = 0
    for options in SAMPLING:
        plain = busy.generate(prompt, max_tokens=24, speculate=False, **options)
        assert plain.usage.drafted_tokens == 0
        guessed = busy.generate(prompt, max_tokens=24, **options)
        assert guessed.token_ids == plain.token_ids, options
        n_right += guessed.usage.accepted_tokens
    assert n_right > 0


def test_a_copied_or_saved_prefix_gives_the_same_text(smollm2_gguf: Path) -> None:
    long = "A list of animals: cat, dog, horse, cow, sheep, goat, pig, hen, duck, goose, rabbit, mouse, rat, and then a "
    with api.load(smollm2_gguf, context=256, parallel=2) as model:
        expected = model.generate(long, max_tokens=12, temperature=0, cache_prompt=False).token_ids
        model.generate(long + "wolf which ate", max_tokens=2, temperature=0)
        copied = model.generate(long, max_tokens=12, temperature=0)
        assert copied.usage.cached_tokens > 20
        for i in range(2):
            model.generate(
                f"{i} is a number that has nothing to do with the others, as everyone knows well. " * 2,
                max_tokens=1,
            )
        saved = model.generate(long, max_tokens=12, temperature=0)
        assert saved.usage.cached_tokens > 20
        assert copied.token_ids == saved.token_ids == expected

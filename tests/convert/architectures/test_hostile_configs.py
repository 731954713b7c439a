"""config.json of every family with wrong, huge and missing values: planned, or refused in one line."""

from __future__ import annotations

import dataclasses
import json
import random
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from edgellm import targets
from edgellm.checkpoint import Checkpoint, open_checkpoint
from edgellm.convert import header, pipeline, writer
from edgellm.convert.recipe import ConvertOptions, make_recipe
from edgellm.errors import EdgeLLMError
from edgellm.formats.plain_json import Fields, parse_json
from tests.support.families import ROWS
from tests.support.families.shapes import describe

SAMPLES_PER_ROW = 60
TARGET = targets.load("rpi5")
MORE_MEMORY_BYTES = 512 << 20
REMOVED = object()
VALUES: list[Any] = [
    REMOVED, None, True, False, 0, 1, 2, 3, -1, 7, 1023, 2**31, 2**32, 2**63, -(2**63), 2**200, 0.0, 0.5, -0.5, 1.5, 1e-40,
    1e39, 1e308, float("nan"), "", "x", "1", "default", "linear", "gelu", "x" * 100_000, [], [1], [-1, 2.5], ["x"],
    [1] * 20_000, [[]], {}, {"type": "linear", "factor": 2.0}, {"x": {"x": {}}}, {"factor": None, "type": 7},
]  # fmt: skip
Place = tuple[str, ...]


class Change(NamedTuple):
    """One value of a configuration and what takes its place."""

    place: Place
    value: Any

    def __str__(self) -> str:
        return f"{'.'.join(self.place)} = {'removed' if self.value is REMOVED else repr(self.value)[:60]}"


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return describe(ROWS.values(), tmp_path_factory.mktemp("shapes"))


@pytest.fixture
def little_memory() -> Iterator[None]:
    """An allocation by a size that a file names fails here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + MORE_MEMORY_BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def plan(checkpoint: Checkpoint, folder: Path) -> int:
    """All that a conversion does with config.json; returns the bytes of the header."""
    source = pipeline.read_source(checkpoint)
    recipe = make_recipe(TARGET, source, ConvertOptions())
    path = folder / "header.gguf"
    writer.write_header(path, source, recipe.tensor_types, header.model_header(source, recipe))
    return path.stat().st_size


def places_read(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[Place]:
    """The values of config.json that the family looks at."""
    seen: dict[Place, None] = {("architectures",): None}
    real = Fields._value

    def noted(self: Fields, name: str, default: object, expected: str) -> Any:
        seen[(*self.prefix.split(".")[:-1], name)] = None
        return real(self, name, default, expected)

    with monkeypatch.context() as patch:
        patch.setattr(Fields, "_value", noted)
        plan(checkpoint, folder)
    return list(seen)


def changed(config: dict[str, Any], change: Change) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(config))
    parent = copy
    for key in change.place[:-1]:
        if not isinstance(parent.get(key), dict):
            parent[key] = {}
        parent = parent[key]
    if change.value is REMOVED:
        parent.pop(change.place[-1], None)
    else:
        parent[change.place[-1]] = change.value
    return copy


def draw_changes(name: str, config: dict[str, Any], places: list[Place]) -> list[list[Change]]:
    """The same every time: mostly one change, sometimes two at once."""
    draw = random.Random(name)

    def one() -> Change:
        place = draw.choice(places)
        old: Any = config
        for key in place:
            old = old.get(key) if isinstance(old, dict) else None
        near = [old + 1, old - 1, old * 2, -old, float(old), str(old)] if type(old) in (int, float) else []
        return Change(place, draw.choice([*VALUES, *near, *near]))

    return [[one() for _ in range(draw.choice([1, 1, 1, 2]))] for _ in range(SAMPLES_PER_ROW)]


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", ROWS)
def test_any_value_is_planned_or_refused_in_one_line(
    directories: dict[str, Path], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(directories[name])
    places = places_read(checkpoint, monkeypatch, tmp_path)
    assert len(places) > 10
    assert refusal(checkpoint, checkpoint.config, tmp_path, "nothing changed") is None
    refusals = []
    for changes in draw_changes(name, checkpoint.config, places):
        config = checkpoint.config
        for change in changes:
            config = changed(config, change)
        said = " and ".join(map(str, changes))
        refusals.append(refusal(checkpoint, config, tmp_path, said))
        if refusals[-1] is not None:
            assert refusals[-1].exit_code in (64, 65, 69), f"{said}: {refusals[-1]!r}"
            assert "\n" not in refusals[-1].message, said
            assert len(refusals[-1].message) < 600, said
    assert len(set(map(str, refusals))) > 10


def refusal(checkpoint: Checkpoint, config: dict[str, Any], folder: Path, said: str) -> EdgeLLMError | None:
    """Why that configuration is refused; None where it is planned."""
    try:
        parsed = parse_json(json.dumps(config).encode(), "config.json")
        assert plan(dataclasses.replace(checkpoint, config=parsed), folder) > 0, said
    except EdgeLLMError as err:
        return err
    except Exception as err:
        raise AssertionError(f"{said}: {type(err).__name__}: {err}") from err
    return None

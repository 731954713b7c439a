"""Constraints over the embedded model and its real vocabulary, through the batcher."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from edgellm.api import models
from edgellm.native.llama import LlamaBatcher, LlamaModel, LlamaOptions
from edgellm.protocols import Feed, SamplingParams
from edgellm.runtime import chat, tool_formats, tools
from edgellm.runtime.constraints import Constraints, ConstraintSpec, TokenConstraint
from edgellm.runtime.tool_parser import ToolCallParser
from edgellm.runtime.tools import ToolChoice
from tests.support.fake_backend import FakeBackend
from tests.support.schemas import Schema, schemas
from tests.support.tool_templates import TOOLS

FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER
N_SCHEMAS = 20


@pytest.fixture(scope="module")
def backend(smollm2_gguf: Path) -> Iterator[LlamaModel]:
    model = models.open_backend(smollm2_gguf, LlamaOptions(n_threads=2))
    yield model
    model.close()


@pytest.fixture(scope="module")
def batcher(backend: LlamaModel) -> Iterator[LlamaBatcher]:
    opened = backend.open(n_sequences=N_SCHEMAS, context=288)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def compiler(backend: LlamaModel) -> Constraints:
    return Constraints(backend)


def prompt(backend: LlamaModel, question: str) -> list[int]:
    text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return backend.tokenize(text, add_special=False, parse_special=True)


def write(
    backend: LlamaModel,
    batcher: LlamaBatcher,
    prompts: Sequence[list[int]],
    constraints: Sequence[TokenConstraint],
    *,
    temperature: float = 0,
    max_tokens: int = 200,
    draft: bool = False,
) -> tuple[list[str], int]:
    """What the model writes after each prompt, all side by side; and the steps that it took."""
    texts = [bytearray() for _ in prompts]
    waiting = dict(enumerate(prompts))
    sampling = [SamplingParams(temperature=temperature, seed=seed) for seed in range(len(prompts))]
    n_steps = 0
    for i in waiting:
        batcher.free(i)
    while waiting and n_steps < max_tokens:
        n_steps += 1
        feeds = [
            Feed(
                sequence=i,
                tokens=tokens,
                sampling=sampling[i],
                constraint=constraints[i],
                draft=constraints[i].forced_tokens() if draft else (),
            )
            for i, tokens in waiting.items()
        ]
        for feed, done in zip(feeds, batcher.step(feeds), strict=True):
            for token in done.tokens:
                texts[feed.sequence] += backend.token_bytes(token)
            waiting[feed.sequence] = done.tokens[-1:]
            if constraints[feed.sequence].is_complete:
                del waiting[feed.sequence]
    return [text.decode() for text in texts], n_steps


def random_schemas() -> list[Schema]:
    found: list[Schema] = []

    @settings(
        max_examples=N_SCHEMAS,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.tuples(schemas, schemas).map(lambda pair: {"a": pair[0], "b": pair[1]}))
    def collect(pair: dict[str, Schema]) -> None:
        definitions = {**pair["a"].get("$defs", {})}
        if not definitions and not pair["b"].get("$defs"):
            found.append(
                {"type": "object", "properties": pair, "required": ["a"], "additionalProperties": False}
            )
        else:
            found.append(pair["a"] if definitions else pair["b"])

    collect()
    return found[:N_SCHEMAS]


@pytest.mark.parametrize("temperature", [0, 1])
def test_every_answer_is_valid_or_the_beginning_of_a_valid_one(
    backend: LlamaModel, batcher: LlamaBatcher, compiler: Constraints, temperature: float
) -> None:
    asked = random_schemas()
    specs = [ConstraintSpec(kind="json_schema", text=json.dumps(schema)) for schema in asked]
    question = prompt(backend, "Write an example in JSON.")
    constraints = [compiler.prepare(spec) for spec in specs]
    texts, _ = write(backend, batcher, [question] * len(asked), constraints, temperature=temperature)
    by_bytes = Constraints(FakeBackend())
    n_whole = 0
    for schema, spec, constraint, text in zip(asked, specs, constraints, texts, strict=True):
        if constraint.is_complete:
            n_whole += 1
            jsonschema.validate(
                json.loads(text), schema, jsonschema.Draft202012Validator, format_checker=FORMATS
            )
        else:
            beginning = by_bytes.prepare(spec)
            for byte in text.encode():
                beginning.accept(byte)
    assert len(asked) == N_SCHEMAS
    assert n_whole > N_SCHEMAS // 2


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize(
    ("spec", "pattern"),
    [
        (ConstraintSpec(kind="regex", text=r"\d{3}-\d{4}"), r"\d{3}-\d{4}"),
        (ConstraintSpec(kind="regex", text="(Paris|London|Rome), é{2}漢😀"), "(Paris|London|Rome), éé漢😀"),
        (ConstraintSpec(kind="grammar", text='start: "yes" | "no" (" and " /[a-z]{1,5}/){1,2}'),
         "yes|no( and [a-z]{1,5}){1,2}"),
        (ConstraintSpec(kind="grammar", text='root ::= [1-9] ("," [1-9]){2} "."?'), r"[1-9](,[1-9]){2}\.?"),
    ],
)  # fmt: skip
def test_patterns_and_grammars_hold(
    backend: LlamaModel,
    batcher: LlamaBatcher,
    compiler: Constraints,
    spec: ConstraintSpec,
    pattern: str,
    temperature: float,
) -> None:
    questions = [prompt(backend, f"Question {i}: what is it?") for i in range(3)]
    constraints = [compiler.prepare(spec) for _ in questions]
    texts, _ = write(backend, batcher, questions, constraints, temperature=temperature)
    for text, constraint in zip(texts, constraints, strict=True):
        assert constraint.is_complete
        assert re.fullmatch(pattern, text, re.ASCII)


def test_forced_tokens_as_drafts_save_steps_and_change_nothing(
    backend: LlamaModel, batcher: LlamaBatcher, compiler: Constraints
) -> None:
    names = ["temperature_in_degrees", "name_of_the_city", "probability_of_rain"]
    schema = {
        "type": "object",
        "properties": {name: {"type": "integer", "minimum": 1, "maximum": 99} for name in names},
        "required": names,
        "additionalProperties": False,
    }
    spec = ConstraintSpec(kind="json_schema", text=json.dumps(schema))
    question = prompt(backend, "The weather in Rome?")
    found = [
        write(backend, batcher, [question], [compiler.prepare(spec)], draft=draft) for draft in (False, True)
    ]
    assert found[0][0] == found[1][0]
    assert found[1][1] < found[0][1]
    assert list(json.loads(found[1][0][0])) == names


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("name", ["get_weather", "now"])
def test_a_named_tool_is_always_the_one_that_is_called(
    backend: LlamaModel, batcher: LlamaBatcher, compiler: Constraints, name: str, temperature: float
) -> None:
    template = backend.chat_template
    assert template is not None
    checked = tools.check_tools(TOOLS)
    tool_format = tool_formats.of_template(template)
    choice: Any = tools.check_choice({"type": "function", "function": {"name": name}}, checked)
    assert choice == ToolChoice(mode="named", name=name)
    spec = tools.forced_call(
        tool_format,
        checked,
        choice,
        parallel=True,
        control_tokens=tool_formats.control_tokens(tool_format, backend),
    )
    assert spec is not None
    questions = []
    for question in ("What time is it?", "Tell me a joke.", "Weather in Paris for 3 days, in F?"):
        rendered = chat.render(
            template, [{"role": "user", "content": question}], bos_token="", eos_token="", tools=checked[1:]
        )
        questions.append(backend.tokenize(rendered, add_special=False, parse_special=True))
    texts, _ = write(
        backend,
        batcher,
        questions,
        [compiler.prepare(spec) for _ in questions],
        temperature=temperature,
        max_tokens=100,
    )
    parameters = next(t["function"].get("parameters", {}) for t in checked if t["function"]["name"] == name)
    for text in texts:
        parser = ToolCallParser(tool_format, [t["function"]["name"] for t in checked])
        shown, calls = parser.push(text)
        assert shown + parser.finish()[0] == ""
        assert [call.name for call in calls] == [name]
        jsonschema.validate(json.loads(calls[0].arguments), parameters)

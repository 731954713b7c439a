"""Definitions of functions: checked, shown to the model, and calls enforced in the format of its template."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import pytest

from edgellm.errors import BadInputError, SpecError
from edgellm.runtime import chat, tool_formats, tools
from edgellm.runtime.constraints import Constraints, ConstraintSpec
from edgellm.runtime.tool_formats import HERMES, JSON, LLAMA3, MISTRAL, ToolFormat
from edgellm.runtime.tool_parser import ToolCallParser
from edgellm.runtime.tools import ToolChoice
from tests.support import tool_templates as templates
from tests.support.fake_backend import END, TURN, VOCAB_SIZE, FakeBackend
from tests.support.tool_templates import NOW, TOOLS, WEATHER

HELLO = [{"role": "user", "content": "Hello"}]
CALLED = [
    *HELLO,
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Århus"}'}}
    ]},
    {"role": "tool", "tool_call_id": "abcdefghi",
     "content": [{"type": "text", "text": "rain, "}, {"type": "text", "text": "9 °C"}]},
]  # fmt: skip


def render(template: str, messages: Any = HELLO, given: Any = TOOLS) -> str:
    return chat.render(template, messages, bos_token="<s>", eos_token="</s>", tools=tools.check_tools(given))


def function(**changes: Any) -> dict[str, Any]:
    return {"type": "function", "function": {**NOW["function"], **changes}}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (templates.HERMES, HERMES), (templates.MISTRAL, MISTRAL), (templates.LLAMA3, LLAMA3), (templates.NO_TOOLS, JSON),
        (None, JSON), ("{{ tools }} <tool_call><function=name>", JSON), ("{{ tools }}[TOOL_CALLS]name[ARGS]{}", JSON),
        ("{{ tools | tojson }}", JSON), ("<tool_call> without the list", JSON),
        ('{{ tools }}<|start_header_id|> a function call: {"name": x, "parameters": y}', LLAMA3),
    ],
)  # fmt: skip
def test_the_format_is_what_the_template_writes(template: str | None, expected: ToolFormat) -> None:
    assert tool_formats.of_template(template) == expected


def test_a_template_that_knows_tools_is_given_them() -> None:
    for template in (templates.HERMES, templates.MISTRAL, templates.LLAMA3):
        shown = render(template)
        assert '"get_weather"' in shown
        assert '"now"' in shown
        assert "You can call functions" not in shown
        assert "get_weather" not in render(template, given=[])


def test_a_template_that_knows_no_tools_shows_them_in_the_system_message() -> None:
    text = tool_formats.instructions(tools.check_tools(TOOLS))
    assert render(templates.NO_TOOLS) == f"<|system|>{text}<|user|>Hello<|assistant|>"
    system = [{"role": "system", "content": "Be brief."}, *HELLO]
    assert render(templates.NO_TOOLS, system).startswith(f"<|system|>Be brief.\n\n{text}<|user|>")
    assert [json.loads(line)["name"] for line in text.splitlines()[-2:]] == ["get_weather", "now"]
    assert '{"name": "<its name>", "arguments": {<its arguments>}}' in text


def test_calls_and_results_are_given_to_templates_that_know_them() -> None:
    shown = render(templates.HERMES, CALLED)
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Århus"}}\n</tool_call>' in shown
    assert "<|im_start|>tool\nrain, 9 °C<|im_end|>" in shown
    assert "None" not in shown
    shown = render(templates.MISTRAL, CALLED)
    assert '[{"name": "get_weather", "arguments": {"city": "Århus"}, "id": "abcdefghi"}]</s>' in shown
    assert '"call_id": "abcdefghi"' in shown
    assert '{"name": "get_weather", "parameters": {"city": "Århus"}}' in render(templates.LLAMA3, CALLED)


def test_calls_and_results_are_plain_messages_for_other_templates() -> None:
    again = [
        *CALLED,
        {"role": "tool", "content": "12:00", "name": "now"},
        {"role": "user", "content": "Thanks"},
    ]
    assert render(templates.NO_TOOLS, again, given=[]) == (
        '<|user|>Hello<|assistant|>{"name": "get_weather", "arguments": {"city": "Århus"}}'
        "<|user|>Result of get_weather:\nrain, 9 °C\n\nResult of now:\n12:00<|user|>Thanks<|assistant|>"
    )


def test_arguments_are_text_for_templates_that_print_them() -> None:
    printed = "{% for c in m.tool_calls %}{{ c.function.arguments }}{% endfor %}"
    template = "{% for m in messages %}" + printed + "{% endfor %}{# tools <tool_call> #}"
    assert render(template, CALLED, given=[]) == '{"city": "Århus"}'


def test_what_the_template_says_about_a_call_is_one_line() -> None:
    bad = [*HELLO, {"role": "assistant", "tool_calls": [{"id": "x", "function": {"name": "f"}}]}]
    with pytest.raises(BadInputError, match="length 9"):
        render(templates.MISTRAL, bad)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "user", "content": None, "tool_calls": [{"function": {"name": "f"}}]}, "tool_calls of role 'user'"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "content is NoneType"),
        ({"role": "assistant", "tool_calls": {}}, "no list"),
        ({"role": "assistant", "tool_calls": [{}] * 129}, "no list of at most 128"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "call 0 names no function"),
        ({"role": "assistant", "tool_calls": ["f"]}, "call 0 names no function"),
        ({"role": "assistant", "tool_calls": [{"id": 3, "function": {"name": "f"}}]}, "id of call 0"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, "arguments are not JSON"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}, "arguments are list"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[" * 9999}}]}, "not JSON"),
        ({"role": "tool", "content": "x", "tool_call_id": 3}, "tool_call_id is no text"),
        ({"role": "tool"}, "content is NoneType"),
        ({"role": "user", "content": []}, "content is list"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "part 0 of it 'image_url'"),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": None}]}, "part 1 of it"),
        ({"role": "user", "content": [{"type": "text", "text": "a"}] * 1001}, "1001 parts"),
    ],
)  # fmt: skip
def test_messages_that_are_none_are_refused_by_name(message: Any, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        render(templates.HERMES, [*HELLO, message])
    assert caught.value.message.startswith("message 1: ")
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("x", "tools is str"), (None, "tools is NoneType"), ([NOW] * 129, "129 tools"), (["x"], "tool 0 has no function"),
        ([{}], "tool 0 has no function"), ([NOW, {**NOW, "type": "other"}], "tool 1: type is 'other'"),
        ([{**NOW, "extra": 1}], "unknown field 'extra'"), ([function(foo=1)], "function: unknown field 'foo'"),
        ([function(name="a b")], "name is 'a b'"),
        ([function(name="x" * 65)], "expected 1 to 64"), ([function(name=None)], "name is"),
        ([function(name='a"\n')], "name is"), ([NOW, NOW], "tool 1: a second function named 'now'"),
        ([function(description=3)], "description of now"), ([function(strict="yes")], "strict of now"),
        ([function(parameters=[])], "no schema of type object"), ([function(parameters={"type": "string"})], "no schema of type"),
        ([function(description="x" * 60_000)], "exceed 57344 bytes"), ([function(parameters={"x": {1, 2}})], "not JSON"),
        ([function(parameters={"default": float("nan")})], "not finite"),
        ([function(parameters=json.loads('{"items":' * 70 + "{}" + "}" * 70))], "deeper than 64"),
    ],
)  # fmt: skip
def test_definitions_that_are_none_are_refused_by_name(given: Any, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        tools.check_tools(given)
    assert words in caught.value.message
    assert "\n" not in caught.value.message


def test_a_choice_is_one_of_four() -> None:
    named = {"type": "function", "function": {"name": "now"}}
    assert tools.check_choice(named, TOOLS) == ToolChoice(mode="named", name="now")
    assert [tools.check_choice(mode, TOOLS).mode for mode in ("auto", "none", "required")] == [
        "auto",
        "none",
        "required",
    ]
    assert tools.check_choice("auto", []).mode == "auto"


@pytest.mark.parametrize(
    ("choice", "given", "words"),
    [
        ("any", TOOLS, "tool_choice is 'any'"), (None, TOOLS, "is 'None'"), (["auto"], TOOLS, "tool_choice is"),
        ("required", [], "no tools"), ({"type": "function"}, TOOLS, "names no function"),
        ({"type": "function", "function": {"name": "later"}}, TOOLS, "no tool is named 'later'"),
        ({"type": "function", "function": {"name": "now"}, "x": 1}, TOOLS, "names no function"),
        ({"type": "tool", "function": {"name": "now"}}, TOOLS, "names no function"),
    ],
)  # fmt: skip
def test_another_choice_is_refused(choice: Any, given: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        tools.check_choice(choice, given)


FORMATS = [
    (HERMES, {}),
    (HERMES, {TURN: "<tool_call>"}),
    (MISTRAL, {}),
    (MISTRAL, {TURN: "[TOOL_CALLS]"}),
    (LLAMA3, {}),
    (JSON, {}),
]


def draw(spec: ConstraintSpec, seed: int, visible: dict[int, str]) -> str:
    """A random text under the constraint, with the marks that are control tokens, as the parser wants it."""
    constraint = Constraints(FakeBackend()).prepare(spec)
    rng = np.random.default_rng(seed)
    text = bytearray()
    for _ in range(3000):
        logits = rng.gumbel(size=VOCAB_SIZE).astype(np.float32)
        logits[list(b" \t")] -= 6
        logits[list(b",\n")] += 2
        constraint.mask(logits)
        token = int(logits.argmax())
        constraint.accept(token)
        if token == END:
            break
        text += visible[token].encode() if token in visible else bytes([token])
        if constraint.is_complete:
            break
    assert constraint.is_accepting or token == END
    return text.decode()


@pytest.mark.parametrize(("tool_format", "control"), FORMATS)
@pytest.mark.parametrize("mode", ["named", "required"])
def test_an_enforced_call_is_always_one(tool_format: ToolFormat, control: dict[int, str], mode: Any) -> None:
    choice = ToolChoice(mode=mode, name="get_weather" if mode == "named" else "")
    seen = set()
    for parallel in (False, True):
        spec = tools.forced_call(tool_format, TOOLS, choice, parallel=parallel, control_tokens=control)
        assert spec is not None
        for seed in range(6):
            parser = ToolCallParser(tool_format, ["get_weather", "now"])
            text, calls = parser.push(draw(spec, seed, control))
            rest, late = parser.finish()
            assert text + rest == ""
            calls += late
            assert calls
            seen |= {(call.name, len(calls) > 1) for call in calls}
            for call in calls:
                schema = {t["function"]["name"]: t["function"].get("parameters", {}) for t in TOOLS}[
                    call.name
                ]
                jsonschema.validate(json.loads(call.arguments), schema)
                if call.name == "now":
                    assert call.arguments == "{}"
    if mode == "named":
        assert seen == {("get_weather", False)}
    else:
        assert {name for name, _ in seen} == {"get_weather", "now"}
        assert any(several for _, several in seen) == (tool_format is not LLAMA3)


def test_nothing_is_enforced_where_the_model_decides() -> None:
    for mode in ("auto", "none"):
        assert tools.forced_call(HERMES, TOOLS, ToolChoice(mode=mode), parallel=True) is None


def test_parameters_that_cannot_be_enforced_name_their_function() -> None:
    given = tools.check_tools([NOW, function(name="other", parameters={"properties": {"a": {"not": {}}}})])
    with pytest.raises(SpecError, match="parameters of other at #/properties/a: keyword 'not'"):
        tools.forced_call(JSON, given, ToolChoice(mode="required"), parallel=False)
    assert tools.forced_call(JSON, given, ToolChoice(mode="named", name="now"), parallel=False)


def test_as_many_tools_as_are_allowed_can_be_required() -> None:
    given = tools.check_tools([function(name=f"f{i}", description="d" * 200) for i in range(128)])
    spec = tools.forced_call(HERMES, given, ToolChoice(mode="required"), parallel=True)
    assert spec is not None
    parser = ToolCallParser(HERMES, [])
    assert parser.push(draw(spec, 0, {}))[1]


def test_marks_that_are_control_tokens_are_found() -> None:
    class Marked(FakeBackend):
        def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
            if text == "<tool_call>" and parse_special:
                return [TURN]
            return super().tokenize(text, add_special=add_special, parse_special=parse_special)

    assert tool_formats.control_tokens(HERMES, Marked()) == {TURN: "<tool_call>"}
    assert tool_formats.control_tokens(HERMES, FakeBackend()) == {}
    assert tool_formats.control_tokens(JSON, Marked()) == {}


def test_a_word_of_the_grammar_in_a_description_is_text() -> None:
    assert "%json" in WEATHER["function"]["description"]
    described = function(
        parameters={"description": 'say %json {"not": 1} "', "properties": {"a": {"const": "%json"}}}
    )
    spec = tools.forced_call(
        JSON, tools.check_tools([described]), ToolChoice(mode="required"), parallel=False
    )
    assert spec is not None
    assert json.loads(draw(spec, 1, {}))["name"] == "now"

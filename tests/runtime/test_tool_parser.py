"""Calls found in what a model writes: the same calls and text however it is cut into pieces."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.runtime.tool_formats import FORMATS, HERMES, JSON, LLAMA3, MISTRAL, ToolFormat
from edgellm.runtime.tool_parser import ToolCall, ToolCallParser, new_id

NAMES = ("f", "get_weather")
Found = tuple[str, list[tuple[str, str]]]
F = ("f", '{"a": 1}')


def parse(tool_format: ToolFormat, pieces: list[str]) -> Found:
    ids = itertools.count()
    parser = ToolCallParser(tool_format, NAMES, make_id=lambda: f"id{next(ids)}")
    text, calls = "", []
    for piece in pieces:
        shown, new = parser.push(piece)
        text, calls = text + shown, calls + new
    shown, new = parser.finish()
    calls += new
    assert [(call.index, call.id) for call in calls] == [(i, f"id{i}") for i in range(len(calls))]
    assert parser.n_calls == len(calls)
    return text + shown, [(call.name, call.arguments) for call in calls]


HERMES_F = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


@pytest.mark.parametrize(
    ("tool_format", "written", "expected"),
    [
        (HERMES, "Hello.", ("Hello.", [])),
        (HERMES, HERMES_F, ("", [F])),
        (HERMES, f"Sure.\n{HERMES_F}\n{HERMES_F}\nDone. ", ("Sure.Done. ", [F, F])),
        (HERMES, HERMES_F.replace("\n", "") * 2, ("", [F, F])),
        (HERMES, HERMES_F.removesuffix("</tool_call>"), ("", [F])),
        (HERMES, HERMES_F.removesuffix("_call>"), ("", [F])),
        (HERMES, HERMES_F[:30], (HERMES_F[:30], [])),
        (HERMES, "  a <tool_ b < <tool_call", ("  a <tool_ b < <tool_call", [])),
        (HERMES, "x <tool_call> no JSON </tool_call> y", ("x <tool_call> no JSON </tool_call> y", [])),
        (HERMES, '<tool_call>{"a": 1}</tool_call>', ('<tool_call>{"a": 1}</tool_call>', [])),
        (HERMES, '<tool_call>{"name": "f", }</tool_call>', ('<tool_call>{"name": "f", }</tool_call>', [])),
        (HERMES, "<tool_call><tool_call>" + HERMES_F, ("<tool_call><tool_call>", [F])),
        (HERMES, '<tool_call>{"name": "other", "arguments": {}}</tool_call>', ("", [("other", "{}")])),
        (HERMES, '<tool_call>{"name": "f"}</tool_call>', ("", [("f", "{}")])),
        (HERMES, '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
         ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>', [])),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"t": "</tool_call>}\\"{["}}</tool_call>!',
         ("!", [("f", '{"t": "</tool_call>}\\"{["}')])),
        (HERMES, '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', ("", [F])),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"t": "two\nlines é"}}</tool_call>',
         ("", [("f", '{"t": "two\\nlines é"}')])),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"n": NaN}}</tool_call>',
         ('<tool_call>{"name": "f", "arguments": {"n": NaN}}</tool_call>', [])),
        (HERMES, '<tool_call>{"a":' + "[" * 20_000 + "]" * 20_000 + "}",
         ('<tool_call>{"a":' + "[" * 20_000 + "]" * 20_000 + "}", [])),
        (HERMES, '{"name": "f", "arguments": {"a": 1}}', ('{"name": "f", "arguments": {"a": 1}}', [])),
        (MISTRAL, '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}, "id": "x"}]',
         ("", [F, ("g", "{}")])),
        (MISTRAL, 'Well [TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}]', ("Well", [F])),
        (MISTRAL, '[TOOL_CALLS]{"name": "f", "arguments": {"a": 1}}', ("", [F])),
        (MISTRAL, "[TOOL_CALLS] []", ("[TOOL_CALLS] []", [])),
        (MISTRAL, '[TOOL_CALLS] [{"name": "f"}, 3] x', ('[TOOL_CALLS] [{"name": "f"}, 3] x', [])),
        (MISTRAL, '[TOOL_CALLS] [{"name": "f"', ('[TOOL_CALLS] [{"name": "f"', [])),
        (MISTRAL, "[INST] [TOOL", ("[INST] [TOOL", [])),
        (LLAMA3, '{"name": "f", "parameters": {"a": 1}}', ("", [F])),
        (LLAMA3, ' \n<|python_tag|>{"name": "f", "parameters": {"a": 1}}; {"name": "f", "parameters": {}}',
         ("", [F, ("f", "{}")])),
        (LLAMA3, '<|python_tag|>print("hi")', ('<|python_tag|>print("hi")', [])),
        (LLAMA3, '{"name": "Anna", "parameters": {}}', ('{"name": "Anna", "parameters": {}}', [])),
        (LLAMA3, " <|python", (" <|python", [])),
        (LLAMA3, ' {"answer": 42} ', (' {"answer": 42} ', [])),
        (LLAMA3, 'Hi {"name": "f", "parameters": {}}', ('Hi {"name": "f", "parameters": {}}', [])),
        (JSON, '{"name": "f", "arguments": {"a": 1}}\n{"name": "f", "arguments": {"a": 1}}\n', ("", [F, F])),
        (JSON, '{"name": "f", "parameters": {"a": 1}} and so on', ("and so on", [F])),
        (JSON, '{"name": "f", "arguments"', ('{"name": "f", "arguments"', [])),
        (JSON, "[1, 2]", ("[1, 2]", [])),
        (JSON, "", ("", [])),
        (JSON, "  ", ("  ", [])),
    ],
)  # fmt: skip
def test_calls_and_text_come_apart_at_any_cut(tool_format: ToolFormat, written: str, expected: Found) -> None:
    assert parse(tool_format, [written]) == expected
    assert parse(tool_format, list(written)) == expected
    for size in (2, 3, 7):
        pieces = [written[i : i + size] for i in range(0, len(written), size)]
        assert parse(tool_format, pieces) == expected


FRAGMENTS = st.sampled_from(
    ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<tool", "_call>", "[", "]", "{", "}", '"', "\\", " ", "\n",
     ";", ",", "Hi", "é", '{"name": "f", "arguments": {"a": 1}}', '{"name": "f", "parameters": {}}', '{"x": "<tool_call>"}',
     '[{"name": "f", "arguments": {}}]', '{"name": "zz"}']
)  # fmt: skip


@given(
    st.sampled_from(list(FORMATS.values())),
    st.lists(FRAGMENTS, max_size=12).map("".join),
    st.lists(st.integers(0, 200), max_size=20),
)
def test_any_cut_of_any_text_gives_the_same(tool_format: ToolFormat, written: str, cuts: list[int]) -> None:
    whole = parse(tool_format, [written])
    edges = sorted({0, len(written), *(cut for cut in cuts if cut < len(written))})
    assert parse(tool_format, [written[a:b] for a, b in itertools.pairwise(edges)]) == whole
    assert parse(tool_format, list(written)) == whole
    text, calls = whole
    if not calls:
        assert text == written


@given(st.sampled_from(list(FORMATS.values())), st.lists(FRAGMENTS, max_size=12))
def test_nothing_is_shown_that_later_turns_out_to_be_a_call(
    tool_format: ToolFormat, pieces: list[str]
) -> None:
    ending = ["<tool_c", "all>", '{"name": "f"', ', "arguments": {}}', "</tool_", "call>"]
    text, _ = parse(tool_format, ["".join([*pieces, *ending])])
    parser = ToolCallParser(tool_format, NAMES)
    shown = ""
    for piece in [*pieces, *ending]:
        shown += parser.push(piece)[0]
        assert text.startswith(shown)


def test_text_is_shown_as_soon_as_it_is_no_mark() -> None:
    parser = ToolCallParser(HERMES, NAMES)
    assert [parser.push(piece)[0] for piece in ("Hello", " <", "b>", " <tool", "s>")] == [
        "Hello", "", " <b>", "", " <tools>",
    ]  # fmt: skip
    bare = ToolCallParser(JSON, NAMES)
    assert [bare.push(piece)[0] for piece in (" ", "H", "ello {")] == ["", " H", "ello {"]


def test_a_call_is_handed_out_when_its_json_closes() -> None:
    parser = ToolCallParser(HERMES, NAMES, make_id=lambda: "one")
    assert parser.push('<tool_call>{"name": "f", "arguments": {}') == ("", [])
    assert parser.push("}") == ("", [ToolCall(index=0, id="one", name="f", arguments="{}")])
    assert parser.push("</tool_call>") == ("", [])
    assert parser.finish() == ("", [])


@pytest.mark.timeout(60)
def test_a_long_call_in_small_pieces_is_read_once() -> None:
    arguments = {"text": "x{[\\" * 100_000}
    written = "<tool_call>" + json.dumps({"name": "f", "arguments": arguments})
    text, calls = parse(HERMES, [written[i : i + 8] for i in range(0, len(written), 8)])
    assert text == ""
    assert json.loads(calls[0][1]) == arguments


def test_ids_are_new_and_mistrals_have_nine_characters() -> None:
    ids = {new_id(MISTRAL) for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch("[a-zA-Z0-9]{9}", one) for one in ids)
    assert re.fullmatch("call_[0-9a-f]{24}", new_id(HERMES))


def test_a_name_that_no_function_can_have_is_text() -> None:
    for n_chars in (64, 65):
        name = "n" * n_chars
        written = f'<tool_call>\n{{"name": "{name}", "arguments": {{}}}}\n</tool_call>'
        expected = ("", [(name, "{}")]) if n_chars == 64 else (written, [])
        assert parse(HERMES, [written]) == expected

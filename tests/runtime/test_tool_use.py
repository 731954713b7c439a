"""Functions called by a model over the fake backend: what is shown, what is a call, when the answer ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgellm.errors import SpecError
from edgellm.runtime import tool_use
from edgellm.runtime.isolate import IsolatedEngine
from edgellm.runtime.model import Model
from edgellm.runtime.request import Completion
from tests.runtime.engines import batcher_of, fed, make, over
from tests.samples import make_manifest
from tests.support import tool_templates as templates
from tests.support.fake_backend import END, TURN, FakeBackend
from tests.support.tool_templates import NOW, TOOLS, WEATHER

ASK: list[dict[str, Any]] = [{"role": "user", "content": "What time is it?"}]
ARGUMENTS = '{"city": "Århus", "unit": "C", "days": [1]}'
HERMES_CALL = f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
HERMES_NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
NAMED = {"type": "function", "function": {"name": "get_weather"}}


def hermes(said: str) -> Model:
    return make(said.encode(), chat_template=templates.HERMES, context=4096)


def ask(model: Model, **options: Any) -> Completion:
    return model.generate(ASK, **{"tools": TOOLS, "temperature": 0, **options})


def named(done: Completion) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in done.tool_calls]


def test_a_call_comes_whole_with_the_token_that_ends_it_and_is_not_in_the_text() -> None:
    with hermes(f"Let me see.\n\n{HERMES_CALL}\n") as model:
        pieces = list(model.stream(ASK, tools=TOOLS, temperature=0, speculate=False))
    assert "".join(piece.text for piece in pieces) == "Let me see."
    places = [i for i, piece in enumerate(pieces) if piece.tool_calls]
    assert places == [len(f"Let me see.\n\n{HERMES_CALL}".encode()) - len("\n</tool_call>") - 1]
    (call,) = pieces[places[0]].tool_calls
    assert (call.index, call.name, call.arguments) == (0, "get_weather", ARGUMENTS)
    assert call.id.startswith("call_")
    assert [piece.finish_reason for piece in pieces[-2:]] == [None, "tool_calls"]


def test_several_calls_are_numbered() -> None:
    with hermes(f"{HERMES_CALL}\n{HERMES_NOW}") as model:
        done = ask(model)
        assert named(done) == [("get_weather", ARGUMENTS), ("now", "{}")]
        assert [call.index for call in done.tool_calls] == [0, 1]
        assert len({call.id for call in done.tool_calls}) == 2
        assert (done.text, done.finish_reason) == ("", "tool_calls")


def test_at_most_one_call_ends_the_answer_after_it() -> None:
    with hermes(f"First{HERMES_NOW}\n{HERMES_CALL} and text") as model:
        done = ask(model, parallel_tool_calls=False)
    assert (done.text, named(done), done.finish_reason) == ("First", [("now", "{}")], "tool_calls")
    assert done.usage.completion_tokens == len(f"First{HERMES_NOW}") - len("\n</tool_call>")
    listed = '[TOOL_CALLS] [{"name": "now", "arguments": {}}, {"name": "now", "arguments": {}}]'
    with make(listed.encode(), chat_template=templates.MISTRAL, context=4096) as model:
        assert len(ask(model, parallel_tool_calls=False).tool_calls) == 1
        assert len(ask(model).tool_calls) == 2


@pytest.mark.parametrize("n_missing", [1, 14, 40, len(HERMES_CALL) - 3])
def test_a_call_that_is_cut_off_is_text(n_missing: int) -> None:
    data = f"Hm. {HERMES_CALL}".encode()
    kept = len(data) - n_missing
    with hermes(f"Hm. {HERMES_CALL}") as model:
        done = ask(model, max_tokens=kept)
    assert done.finish_reason == "length"
    if n_missing < len("\n</tool_call>") + 1:  # only the mark behind it was
        assert (done.text, named(done)) == ("Hm.", [("get_weather", ARGUMENTS)])
    else:
        assert (done.text, done.tool_calls) == (data[:kept].decode(), [])


def test_what_looked_like_a_call_is_text() -> None:
    for said in ("<tool_call>nothing</tool_call>", "a <tool", "<tool_call>{not json}</tool_call>.", "{}"):
        with hermes(said) as model:
            done = ask(model)
            assert (done.text, done.tool_calls, done.finish_reason) == (said, [], "stop")


def test_a_stop_string_is_looked_for_in_the_text_only() -> None:
    with hermes(f"One. Two. {HERMES_CALL} Three. Four") as model:
        done = ask(model, stop=["Århus", "name", ". F"])
        assert (done.text, named(done)) == ("One. Two.Three", [("get_weather", ARGUMENTS)])
        assert done.finish_reason == "tool_calls"
        done = ask(model, stop=["Two"])
        assert (done.text, done.tool_calls, done.finish_reason) == ("One. ", [], "stop")
        assert done.usage.completion_tokens == len("One. Two")
        assert ask(model, stop=["Two.Three"]).text == "One. "  # the call between them is none of it
    with hermes("The end<tool_call> of E") as model:
        assert ask(model, stop=["<tool_call> of E"]).text == "The end"
        assert ask(model, stop=["EE"]).text == "The end<tool_call> of E"


def test_marks_that_are_control_tokens_are_seen() -> None:
    class Marked(FakeBackend):
        def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
            if parse_special and text == "[TOOL_CALLS]":
                return [TURN]
            return super().tokenize(text, add_special=add_special, parse_special=parse_special)

    script = [*b"So: ", TURN, *b' [{"name": "now", "arguments": {}}]']
    with over(Marked(script, chat_template=templates.MISTRAL), context=4096) as model:
        done = ask(model)
        assert (done.text, named(done), done.finish_reason) == ("So:", [("now", "{}")], "tool_calls")
        assert done.token_ids[4] == TURN
        assert len(done.tool_calls[0].id) == 9
        assert ask(model, tool_choice="none").text == 'So:  [{"name": "now", "arguments": {}}]'


def test_none_shows_the_functions_and_finds_no_calls() -> None:
    with hermes(HERMES_NOW) as model:
        done = ask(model, tool_choice="none")
        assert (done.text, done.tool_calls, done.finish_reason) == (HERMES_NOW, [], "stop")
        assert b'"get_weather"' in bytes(token for token in fed(model)[0] if token < 256)
        assert ask(model, max_tokens=1).usage.cached_tokens == done.usage.prompt_tokens - 1
        assert model.generate(ASK, temperature=0).text == HERMES_NOW
        assert ask(model, tools=[], tool_choice="auto").text == HERMES_NOW


def test_count_tokens_counts_the_functions_too() -> None:
    with hermes("x") as model:
        assert model.count_tokens(ASK, tools=TOOLS) == ask(model).usage.prompt_tokens
        assert model.count_tokens(ASK, tools=TOOLS) > model.count_tokens(ASK) + 100
        with pytest.raises(SpecError, match="tools with a prompt of text"):
            model.count_tokens("Hello", tools=TOOLS)


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        ("Hello", {"tools": TOOLS}, "tools with a prompt of text"),
        ([1, 2], {"tools": TOOLS}, "tools with a prompt of token ids"),
        (ASK, {"tools": "now"}, "tools is str"),
        (ASK, {"tools": [NOW, NOW]}, "a second function named 'now'"),
        (ASK, {"tools": [{**NOW, "function": {"name": "f", "description": "\ud83d"}}]}, "tool 0: not JSON"),
        (ASK, {"tools": TOOLS, "tool_choice": "any"}, "tool_choice is 'any'"),
        (ASK, {"tool_choice": "required"}, "no tools are given"),
        (ASK, {"tool_choice": NAMED, "tools": [NOW]}, "no tool is named 'get_weather'"),
        (ASK, {"tools": TOOLS, "json_schema": {}}, "tools and a json_schema together"),
        (ASK, {"tools": TOOLS, "tool_choice": "required", "regex": "a"}, "tools and a regex together"),
        (ASK, {"tool_choice": "required", "tools": [
            {"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}]}, "parameters of f"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_by_name(
    prompt: Any, options: dict[str, Any], words: str
) -> None:
    with hermes("x") as model:
        with pytest.raises(SpecError) as caught:
            model.stream(prompt, **options)
        assert words in caught.value.message
        assert fed(model) == []
        assert ask(model).text == "x"


def test_a_schema_with_tool_choice_none_holds() -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    with make(None, chat_template=templates.HERMES, context=4096) as model:
        done = ask(model, tool_choice="none", json_schema={**schema, "additionalProperties": False})
    jsonschema.validate(json.loads(done.text), schema)


def check_enforced(done: Completion, names: set[str]) -> None:
    assert (done.text, done.finish_reason) == ("", "tool_calls")
    assert done.tool_calls
    for call in done.tool_calls:
        assert call.name in names
        schema = {t["function"]["name"]: t["function"].get("parameters", {}) for t in TOOLS}[call.name]
        jsonschema.validate(json.loads(call.arguments), schema)


@pytest.mark.parametrize(
    "template", [templates.HERMES, templates.MISTRAL, templates.LLAMA3, templates.NO_TOOLS]
)
def test_an_enforced_call_is_one_whatever_the_model_thinks(template: str) -> None:
    """The fake model draws letters nearly at random."""
    with make(None, chat_template=template, context=4096, parallel=3) as model:
        for choice, names in ((NAMED, {"get_weather"}), ("required", {"get_weather", "now"})):
            options: dict[str, Any] = {"tools": TOOLS, "tool_choice": choice, "temperature": 0.7}
            options["parallel_tool_calls"] = choice is NAMED
            streams = [model.stream(ASK, seed=seed, **options) for seed in range(2)]
            texts = [[token for piece in stream for token in piece.token_ids] for stream in streams]
            for seed in range(2):
                alone = model.generate(ASK, seed=seed, speculate=False, top_logprobs=1, **options)
                check_enforced(alone, names)
                assert alone.token_ids == [token for token in texts[seed] if token != END]
                assert alone.logprobs is not None
                assert [entry.token_id for entry in alone.logprobs] == alone.token_ids


def test_an_enforced_call_that_max_tokens_cuts_is_text() -> None:
    with make(None, chat_template=templates.HERMES, context=4096) as model:
        whole = ask(model, tool_choice=NAMED)
        cut = ask(model, tool_choice=NAMED, max_tokens=30)
        assert (cut.finish_reason, cut.tool_calls) == ("length", [])
        assert cut.text == bytes(whole.token_ids[:30]).decode()
        n_tokens = len([token for token in whole.token_ids if token < 256])
        check_enforced(ask(model, tool_choice=NAMED, max_tokens=n_tokens), {"get_weather"})


def test_a_stream_that_is_left_within_a_call_leaves_the_model_usable() -> None:
    with hermes(HERMES_CALL) as model:
        stream = model.stream(ASK, tools=TOOLS, temperature=0)
        for _ in range(20):
            assert not next(stream).tool_calls
        stream.close()
        assert named(ask(model)) == [("get_weather", ARGUMENTS)]


def test_a_result_goes_back_to_the_model() -> None:
    with hermes(f"Hm.{HERMES_CALL}") as model:
        done = ask(model)
        message = done.as_message()
        assert message["content"] == "Hm."
        (call,) = message["tool_calls"]
        assert call["function"] == {"name": "get_weather", "arguments": ARGUMENTS}
        result = {"role": "tool", "tool_call_id": call["id"], "content": "9 °C"}
        model.generate([*ASK, message, result], tools=TOOLS, max_tokens=1)
        prompt = bytes(t for feed in fed(model) for t in feed if t < 256).decode(errors="replace")
        assert f"Hm.{HERMES_CALL}<|im_end|>" in prompt
        assert "tool\n9 °C" in prompt
        assert batcher_of(model).length(0) > len(HERMES_CALL)
    with make(b"Yes.") as model:
        assert model.generate(ASK, temperature=0).as_message() == {"role": "assistant", "content": "Yes."}


def test_calls_cross_to_a_child_and_back() -> None:
    child = [sys.executable, "-m", "tests.support.engine_child"]
    options: dict[str, Any] = {"tools": TOOLS, "temperature": 0.7, "parallel_tool_calls": False}
    with (
        Model(IsolatedEngine(child, b"any"), make_manifest()) as far,
        make(None, context=30000, parallel=3) as near,
    ):
        for choice in (NAMED, "required"):
            there, here = (
                model.generate(ASK, seed=3, tool_choice=choice, **options) for model in (far, near)
            )
            check_enforced(there, {"get_weather", "now"})
            assert named(there) == named(here)
            assert there.token_ids == here.token_ids
        assert far.count_tokens(ASK, tools=TOOLS) == near.count_tokens(ASK, tools=TOOLS)
        schema = {"not": {}}
        broken = {"type": "function", "function": {"name": "f", "parameters": schema}}
        with pytest.raises(SpecError, match="parameters of f"):
            far.generate(ASK, tools=[WEATHER, broken], tool_choice="required")


def test_half_a_character_in_a_call_harms_nobody() -> None:
    said = HERMES_CALL.replace("Århus", "\\ud83d")
    with hermes(said) as model:
        (call,) = ask(model).tool_calls
        assert json.loads(call.arguments)["city"] == "\ufffd"
        call.arguments.encode()
        assert ask(model, max_tokens=1).finish_reason == "length"
    with hermes('<tool_call>{"name": "\\ud83d", "arguments": {}}</tool_call>') as model:
        assert ask(model).tool_calls == []


def test_calls_beyond_what_a_message_may_have_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool_use, "MAX_CALLS", 3)
    with hermes(HERMES_NOW * 5) as model:
        session = model.session()
        done = session.chat("What time is it?", tools=TOOLS, temperature=0, speculate=False)
        assert len(done.tool_calls) == 3
        assert [message["role"] for message in session.messages] == ["user", "assistant"]


def test_a_session_keeps_calls_and_their_results(tmp_path: Path) -> None:
    with hermes(HERMES_CALL) as model:
        session = model.session(tools=TOOLS, temperature=0)
        (call,) = session.chat("The weather?").tool_calls
        assert session.messages[1]["tool_calls"] == [call.as_message()]
        session.chat({"role": "tool", "tool_call_id": call.id, "content": "9 °C"})
        session.save(tmp_path / "chat.json")
        resumed = model.resume(tmp_path / "chat.json")
        assert resumed.messages == session.messages
        assert [message["role"] for message in resumed.messages] == ["user", "assistant", "tool", "assistant"]
        assert resumed.chat("And now?").tool_calls[0].name == "get_weather"

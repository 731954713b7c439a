"""Supplied chat templates: rendered by the project's own renderer, against the documented formats written out by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from edgellm.checkpoint import Checkpoint, open_checkpoint
from edgellm.convert import chat_templates
from edgellm.errors import BadInputError, SpecError
from edgellm.runtime import chat
from tests.support import tiny_llama

ONE = [{"role": "user", "content": "Name a colour."}]
TWO = [*ONE, {"role": "assistant", "content": "Blue."}, {"role": "user", "content": "Another?"}]
TASK = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
CURIOUS = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# name -> (one question, a second one after an answer), as the sources named in the module write them.
DOCUMENTED = {
    "alpaca": (
        f"<s>{TASK}\n\n### Instruction:\nName a colour.\n\n### Response:",
        f"<s>{TASK}\n\n### Instruction:\nName a colour.\n\n### Response:Blue.</s>\n\n### Instruction:\nAnother?\n\n### Response:",
    ),
    "vicuna": (
        f"<s>{CURIOUS} USER: Name a colour. ASSISTANT:",
        f"<s>{CURIOUS} USER: Name a colour. ASSISTANT: Blue.</s>USER: Another? ASSISTANT:",
    ),
    "dolly": (
        f"{TASK}\n\n### Instruction:\nName a colour.\n\n### Response:\n",
        TASK + "\n\n### Instruction:\nName a colour.\n\n### Response:\nBlue.\n\n### End"
        + "\n\n### Instruction:\nAnother?\n\n### Response:\n",
    ),
    "openassistant": (
        "<|prompter|>Name a colour.</s><|assistant|>",
        "<|prompter|>Name a colour.</s><|assistant|>Blue.</s><|prompter|>Another?</s><|assistant|>",
    ),
    "openassistant-llama": (
        "<s><|prompter|>Name a colour.</s><|assistant|>",
        "<s><|prompter|>Name a colour.</s><|assistant|>Blue.</s><|prompter|>Another?</s><|assistant|>",
    ),
}  # fmt: skip
WITH_SYSTEM = {
    "alpaca": "<s>Be brief.\n\n### Instruction:\nName a colour.\n\n### Response:",
    "vicuna": "<s>Be brief. USER: Name a colour. ASSISTANT:",
    "dolly": "Be brief.\n\n### Instruction:\nName a colour.\n\n### Response:\n",
    "openassistant": "<|system|>Be brief.</s><|prompter|>Name a colour.</s><|assistant|>",
    "openassistant-llama": "<s><|system|>Be brief.</s><|prompter|>Name a colour.</s><|assistant|>",
}


def rendered(name: str, messages: list[dict[str, str]]) -> str:
    return chat.render(chat_templates.template(name), messages, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("name", chat_templates.NAMES)
def test_the_documented_format(name: str) -> None:
    one, two = DOCUMENTED[name]
    assert rendered(name, ONE) == one
    assert rendered(name, TWO) == two
    assert rendered(name, [{"role": "system", "content": "Be brief."}, *ONE]) == WITH_SYSTEM[name]


@pytest.mark.parametrize("name", chat_templates.NAMES)
def test_braces_in_a_message_stay_text(name: str) -> None:
    assert "{{ 7 * 7 }}" in rendered(name, [{"role": "user", "content": "{{ 7 * 7 }}"}])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(tiny_llama.write_tiny_llama(tmp_path_factory.mktemp("chat") / "model"))


def with_tokens(directory: Path, *texts: str) -> Checkpoint:
    """A checkpoint whose tokenizer has these special tokens."""
    tiny_llama.write_tiny_llama(directory)
    content = tiny_llama.tokenizer_json()
    number = len(content["model"]["vocab"])
    content["added_tokens"] += [
        {**content["added_tokens"][0], "id": number + i, "content": text} for i, text in enumerate(texts)
    ]
    (directory / "tokenizer.json").write_text(json.dumps(content))
    return open_checkpoint(directory)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vicuna-7b-v1.5", "vicuna"), ("Alpaca-7B", "alpaca"), ("dolly-v2-3b", "dolly"),
        ("oasst-sft-6-llama-30b", "openassistant-llama"), ("vicuna-13b-v0", None), ("vicuna-7b-delta-v1.1", None),
        ("tiny", None),
    ],
)  # fmt: skip
def test_a_name_decides_where_the_model_has_no_template(
    plain: Checkpoint, name: str, expected: str | None
) -> None:
    for checkpoint in (
        dataclasses.replace(plain, name=name),
        dataclasses.replace(plain, name="x", config={**plain.config, "_name_or_path": f"org/{name}"}),
    ):
        found, reason = chat_templates.choose_chat_template(checkpoint)
        assert found == (chat_templates.template(expected) if expected else None)
        assert (reason is None) == (expected is None)
        assert reason is None or name in reason


@pytest.mark.parametrize(
    ("tokens", "model_type", "expected"),
    [
        (("<|prompter|>", "<|assistant|>"), "gpt_neox", "openassistant"),
        (("<|prompter|>", "<|assistant|>"), "llama", "openassistant-llama"),
        (("### Instruction:", "### End"), "gpt_neox", "dolly"),
        (("<|assistant|>",), "llama", None),
    ],
)
def test_special_tokens_decide_before_names(
    tmp_path: Path, tokens: tuple[str, ...], model_type: str, expected: str | None
) -> None:
    found = with_tokens(tmp_path / "m", *tokens)
    found = dataclasses.replace(found, name="vicuna", config={**found.config, "model_type": model_type})
    template, reason = chat_templates.choose_chat_template(found)
    assert template == chat_templates.template(expected or "vicuna")
    assert reason is not None
    assert (tokens[0] in reason) == (expected is not None)


def test_the_models_own_template_wins_and_a_user_wins_over_it(plain: Checkpoint, tmp_path: Path) -> None:
    own = dataclasses.replace(plain, name="vicuna", chat_template="own")
    assert chat_templates.choose_chat_template(own) == ("own", None)
    assert chat_templates.choose_chat_template(own, "alpaca")[0] == chat_templates.template("alpaca")
    file = tmp_path / "mine.jinja"
    file.write_text("mine")
    template, reason = chat_templates.choose_chat_template(own, str(file))
    assert (template, reason) == ("mine", "chat template mine.jinja: a file asked for")


def test_what_is_asked_for_must_exist(plain: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no chat template named 'alpacca'") as caught:
        chat_templates.choose_chat_template(plain, "alpacca")
    assert "vicuna" in str(caught.value.hint)
    (tmp_path / "latin").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInputError, match="not UTF-8"):
        chat_templates.choose_chat_template(plain, str(tmp_path / "latin"))


def test_a_template_that_does_not_parse_is_a_warning() -> None:
    said = chat_templates.warning("{% for x in %}", chat.check_template)
    assert said is not None
    assert said.startswith("chat template: invalid: ")
    for name in chat_templates.NAMES:
        assert chat_templates.warning(chat_templates.template(name), chat.check_template) is None
    assert chat_templates.warning(None, chat.check_template) is None

"""Chat templates: what the model's own template says, and what a hostile one may not do."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

import pytest

from edgellm import api
from edgellm.errors import BadInputError, EdgeLLMError, SpecError
from edgellm.runtime import chat

HELLO = [{"role": "user", "content": "Hello"}]


def render(template: str, messages: Any = HELLO, **options: Any) -> str:
    return chat.render(template, messages, **{"bos_token": "<s>", "eos_token": "</s>", **options})


def refusal(template: str, messages: Any = HELLO) -> str:
    with pytest.raises(BadInputError) as caught:
        render(template, messages)
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.fixture(scope="module")
def smollm2_template() -> Iterator[str]:
    with api.load("builtin:smollm2", context=64) as model:
        template = model.chat_template
        assert template is not None
        yield template


def test_smollm2_adds_its_system_prompt_and_opens_the_answer(smollm2_template: str) -> None:
    assert render(smollm2_template) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_smollm2_keeps_a_system_prompt_and_earlier_turns(smollm2_template: str) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        *HELLO,
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "é漢😀"},
    ]
    assert render(smollm2_template, messages, add_generation_prompt=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHi!<|im_end|>\n<|im_start|>user\né漢😀<|im_end|>\n"
    )


def test_the_template_sees_the_special_tokens() -> None:
    assert render("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}") == "<s>Hello</s>"


def test_loop_controls_and_trimmed_blocks_work_as_in_hugging_face() -> None:
    skip, leave = "{% if i == 1 %}{% continue %}{% endif %}", "{% if i == 3 %}{% break %}{% endif %}"
    assert render("{% for i in range(9) %}\n  " + skip + "\n" + leave + "{{ i }}{% endfor %}") == "02"


def test_tojson_writes_unicode_and_no_html_escapes() -> None:
    assert render("{{ {'a': ['<é>', none, true]} | tojson }}") == '{"a": ["<é>", null, true]}'
    assert render("{{ [1] | tojson(indent=2) }}") == "[\n  1\n]"


def test_strftime_now_gives_todays_date() -> None:
    before = datetime.datetime.now().astimezone().date()
    shown = render("{{ strftime_now('%Y-%m-%d') }}")
    assert before.isoformat() <= shown <= datetime.datetime.now().astimezone().date().isoformat()


def test_raise_exception_becomes_one_line() -> None:
    assert "roles must alternate" in refusal("{{ raise_exception('roles must alternate') }}")
    assert len(refusal("{{ raise_exception('x' * 5000) }}")) < 500


@pytest.mark.parametrize(
    "expression",
    [
        "''.__class__.__mro__[1].__subclasses__()",
        "''['__class__']['__base__']",
        "''|attr('__class__')|attr('__base__')",
        "cycler.__init__.__globals__.os.system('true')",
        "lipsum.__globals__['os']",
        "self.__init__.__globals__",
        "'{0.__class__.__init__.__globals__}'.format(cycler)",
        "(''.format_map)({'a': 1})['x']",
        "namespace.__init__.__globals__",
        "raise_exception.__globals__['json']",
        "strftime_now.__globals__",
    ],
)
def test_no_expression_reaches_python_behind_the_template(expression: str) -> None:
    try:
        shown = render("{{ " + expression + " }}")
    except BadInputError:
        return
    assert not any(word in shown for word in ("class", "module", "function", "os", "<"))


@pytest.mark.parametrize(
    "change", ["messages.append(1)", "messages[0].update(role='x')", "messages[0].pop('role')"]
)
def test_a_template_cannot_change_the_messages(change: str) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    refusal("{{ " + change + " }}", messages)
    assert messages == HELLO


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(10**9) %}{% endfor %}",
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% set s = 'x' * 100000 %}{% for a in s %}{% for b in s %}{% endfor %}{% endfor %}",
        "{% for a in [[1, 1]] * 9 recursive %}{{ loop([[1, 1]] * 9) }}{% endfor %}",
        "{{ lipsum(n=999999999) }}",
        "{{ [1] | slice(10**9) | list }}",
    ],
    ids=[
        "range",
        "nested ranges",
        "macro tree",
        "endless macro",
        "nested strings",
        "recursive",
        "lipsum",
        "slice",
    ],
)
def test_a_template_that_computes_without_end_is_stopped(template: str) -> None:
    refusal(template)


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * 10**10 }}",
        "{{ [0] * 10**10 }}",
        "{{ 10 ** (10 ** 8) }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%*d' % (10**9, 1) }}",
        "{{ '{:>9999999999}'.format(1) }}",
        "{{ '{:>{}}'.format(1, 10**10) }}",
        "{{ 'x'.center(10**10) }}",
        "{{ 'x' | center(10**10) }}",
        "{{ [1] | batch(10**10, 0) | list }}",
        "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(99) %}{% set n.s = [n.s, n.s] | join %}{% endfor %}",
        "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(99) %}{% set n.s = n.s.replace('x', 'xx') %}{% endfor %}",
        "{% set n = namespace(s='x') %}{% for i in range(99) %}{% set n.s %}{{ n.s }}{{ n.s }}{% endset %}{% endfor %}",
        "{% set n = namespace(i=3) %}{% for i in range(99) %}{% set n.i = n.i * n.i %}{% endfor %}",
        "{% set t %}{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}{% endset %}",
        "{% for i in range(2000) %}{{ 'x' * 90000 }}{% endfor %}",
    ],
)
def test_a_template_that_writes_without_end_is_stopped(template: str) -> None:
    refusal(template)


@pytest.mark.parametrize(
    "template",
    [
        "{% if %}",
        "{{ 'open }}",
        "{% for %}{% endfor %}",
        "{% include 'x' %}",
        "{% import '/etc/passwd' as p %}",
        "{{ undefined_name.field }}",
        "{{ messages[99].role }}",
        "{{ 1 / 0 }}",
        "{{ [1] | tojson(indent='x' * 3, sort=none) | int + 'x' }}",
        "{{ {1: 2} | dictsort(by='x') }}",
        "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ messages | tojson | map('nothing') | list }}",
        "{{ ('x' | string).encode('nothing') }}",
        "x" * (chat.MAX_TEMPLATE_CHARS + 1),
    ],
)
def test_a_broken_template_is_bad_input_in_one_line(template: str) -> None:
    refusal(template)


def test_a_long_but_honest_conversation_is_rendered(smollm2_template: str) -> None:
    messages = [
        {"role": role, "content": "word " * 200} for _ in range(1000) for role in ("user", "assistant")
    ]
    assert render(smollm2_template, messages).count("<|im_start|>") == 2002


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "no messages"),
        ([{"role": "hacker", "content": "x"}], "message 0: role is 'hacker'"),
        ([*HELLO, {"content": "x"}], "message 1: role is 'None'"),
        ([{"role": "user"}], "message 0: content is NoneType"),
        ([{"role": "user", "content": None}], "content is NoneType"),
        ([{"role": "user", "content": ["x"]}], "content is list"),
        (["Hello"], "message 0 is str"),
        ([None], "message 0 is NoneType"),
        ({"role": "user", "content": "x"}, "message 0 is str"),
        (HELLO * (chat.MAX_MESSAGES + 1), "10001 messages"),
    ],
)
def test_what_is_no_list_of_messages_is_refused_by_name(messages: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        render("{{ 1 }}", messages)


def test_every_refusal_has_the_exit_code_of_its_kind() -> None:
    for messages, code in (([], 64), (HELLO, 65)):
        with pytest.raises(EdgeLLMError) as caught:
            render("{{ raise_exception('no') }}", messages)
        assert caught.value.exit_code == code


def test_the_budget_is_new_for_each_rendering() -> None:
    template = "{% for i in range(60000) %}{% endfor %}done"
    assert [render(template) for _ in range(20)] == ["done"] * 20

"""Wrong arguments are refused by name and value before the engine is asked; in this process and isolated alike."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgellm.errors import ContextOverflowError, SpecError
from edgellm.runtime.isolate import IsolatedEngine
from edgellm.runtime.model import Model
from tests.runtime.engines import make
from tests.samples import make_manifest

CHILD = [sys.executable, "-m", "tests.support.engine_child"]
CONTEXT = 30_000

Deep = dict[str, Any]


def nested(depth: int) -> Deep:
    inner: Deep = {}
    for _ in range(depth):
        inner = {"a": inner}
    return inner


OPTIONS: list[tuple[str, Any, type[Exception], str]] = [
    ("temperature", math.nan, ValueError, "temperature is nan"),
    ("temperature", -0.1, ValueError, r"temperature is -0\.1"),
    ("temperature", 1e308, ValueError, "temperature is 1e"),
    ("temperature", 10**400, TypeError, "temperature is a number of 1329 bits"),
    ("temperature", "0.5", TypeError, r"temperature is '0\.5': expected `float`"),
    ("temperature", True, TypeError, "temperature is True"),
    ("temperature", None, TypeError, "temperature is None"),
    ("temperature", [1.0], TypeError, r"temperature is \[1\.0\]"),
    ("top_k", -1, ValueError, "top_k is -1"),
    ("top_k", 1 << 40, ValueError, "top_k is 1099511627776"),
    ("top_k", 2.5, TypeError, r"top_k is 2\.5"),
    ("top_p", 1.1, ValueError, r"top_p is 1\.1"),
    ("top_p", math.nan, ValueError, "top_p is nan"),
    ("min_p", -1e-9, ValueError, "min_p is -1e-09"),
    ("repeat_penalty", 0.0, ValueError, r"repeat_penalty is 0\.0"),
    ("repeat_penalty", math.inf, ValueError, "repeat_penalty is inf"),
    ("presence_penalty", 11.0, ValueError, r"presence_penalty is 11\.0"),
    ("frequency_penalty", math.nan, ValueError, "frequency_penalty is nan"),
    ("logit_bias", {-1: 1.0}, ValueError, "logit_bias of token -1"),
    ("logit_bias", {3: math.nan}, ValueError, "logit_bias of token 3 is nan"),
    ("logit_bias", {10**6: 1.0}, ValueError, "logit_bias of token 1000000, outside the vocabulary"),
    ("logit_bias", dict.fromkeys(range(2000), 0.0), ValueError, "logit_bias has 2000 tokens"),
    ("logit_bias", {"a": 1.0}, TypeError, "logit_bias is {'a'"),
    ("logit_bias", [1.0], TypeError, "logit_bias is "),
    ("seed", -1, ValueError, "seed is -1"),
    ("seed", 2**32, ValueError, "seed is 4294967296"),
    ("seed", 10**100, ValueError, "seed holds a number that is too large"),
    ("seed", 1.0, TypeError, r"seed is 1\.0"),
    ("max_tokens", 0, ValueError, "max_tokens is 0"),
    ("max_tokens", -5, ValueError, "max_tokens is -5"),
    ("max_tokens", 1 << 31, ValueError, "max_tokens is 2147483648"),
    ("max_tokens", 10**100, ValueError, "max_tokens holds a number that is too large"),
    ("max_tokens", "8", TypeError, "max_tokens is '8'"),
    ("stop", "abc", TypeError, "stop is 'abc'"),
    ("stop", [""], ValueError, "stop has 1 strings of 0"),
    ("stop", ["x"] * 65, ValueError, "stop has 65 strings"),
    ("stop", ["x" * 2000], ValueError, "stop has 1 strings of 2000 to 2000"),
    ("stop", [3], TypeError, r"stop is \[3\]"),
    ("stop", ["\ud800"], ValueError, "stop holds a lone surrogate"),
    ("owner", 7, TypeError, "owner is 7"),
    ("owner", "\udfff", ValueError, "owner holds a lone surrogate"),
    ("deadline_s", 0.0, ValueError, r"deadline_s is 0\.0"),
    ("deadline_s", math.nan, ValueError, "deadline_s is nan"),
    ("deadline_s", math.inf, ValueError, "deadline_s is inf"),
    ("overflow", "drop", ValueError, "overflow is 'drop', expected one of error, shift, middle"),
    ("overflow", 3, ValueError, "overflow is 3"),
    ("keep_tokens", -1, ValueError, "keep_tokens is -1"),
    ("keep_tokens", 1 << 40, ValueError, "keep_tokens is 1099511627776"),
    ("top_logprobs", 21, ValueError, "top_logprobs is 21"),
    ("top_logprobs", -1, ValueError, "top_logprobs is -1"),
    ("json_schema", "{", SpecError, "."),
    ("json_schema", 3, TypeError, "json_schema is 3"),
    ("json_schema", {"enum": {1, 2}}, TypeError, "json_schema is no JSON"),
    ("json_schema", nested(5000), TypeError, "json_schema is dict, nested too deep"),
    ("regex", "(", SpecError, "."),
    ("regex", "a\ud800", ValueError, "regex holds a lone surrogate"),
    ("grammar", b"root", TypeError, "grammar is b'root'"),
    ("adapters", {"nobody": 1.0}, ValueError, "unknown adapter 'nobody'"),
    ("adapters", "nobody", TypeError, "adapters is 'nobody'"),
    ("n_discard", -1, TypeError, "unknown option 'n_discard'"),
]
PROMPTS: list[tuple[Any, type[Exception], str]] = [
    (None, TypeError, "prompt is None"),
    (7, TypeError, "prompt is 7"),
    (b"bytes", TypeError, "prompt is b'bytes'"),
    ({"role": "user", "content": "x"}, TypeError, "prompt is {'role'"),
    (object(), TypeError, "prompt is "),
    ("a\ud83dz", ValueError, "prompt holds a lone surrogate at character 1"),
    ([], SpecError, "no messages"),
    ([{}], SpecError, "role is 'None'"),
    ([{"role": "user"}], SpecError, "content is NoneType"),
    ([{"role": "hacker", "content": "x"}], SpecError, "role is 'hacker'"),
    ([{"role": "user", "content": 3}], SpecError, "content is int"),
    ([{"role": "user", "content": "\ud800"}], ValueError, "prompt holds a lone surrogate"),
    ([{"role": "user", "content": "x"}] * 10_001, SpecError, "10001 messages"),
    ([{"role": "user", "content": object()}], TypeError, "no plain data"),
    ([{"role": "user", "content": nested(5000)}], (TypeError, ValueError, SpecError), "."),  # type: ignore[list-item]
    (["text"], SpecError, "message 0 is str"),
    ([-1], ValueError, "token -1 is outside the vocabulary"),
    ([3, 10**9], ValueError, "token 1000000000 is outside the vocabulary"),
    ([10**30], ValueError, "prompt holds a number that is too large"),
    ([True], ValueError, "token True is outside"),
    ([1, "a"], TypeError, "with 'a' among them"),
    ([1, 2.5], TypeError, r"with 2\.5 among them"),
    ("x" * 40_000, ContextOverflowError, "the context holds 30000"),
    ([5] * 1_000_000, ContextOverflowError, "1000000 tokens, the context holds 30000"),
    ("x" * (65 << 20), ValueError, "prompt has 68157445 bytes"),
]


@pytest.fixture(scope="module", params=["here", "isolated"])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    if request.param == "here":
        with make(None, context=CONTEXT) as opened:
            yield opened
    else:
        with Model(IsolatedEngine(CHILD, b"any"), make_manifest()) as opened:
            yield opened


def refused(model: Model, prompt: Any, kind: Any, words: str, **options: Any) -> None:
    n_steps = model.counts().n_steps
    pid = getattr(model._engine, "pid", None)
    with pytest.raises(kind, match=words) as caught:
        model.stream(prompt, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert model.counts().n_steps == n_steps, "the engine has computed something"
    assert getattr(model._engine, "pid", None) == pid, "the child was started anew"


@pytest.mark.parametrize(
    ("name", "value", "kind", "words"), OPTIONS, ids=[f"{i}-{row[0]}" for i, row in enumerate(OPTIONS)]
)
def test_an_option_is_refused_by_name_and_value(
    model: Model, name: str, value: Any, kind: type[Exception], words: str
) -> None:
    refused(model, "ab", kind, words, **{name: value})


@pytest.mark.parametrize(("prompt", "kind", "words"), PROMPTS, ids=[str(i) for i in range(len(PROMPTS))])
def test_a_prompt_is_refused(model: Model, prompt: Any, kind: type[Exception], words: str) -> None:
    refused(model, prompt, kind, words)


def test_after_all_that_the_model_answers(model: Model) -> None:
    assert len(model.generate("ab", max_tokens=3, temperature=0).token_ids) == 3


def test_what_looks_odd_and_is_sound_is_taken(model: Model) -> None:
    for prompt in ("", "\0", "a\0b", "\U0010ffff", [0], (1, 2), range(3), [{"role": "user", "content": ""}]):
        assert model.generate(prompt, max_tokens=1).token_ids  # type: ignore[arg-type]
    options: dict[str, Any] = {
        "temperature": np.float32(0.5), "max_tokens": np.int64(2), "top_p": 1, "stop": ("x", "y"), "seed": 0,
        "logit_bias": {3: -math.inf}, "deadline_s": 60,
    }  # fmt: skip
    assert len(model.generate("ab", **options).token_ids) == 2


@pytest.mark.parametrize("text", [3, None, b"x", ["a"]])
def test_tokenize_takes_text(model: Model, text: Any) -> None:
    with pytest.raises(TypeError, match=r"text is .*: expected text"):
        model.tokenize(text)
    with pytest.raises(ValueError, match="text holds a lone surrogate"):
        model.tokenize("\ud800")


def test_a_stream_that_was_closed_gives_nothing_and_may_be_closed_again(model: Model) -> None:
    stream = model.stream("endless", overflow="shift")
    next(stream)
    for _ in range(2):
        stream.close()
    assert list(stream) == []
    done = model.stream("ab", max_tokens=2)
    assert len(list(done)) == 2
    assert list(done) == []
    done.close()


def test_streams_and_models_are_closed_from_other_threads() -> None:
    for opened in (make(None, context=CONTEXT), Model(IsolatedEngine(CHILD, b"any"), make_manifest())):
        stream = opened.stream("endless", overflow="shift")
        next(stream)
        left = opened.stream("endless too", overflow="shift")
        for action in (stream.close, opened.close, opened.close):
            thread = threading.Thread(target=action)
            thread.start()
            thread.join()
        assert list(stream) == []
        with pytest.raises(RuntimeError, match="closed"):
            list(left)
        for use in (opened.generate, opened.tokenize, opened.count_tokens):
            with pytest.raises(RuntimeError, match="closed"):
                use("a")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
def test_after_a_fork_every_use_is_an_error_and_the_parent_goes_on(model: Model) -> None:
    with model.stream("endless", overflow="shift") as stream:
        next(stream)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for use in (
                    lambda: model.generate("a"), lambda: model.tokenize("a"), lambda: model.count_tokens("a"), model.counts,
                ):  # fmt: skip
                    with pytest.raises(RuntimeError, match="load it after the fork"):
                        use()
                stream.close()
                model.close()
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        next(stream)
    assert model.generate("ab", max_tokens=2).token_ids

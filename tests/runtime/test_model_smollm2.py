"""The public class over the embedded model: what users see, on real text."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm import api
from edgellm.errors import ContextOverflowError, SpecError
from edgellm.protocols import Feed
from edgellm.runtime.model import Model

CAPITAL = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
# Logits of one text move by so much with what is computed in the same call.
TOLERANCE = 1e-3
STORY = "Once upon a time, in a village by the sea, there lived"


@pytest.fixture(scope="module", params=["builtin:smollm2", "Q8_0"])
def model(request: pytest.FixtureRequest, smollm2_q8: Path) -> Iterator[Model]:
    source = request.param if request.param.startswith("builtin") else smollm2_q8
    with api.load(source, context=256, threads=1) as opened:
        yield opened


def test_it_knows_the_capital_of_france(model: Model) -> None:
    done = model.generate(CAPITAL, temperature=0)
    assert "Paris" in done.text
    assert done.finish_reason == "stop"
    assert done.usage.prompt_tokens == model.count_tokens(CAPITAL)
    assert done.usage.completion_tokens == len(done.token_ids)
    assert "<|im_end|>" not in done.text


def test_temperature_zero_is_the_argmax_of_the_engine(model: Model) -> None:
    done = model.generate(STORY, max_tokens=12, temperature=0)
    batcher = model._engine._backend.open(n_sequences=1, context=256)
    feed: list[int] = model.tokenize(STORY)
    expected = []
    for _ in range(12):
        logits = batcher.step([Feed(sequence=0, tokens=feed, want="last")])[0].logits
        assert logits is not None
        feed = [int(logits[0].argmax())]
        expected += feed
    batcher.close()
    assert done.token_ids == expected


def test_top_k_one_is_greedy_at_any_temperature(model: Model) -> None:
    greedy = model.generate(STORY, max_tokens=12, temperature=0)
    for seed in (1, 2):
        assert (
            model.generate(STORY, max_tokens=12, temperature=2, top_k=1, seed=seed).token_ids
            == greedy.token_ids
        )


def test_a_seed_decides_the_text(model: Model) -> None:
    texts = [model.generate(STORY, max_tokens=12, temperature=1.5, seed=seed).text for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


def test_the_cache_never_changes_the_text(model: Model) -> None:
    for prompt in (STORY, STORY + " an old", STORY, CAPITAL, CAPITAL):
        reused = model.generate(prompt, max_tokens=12, temperature=0)
        assert (
            model.generate(prompt, max_tokens=12, temperature=0).usage.cached_tokens
            == reused.usage.prompt_tokens - 1
        )
        fresh = model.generate(prompt, max_tokens=12, temperature=0, cache_prompt=False)
        assert fresh.usage.cached_tokens == 0
        assert reused.token_ids == fresh.token_ids


def test_penalties_see_the_whole_prompt_also_where_it_was_cached(model: Model) -> None:
    prompt = "one two one two one two one two"
    options = {"max_tokens": 12, "temperature": 0, "repeat_penalty": 1.8}
    fresh = model.generate(prompt, cache_prompt=False, **options)  # type: ignore[arg-type]
    for _ in range(2):
        assert model.generate(prompt, **options).token_ids == fresh.token_ids  # type: ignore[arg-type]
    assert fresh.text != model.generate(prompt, max_tokens=12, temperature=0).text


def test_a_stop_string_is_not_shown(model: Model) -> None:
    done = model.generate(CAPITAL, temperature=0, stop=["Paris"])
    assert "Paris" not in done.text
    assert done.finish_reason == "stop"
    assert done.text.endswith(" ") or done.text == ""


def test_the_end_of_the_context_is_a_length_finish(model: Model) -> None:
    done = model.generate("x " * 120, temperature=1, seed=3, stop=[])
    assert done.usage.prompt_tokens + done.usage.completion_tokens <= 256
    if done.finish_reason == "length":
        assert done.usage.prompt_tokens + done.usage.completion_tokens == 256
    with pytest.raises(ContextOverflowError, match=r"the prompt has \d+ tokens, the context holds 256"):
        model.generate("word " * 300)


@pytest.mark.parametrize("prompt", ["😀😀😀 ", "漢字かな交じり文、", "naïve café — ", "👩‍👩‍👧‍👦 familia: "])
def test_no_broken_character_in_the_middle_of_a_stream(model: Model, prompt: str) -> None:
    pieces = list(model.stream(prompt, max_tokens=24, temperature=1.2, seed=5))
    assert not any("\ufffd" in piece.text for piece in pieces[:-1])
    data = b"".join(
        model._engine._backend.token_bytes(token) for piece in pieces for token in piece.token_ids
    )
    assert "".join(piece.text for piece in pieces) == data.decode("utf-8", errors="replace")


def test_two_threads_share_a_model_without_mixing(model: Model) -> None:
    prompts = [STORY, "def fibonacci(n):"]
    alone = [model.generate(p, max_tokens=8, temperature=0, cache_prompt=False).token_ids for p in prompts]
    found: dict[int, list[list[int]]] = {0: [], 1: []}

    def work(i: int) -> None:
        for _ in range(3):
            found[i].append(model.generate(prompts[i], max_tokens=8, temperature=0).token_ids)

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: [alone[0]] * 3, 1: [alone[1]] * 3}


def test_an_empty_prompt_gives_text(model: Model) -> None:
    assert model.generate("", max_tokens=4, seed=1).usage.completion_tokens >= 1


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"temperature": 1.3, "seed": 3, "repeat_penalty": 1.3}]
)
def test_log_probabilities_equal_those_of_one_forward_pass(model: Model, options: dict[str, Any]) -> None:
    done = model.generate(STORY, max_tokens=20, top_logprobs=5, **options)
    prompt = model.tokenize(STORY)
    batcher = model._engine._backend.open(n_sequences=1, context=256)
    rows = batcher.step([Feed(sequence=0, tokens=[*prompt, *done.token_ids[:-1]], want="all")])[0].logits
    batcher.close()
    assert rows is not None
    wide = rows[len(prompt) - 1 :].astype(np.float64)
    expected = wide - wide.max(axis=1, keepdims=True)
    expected -= np.log(np.exp(expected).sum(axis=1, keepdims=True))
    assert done.logprobs is not None
    assert len(done.logprobs) == len(done.token_ids) == len(expected) == 20
    for entry, token, row in zip(done.logprobs, done.token_ids, expected, strict=True):
        assert entry.token_id == token
        assert entry.logprob == pytest.approx(row[token], abs=TOLERANCE)
        best = np.sort(row)[::-1][:5]
        assert [p for _, p in entry.top] == pytest.approx(list(best), abs=TOLERANCE)
        assert [p for _, p in entry.top] == pytest.approx([row[i] for i, _ in entry.top], abs=TOLERANCE)


@pytest.mark.parametrize("kv_type", ["Q8_0", "Q4_0"])
def test_a_quantized_cache_answers_and_needs_flash_attention(smollm2_gguf: Path, kv_type: str) -> None:
    with api.load(smollm2_gguf, context=256, threads=1, kv_type=kv_type) as model:
        assert model.info.kv_type == kv_type
        done = model.generate(CAPITAL, temperature=0, max_tokens=32)
        assert "Paris" in done.text
        assert model.generate(CAPITAL, temperature=0, max_tokens=32).token_ids == done.token_ids
    with pytest.raises(SpecError, match="needs flash attention") as caught:
        api.load(smollm2_gguf, context=64, kv_type=kv_type, flash_attention="off")
    assert caught.value.hint


def test_a_context_beyond_the_models_is_refused(smollm2_gguf: Path) -> None:
    with pytest.raises(SpecError, match="9000 is outside 1 to 8192"):
        api.load(smollm2_gguf, context=9000)


@pytest.mark.parametrize("bad", [{"threads": 0}, {"kv_type": "Q3_K"}, {"gpu_layers": -1}])
def test_bad_options_are_a_spec_error(smollm2_gguf: Path, bad: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        api.load(smollm2_gguf, **bad)  # type: ignore[arg-type]

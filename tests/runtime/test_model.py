"""The public class over a fake backend: what it feeds, what it yields, when it ends, who may use it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.errors import BackendError, ContextOverflowError, SpecError
from edgellm.runtime.model import Model
from edgellm.runtime.request import Completion, Piece
from tests.runtime.engines import batcher_of, fed, make
from tests.support.fake_backend import BOS, END, FakeBackend

NAMED = r"(max_tokens|temperature|top_|min_p|penalty|seed|stop|deadline|keep|bias|option|overflow)"
HELLO = [{"role": "user", "content": "Hello"}]


def fail_at_first(pieces: Iterator[Piece]) -> None:
    for _ in pieces:
        raise KeyError


@pytest.fixture
def model() -> Iterator[Model]:
    with make(None) as opened:
        yield opened


def test_a_stream_ends_with_a_reason_and_usage() -> None:
    with make(b"Paris.") as model:
        pieces = list(model.stream("ab", temperature=0))
    assert "".join(piece.text for piece in pieces) == "Paris."
    assert [piece.finish_reason for piece in pieces] == [None] * 6 + ["stop"]
    assert [piece.token_ids for piece in pieces] == [[byte] for byte in b"Paris."] + [[END]]
    usage = pieces[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (3, 0, 7)
    assert usage.ttft_s > 0
    assert usage.decode_s >= 0
    assert (usage.energy.quantity, bool(usage.energy.reason)) == ("energy_j", True)


def test_generate_is_the_whole_stream() -> None:
    with make(b"Paris.") as model:
        done = model.generate("ab", temperature=0)
    assert (done.text, done.token_ids, done.finish_reason) == ("Paris.", [*b"Paris.", END], "stop")


def test_max_tokens_ends_with_length() -> None:
    with make(b"Paris.") as model:
        done = model.generate("ab", max_tokens=3, temperature=0)
    assert (done.text, done.finish_reason, done.usage.completion_tokens) == ("Par", "length", 3)


def test_an_end_token_as_the_last_allowed_one_is_a_stop() -> None:
    with make(b"Hi") as model:
        assert model.generate("ab", max_tokens=3, temperature=0).finish_reason == "stop"


def test_a_stop_string_ends_the_text_before_it() -> None:
    with make(b"one, two, three") as model:
        done = model.generate("ab", temperature=0, stop=[", t", "three"])
    assert (done.text, done.finish_reason) == ("one", "stop")
    assert done.usage.completion_tokens == 6


def test_text_held_back_for_a_stop_is_shown_at_the_end() -> None:
    with make(b"one EN") as model:
        assert model.generate("ab", temperature=0, stop=["END"]).text == "one EN"
        assert model.generate("ab", temperature=0, stop=["END"], max_tokens=5).text == "one E"


@given(text=st.text(max_size=20), data=st.data())
def test_a_stream_never_breaks_a_character(text: str, data: st.DataObject) -> None:
    with make(text.encode(), context=512) as model:
        pieces = list(model.stream(data.draw(st.text(max_size=9)), temperature=0))
    assert "".join(piece.text for piece in pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece.text for piece in pieces)


def test_a_character_cut_by_max_tokens_is_marked_only_in_the_last_piece() -> None:
    with make("é😀".encode()) as model:
        pieces = [piece.text for piece in model.stream("ab", temperature=0, max_tokens=4)]
    assert pieces == ["", "é", "", "\ufffd"]


def test_messages_go_through_the_template_and_special_text_becomes_tokens() -> None:
    with make() as model:
        model.generate(HELLO, temperature=0)
        prompt = "".join(
            map(
                str,
                FakeBackend().tokenize(
                    "<turn>user:Hello<turn>assistant:", add_special=True, parse_special=True
                ),
            )
        )
        assert "".join(map(str, fed(model)[0])) == prompt
        assert fed(model)[0][0] == BOS


def test_special_words_in_plain_text_stay_text(model: Model) -> None:
    model.generate("<turn>", max_tokens=1)
    assert fed(model)[0] == [BOS, *b"<turn>"]
    assert model.tokenize("<turn>") == list(b"<turn>")
    assert len(model.tokenize("<turn>", parse_special=True)) == 1


def test_messages_without_a_template_are_refused() -> None:
    with make(chat_template=None) as model:
        assert not model.has_chat_template
        with pytest.raises(SpecError, match="tiny has no chat template"):
            model.generate(HELLO)
        assert model.generate("text", temperature=0).text == "an answer"


@pytest.mark.parametrize("messages", [[], [{"role": "user"}], ["Hello"]])
def test_bad_messages_leave_the_model_usable(model: Model, messages: Any) -> None:
    with pytest.raises(SpecError):
        model.generate(messages)
    assert model.generate(HELLO, max_tokens=1).usage.completion_tokens == 1


def test_an_empty_prompt_is_the_beginning_of_a_text() -> None:
    with make(add_bos=False) as model:
        assert model.generate("", temperature=0).usage.prompt_tokens == 1
        assert fed(model)[0] == [BOS]


def test_an_empty_prompt_without_a_beginning_is_refused() -> None:
    with make(add_bos=False, bos_id=None) as model, pytest.raises(SpecError, match="empty"):
        model.generate("")


def test_count_tokens_is_what_usage_says(model: Model) -> None:
    for prompt in ("some text", HELLO):
        assert model.count_tokens(prompt) == model.generate(prompt, max_tokens=1).usage.prompt_tokens


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(model: Model) -> None:
    with pytest.raises(ContextOverflowError, match="301 tokens, the context holds 256") as caught:
        model.generate("x" * 300)
    assert caught.value.hint
    assert fed(model) == []


def test_a_generation_that_fills_the_context_ends_with_length() -> None:
    with make(b"x" * 99, context=16) as model:
        done = model.generate("123456789", temperature=0)
        assert done.finish_reason == "length"
        assert done.usage.prompt_tokens + done.usage.completion_tokens == 16
        assert model.generate("123456789", temperature=0).text == done.text


def test_the_longest_prompt_that_fits_gives_one_token() -> None:
    with make(None, context=16) as model:
        assert model.generate("x" * 14).usage.completion_tokens == 1
        with pytest.raises(ContextOverflowError):
            model.generate("x" * 15)


def test_a_prompt_that_begins_alike_reuses_the_cache(model: Model) -> None:
    first = model.generate("The quick brown", max_tokens=4, temperature=0)
    again = model.generate("The quick brown fox", max_tokens=4, temperature=0)
    assert again.usage.cached_tokens >= 16
    assert fed(model)[4] == list(b" fox")[again.usage.cached_tokens - 16 :]
    assert first.usage.cached_tokens == 0


def test_the_cache_never_changes_the_text(model: Model) -> None:
    prompts = ["one two", "one two three", "one", "one two", "", "one two three four", "two"]
    for seed, prompt in enumerate(prompts * 2):
        with make(None) as fresh:
            expected = fresh.generate(prompt, max_tokens=9, seed=seed)
        assert model.generate(prompt, max_tokens=9, seed=seed).token_ids == expected.token_ids


def test_the_answer_before_is_part_of_the_cache(model: Model) -> None:
    first = model.generate("ab", max_tokens=5, temperature=0)
    again = model.generate("ab" + first.text + "cd", max_tokens=1)
    assert again.usage.cached_tokens == 3 + 4


def test_a_cache_that_cannot_be_cut_is_filled_anew() -> None:
    with make(None, can_truncate=False) as model:
        for _ in range(2):
            assert model.generate("ab", max_tokens=2).usage.cached_tokens == 0


def test_cache_prompt_false_fills_the_cache_anew(model: Model) -> None:
    for _ in range(2):
        assert model.generate("ab", max_tokens=2, cache_prompt=False).usage.cached_tokens == 0


def test_the_same_seed_gives_the_same_text_and_another_one_another(model: Model) -> None:
    texts = [model.generate("ab", max_tokens=20, seed=seed).text for seed in (1, 1, 2, 2, 3)]
    assert texts[0] == texts[1]
    assert texts[2] == texts[3]
    assert len(set(texts)) == 3
    assert model.generate("ab", max_tokens=20).text != model.generate("ab", max_tokens=20).text


@pytest.mark.parametrize(
    "bad",
    [
        {"max_tokens": 0}, {"max_tokens": -1}, {"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1},
        {"top_p": 1.5}, {"min_p": -0.1}, {"repeat_penalty": 0.0}, {"seed": -1}, {"seed": 2**32}, {"stop": [""]},
        {"stop": ["x"] * 1000}, {"stop": "one"}, {"deadline_s": 0}, {"keep_tokens": -1}, {"top_logprobs": 21},
        {"logit_bias": {-1: 1.0}}, {"logit_bias": {1: float("nan")}}, {"frequency_penalty": 11.0}, {"nothing": 1},
        {"deadline_s": float("inf")}, {"overflow": "bogus"}, {"logit_bias": {10**9: 1.0}},
    ],
)  # fmt: skip
def test_arguments_out_of_bounds_are_a_value_error_at_the_call(model: Model, bad: dict[str, Any]) -> None:
    with pytest.raises(
        (ValueError, TypeError),
        match=r"(max_tokens|temperature|top_|min_p|penalty|seed|stop|deadline|keep|bias|option|overflow)",
    ):
        model.stream("ab", **bad)
    assert model.generate("ab", max_tokens=1).token_ids


def test_closing_a_stream_early_leaves_the_model_usable(model: Model) -> None:
    stream = model.stream("ab", temperature=0)
    next(stream)
    stream.close()
    with make(None) as fresh:
        expected = fresh.generate("ab", temperature=0, max_tokens=5)
    assert model.generate("ab", temperature=0, max_tokens=5).text == expected.text


def test_an_error_in_the_consumer_leaves_the_model_usable(model: Model) -> None:
    with pytest.raises(KeyError):
        fail_at_first(model.stream("ab"))
    assert model.generate("ab", max_tokens=1).token_ids


def test_a_stream_that_is_not_read_keeps_nobody_waiting(model: Model) -> None:
    expected = model.generate("ab", temperature=0).text
    stream = model.stream("ab", temperature=0)
    first = next(stream)
    assert model.generate("cd", max_tokens=1).token_ids
    assert model.count_tokens("cd") == 3
    assert first.text + "".join(piece.text for piece in stream) == expected


def test_a_failing_step_leaves_the_model_usable(model: Model) -> None:
    expected = model.generate("abc", max_tokens=9, seed=1).text
    steps = iter(range(100))

    def fail() -> None:
        if next(steps) == 4:
            raise BackendError("llama_decode failed")

    batcher_of(model).before_step = fail
    with pytest.raises(BackendError):
        model.generate("abc", max_tokens=9, seed=1)
    assert model.generate("abc", max_tokens=9, seed=1).text == expected


def test_a_closed_model_says_so() -> None:
    model = make()
    model.close()
    model.close()
    for use in (lambda: model.generate("ab"), lambda: model.tokenize("ab"), lambda: list(model.stream("ab"))):
        with pytest.raises(RuntimeError, match="closed"):
            use()
    assert batcher_of(model).closed


def test_leaving_the_block_closes_a_stream_that_is_still_held() -> None:
    with make(None) as model:
        stream = model.stream("ab", overflow="shift")
        next(stream)
    assert batcher_of(model).closed
    with pytest.raises(RuntimeError, match="closed"):
        list(stream)


def test_an_error_is_not_hidden_by_a_stream_that_is_still_held() -> None:
    streams = []

    def use() -> None:
        with make(None) as model:
            streams.append(model.stream("ab"))
            fail_at_first(streams[0])

    with pytest.raises(KeyError):
        use()


def test_a_stream_that_nobody_holds_any_more_frees_the_model(model: Model) -> None:
    next(model.stream("ab"))
    gc.collect()
    assert model.generate("ab", max_tokens=1).token_ids


def test_threads_share_a_model_without_mixing(model: Model) -> None:
    prompts = ["one", "one two", "three", ""]
    alone: dict[str, Completion] = {}
    for prompt in prompts:
        with make(None) as fresh:
            alone[prompt] = fresh.generate(prompt, max_tokens=30, seed=7)
    wrong: list[str] = []

    def work(prompt: str) -> None:
        found = [model.generate(prompt, max_tokens=30, seed=7).token_ids for _ in range(5)]
        wrong.extend(prompt for ids in found if ids != alone[prompt].token_ids)

    threads = [threading.Thread(target=work, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_two_threads_may_close_a_model() -> None:
    model = make(None)
    failed: list[BaseException] = []
    ready = threading.Barrier(4)

    def close() -> None:
        ready.wait()
        try:
            model.close()
        except BaseException as err:
            failed.append(err)

    threads = [threading.Thread(target=close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_close_ends_what_another_thread_reads() -> None:
    model = make(None)
    stream = model.stream("ab", overflow="shift")
    next(stream)
    ended: list[BaseException] = []

    def read() -> None:
        try:
            for _ in stream:
                pass
        except RuntimeError as err:
            ended.append(err)

    reader = threading.Thread(target=read)
    reader.start()
    model.close()
    reader.join()
    assert "closed" in str(ended[0])
    assert batcher_of(model).closed

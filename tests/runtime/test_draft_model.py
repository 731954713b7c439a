"""A draft model guesses, and changes no token: not where it is wrong, behind, in company, or broken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from edgellm.errors import SpecError, UnsupportedError
from edgellm.protocols import Feed, Sampled
from edgellm.runtime.draft_model import READ_TOKENS, DraftModel, Wish, check_draft
from edgellm.runtime.model import Model
from edgellm.runtime.speculation import Pace, PromptLookup, StepTimes
from tests.runtime.engines import make
from tests.support.fake_backend import BOS, END, FakeBackend, FakeBatcher

PROMPTS = [f"a question, number {i} " + "x" * i for i in range(7)]


class Wrong(FakeBackend):
    """Believes firmly in something else than `FakeBackend` does, most of the time."""

    def open(self, *, n_sequences: int, context: int, observer: object = None) -> FakeBatcher:
        batcher = super().open(n_sequences=n_sequences, context=context)
        plain = batcher.step

        def step(feeds: Sequence[Feed]) -> list[Sampled]:
            found = plain(feeds)
            return [Sampled(tokens=[98 if t % 3 else t for t in s.tokens], logits=s.logits) for s in found]

        batcher.step = step  # type: ignore[method-assign]
        return batcher


def sure(**options: object) -> FakeBackend:
    """A draft model that guesses as the model draws, and is certain."""
    return FakeBackend(None, sharpness=50.0, **options)  # type: ignore[arg-type]


def draft_of(backend: FakeBackend) -> FakeBatcher:
    return backend.batchers[0]


@pytest.fixture
def plain() -> Iterator[Model]:
    with make(None, parallel=1) as model:
        yield model


@pytest.fixture(autouse=True)
def always_ask_the_draft_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fakes are equally fast, so that guessing would soon be found not to pay."""
    monkeypatch.setattr(Pace, "length", lambda self, n_sequences=1, guess_cost=0.0: 6)
    monkeypatch.setattr(PromptLookup, "guess", lambda self, n_tokens: [])


@pytest.mark.parametrize("kind", [FakeBackend, Wrong])
@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 0.5, "top_k": 3, "seed": 4}])
def test_guesses_right_or_wrong_change_no_token(
    plain: Model, kind: type[FakeBackend], options: dict[str, float]
) -> None:
    with make(None, parallel=3, draft=kind(None, sharpness=50.0)) as model:
        expected = [plain.generate(p, max_tokens=50, speculate=False, **options).token_ids for p in PROMPTS]  # type: ignore[arg-type]
        streams = [model.stream(p, max_tokens=50, **options) for p in PROMPTS]  # type: ignore[arg-type]
        pieces = [list(stream) for stream in streams]
        assert [[t for piece in found for t in piece.token_ids] for found in pieces] == expected
        usages = [found[-1].usage for found in pieces]
        assert all(usage and usage.draft_failure is None for usage in usages)
        assert sum(usage.drafted_tokens for usage in usages if usage) > 0


def test_an_identical_draft_is_always_right_and_saves_steps() -> None:
    with make(None, draft=sure()) as model:
        done = model.generate("something new", max_tokens=60, temperature=0)
        assert done.usage.accepted_tokens == done.usage.drafted_tokens > 40
        assert model.counts().n_steps < 25


def test_without_speculation_or_with_logprobs_the_draft_is_not_asked() -> None:
    backend = sure()
    with make(None, draft=backend) as model:
        model.generate("ab", max_tokens=9, temperature=0, speculate=False)
        model.generate("ab", max_tokens=9, temperature=0, top_logprobs=1)
        assert draft_of(backend).feeds == []


def test_the_draft_forgets_what_another_owner_said() -> None:
    backend = sure()
    with make(None, draft=backend) as model:
        for owner, begins_anew in (("a", True), ("a", False), ("b", True), ("a", True)):
            draft_of(backend).feeds.clear()
            model.generate("the same words for all", max_tokens=30, temperature=0, owner=owner)
            fed = [token for feed in draft_of(backend).feeds for token in feed.tokens]
            assert (BOS in fed) == begins_anew
            assert fed


def test_a_long_prompt_is_read_in_parts_and_only_after_as_much_was_drawn() -> None:
    backend = sure()
    with make(None, draft=backend, context=2048) as model:
        model.generate("y" * 1000, max_tokens=8, temperature=0)
        assert draft_of(backend).feeds == []
        done = model.generate("y" * 1000, max_tokens=200, temperature=0)
        assert max(len(feed.tokens) for feed in draft_of(backend).feeds) <= READ_TOKENS
        assert done.usage.accepted_tokens > 50


def test_a_shifted_context_and_a_shorter_draft_context_change_no_token() -> None:
    options = {"max_tokens": 300, "temperature": 0, "overflow": "shift", "keep_tokens": 4}
    short = sure()
    short.context_train = 64
    with make(None, context=96) as plain, make(None, context=96, draft=sure()) as model:
        expected = plain.generate("go on", speculate=False, **options).token_ids  # type: ignore[arg-type]
        assert model.generate("go on", **options).token_ids == expected  # type: ignore[arg-type]
    with make(None, context=96, draft=short) as model:
        done = model.generate("go on", **options)  # type: ignore[arg-type]
        assert done.token_ids == expected
        assert draft_of(short).context == 64
        assert done.usage.draft_failure is None


def test_a_draft_that_fails_is_given_up_and_said_and_the_text_goes_on(plain: Model) -> None:
    backend = sure()
    n_calls = 0

    def fail() -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls > 3:
            raise MemoryError("no room for guesses")

    with make(None, parallel=2, draft=backend) as model:
        draft_of(backend).before_step = fail
        expected = [plain.generate(p, max_tokens=40, temperature=0).token_ids for p in PROMPTS[:4]]
        streams = [model.stream(p, max_tokens=40, temperature=0) for p in PROMPTS[:4]]
        for stream, ids in zip(streams, expected, strict=True):
            pieces = list(stream)
            assert [t for piece in pieces for t in piece.token_ids] == ids
            usage = pieces[-1].usage
            assert usage
            assert usage.draft_failure == "MemoryError: no room for guesses"
        assert draft_of(backend).closed
        assert model.generate("ab", max_tokens=3).usage.draft_failure is not None


def test_a_closed_model_closes_its_draft() -> None:
    backend = sure()
    with make(None, draft=backend) as model:
        model.generate("ab", max_tokens=3)
    assert draft_of(backend).closed
    assert backend.closed


def test_another_vocabulary_is_refused_with_the_first_difference() -> None:
    larger = FakeBackend()
    larger.vocab_size += 1
    with pytest.raises(SpecError, match="the draft model has 260 tokens, the model 259"):
        check_draft(FakeBackend(), larger)

    class Renamed(FakeBackend):
        def token_text(self, token: int) -> str:
            return "<eos>" if token == END else super().token_text(token)

    with pytest.raises(
        SpecError, match="token 257 is '<eos>' in the draft model, '</s>' in the model"
    ) as caught:
        check_draft(FakeBackend(), Renamed())
    assert caught.value.hint
    check_draft(FakeBackend(), FakeBackend())


def test_a_cache_that_cannot_be_truncated_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="the draft model's cache"):
        check_draft(FakeBackend(), FakeBackend(can_truncate=False))
    with pytest.raises(UnsupportedError, match="the model's cache"):
        check_draft(FakeBackend(can_truncate=False), FakeBackend())


def test_sequences_are_guessed_for_in_the_same_calls() -> None:
    backend = sure()
    times = StepTimes()
    draft = DraftModel(backend, times, n_sequences=3, context=64)
    n_steps = 0

    def count() -> None:
        nonlocal n_steps
        n_steps += 1

    draft_of(backend).before_step = count
    texts = [backend.tokenize(text, add_special=True, parse_special=False) for text in ("abc", "xy", "q")]
    wishes = [Wish(i, text, n, 9) for i, (text, n) in enumerate(zip(texts, (4, 2, 4), strict=True))]
    found = draft.guess(wishes)
    assert {i: len(tokens) for i, tokens in found.items()} == {0: 4, 1: 2, 2: 4}
    assert n_steps == 4
    again = draft.guess([Wish(0, [*texts[0], *found[0][:2], 65], 3, 9)])
    assert list(draft_of(backend).tokens(0)) == [*texts[0], *found[0][:2], 65, *again[0][:-1]]
    assert n_steps == 7


def test_what_the_draft_does_not_believe_in_is_not_guessed() -> None:
    backend = FakeBackend(None)
    draft = DraftModel(backend, StepTimes(), n_sequences=1, context=64)
    assert draft.guess([Wish(0, [1, 2, 3], 4, 9)]) == {0: []}

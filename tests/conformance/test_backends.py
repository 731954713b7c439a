"""One contract, run over every backend: llama.cpp with the embedded model, and the fake that other tests stand on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgellm.api import models
from edgellm.errors import BackendError, ContextOverflowError, UnsupportedError
from edgellm.native.llama import LlamaOptions
from edgellm.protocols import Backend, Batcher, Feed, FloatArray, Observation, SamplingParams
from edgellm.report import RuntimeInfo
from tests.support.fake_backend import FakeBackend

GREEDY = SamplingParams()
CONTEXT = 64


@pytest.fixture(scope="module", params=["llama.cpp", "fake"])
def backend(request: pytest.FixtureRequest, smollm2_gguf: Path) -> Iterator[Backend]:
    real = request.param == "llama.cpp"
    opened = models.open_backend(smollm2_gguf, LlamaOptions(n_threads=1)) if real else FakeBackend()
    yield opened
    opened.close()
    opened.close()


@pytest.fixture
def batcher(backend: Backend) -> Iterator[Batcher]:
    opened = backend.open(n_sequences=2, context=CONTEXT)
    yield opened
    opened.close()
    opened.close()


@pytest.fixture
def prompt(backend: Backend) -> list[int]:
    return backend.tokenize("one two three four", add_special=False, parse_special=False)


def go_on(
    batcher: Batcher, sequence: int, tokens: list[int], n: int, sampling: SamplingParams = GREEDY
) -> list[int]:
    drawn: list[int] = []
    for _ in range(n):
        tokens = batcher.step([Feed(sequence=sequence, tokens=tokens, sampling=sampling)])[0].tokens
        drawn += tokens
    return drawn


def test_it_describes_itself(backend: Backend) -> None:
    assert isinstance(backend.info, RuntimeInfo)
    assert backend.vocab_size > 2
    assert backend.context_train >= 64
    assert backend.chat_template
    assert backend.capabilities.can_truncate
    assert backend.capabilities.can_copy
    assert backend.eos_id is not None
    assert backend.is_end(backend.eos_id)


def test_text_survives_its_tokens(backend: Backend) -> None:
    for text in ("Hello", "naïve 漢字 😀", "line\nline", ""):
        ids = backend.tokenize(text, add_special=False, parse_special=False)
        assert b"".join(map(backend.token_bytes, ids)).decode() == text
        assert all(0 <= token < backend.vocab_size for token in ids)
        assert not any(backend.is_end(token) for token in ids)


def test_special_text_is_a_token_only_where_asked(backend: Backend) -> None:
    assert backend.eos_id is not None
    name = backend.token_text(backend.eos_id)
    assert backend.tokenize(name, add_special=False, parse_special=True) == [backend.eos_id]
    assert backend.eos_id not in backend.tokenize(name, add_special=False, parse_special=False)
    assert backend.token_bytes(backend.eos_id) == b""


def test_a_step_answers_each_feed_in_order(batcher: Batcher, prompt: list[int], backend: Backend) -> None:
    first, second = batcher.step(
        [
            Feed(sequence=1, tokens=prompt, want="all"),
            Feed(sequence=0, tokens=prompt[:1], sampling=GREEDY, want="last"),
        ]
    )
    assert first.tokens == []
    assert first.logits is not None
    assert first.logits.shape == (len(prompt), backend.vocab_size)
    assert second.logits is not None
    assert second.logits.shape == (1, backend.vocab_size)
    assert second.tokens == [int(second.logits[0].argmax())]
    assert (batcher.length(0), batcher.length(1)) == (1, len(prompt))
    assert np.isfinite(first.logits).all()


def test_nothing_wanted_gives_nothing(batcher: Batcher, prompt: list[int]) -> None:
    (done,) = batcher.step([Feed(sequence=0, tokens=prompt)])
    assert (done.tokens, done.logits) == ([], None)


def test_no_feeds_no_answers(batcher: Batcher) -> None:
    assert batcher.step([]) == []


def test_a_prompt_in_parts_equals_the_whole(batcher: Batcher, prompt: list[int]) -> None:
    whole = go_on(batcher, 0, prompt, 6)
    batcher.step([Feed(sequence=1, tokens=prompt[:2])])
    assert go_on(batcher, 1, prompt[2:], 6) == whole


def test_truncating_and_copying_keep_a_prefix(batcher: Batcher, prompt: list[int]) -> None:
    whole = go_on(batcher, 0, prompt, 6)
    batcher.copy_prefix(0, 1, len(prompt) - 1)
    batcher.truncate(0, len(prompt) - 1)
    batcher.truncate(0, CONTEXT)
    assert [batcher.length(i) for i in (0, 1)] == [len(prompt) - 1] * 2
    assert go_on(batcher, 1, prompt[-1:], 6) == go_on(batcher, 0, prompt[-1:], 6) == whole


def test_a_freed_sequence_is_empty(batcher: Batcher, prompt: list[int]) -> None:
    whole = go_on(batcher, 0, prompt, 4)
    batcher.free(0)
    assert batcher.length(0) == 0
    assert go_on(batcher, 0, prompt, 4) == whole


def test_a_reset_sampler_starts_its_seed_anew(batcher: Batcher, prompt: list[int]) -> None:
    sampling = SamplingParams(temperature=1.5, seed=11)
    first = go_on(batcher, 0, prompt, 6, sampling)
    batcher.truncate(0, len(prompt) - 1)
    batcher.reset_sampler(0)
    assert go_on(batcher, 0, prompt[-1:], 6, sampling) == first


def test_too_many_tokens_overflow_and_append_nothing(batcher: Batcher, prompt: list[int]) -> None:
    with pytest.raises(ContextOverflowError, match=f"65 tokens do not fit the context of {CONTEXT}"):
        batcher.step([Feed(sequence=0, tokens=prompt), Feed(sequence=1, tokens=prompt[:1] * (CONTEXT + 1))])
    assert [batcher.length(i) for i in (0, 1)] == [0, 0]


def test_a_model_of_text_gives_no_embeddings(backend: Backend) -> None:
    with pytest.raises(UnsupportedError, match="generates text"):
        backend.open_embedder(context=CONTEXT)


def test_wrong_use_is_a_value_error(batcher: Batcher, backend: Backend) -> None:
    for feeds in (
        [Feed(sequence=2, tokens=[1])],
        [Feed(sequence=-1, tokens=[1])],
        [Feed(sequence=0, tokens=[])],
        [Feed(sequence=0, tokens=[backend.vocab_size])],
        [Feed(sequence=0, tokens=[1]), Feed(sequence=0, tokens=[1])],
    ):
        with pytest.raises(ValueError, match=r"sequence|token"):
            batcher.step(feeds)
    for use in (batcher.free, batcher.length):
        with pytest.raises(ValueError, match="sequence"):
            use(-1)
    with pytest.raises(ValueError, match="n_tokens"):
        batcher.truncate(0, -1)


def test_a_closed_batcher_refuses(backend: Backend) -> None:
    batcher = backend.open(n_sequences=1, context=CONTEXT)
    batcher.close()
    with pytest.raises(RuntimeError, match="closed"):
        batcher.step([Feed(sequence=0, tokens=[1])])


class Sums:
    """An Observer: rows and squares seen of each weight but the head."""

    def __init__(self, error: Exception | None = None) -> None:
        self.n_rows: dict[str, int] = {}
        self.error = error

    def wants(self, weight: str) -> bool:
        return weight.startswith("blk.0.")

    def observe(self, observation: Observation) -> None:
        if self.error:
            raise self.error
        assert np.isfinite(observation.rows).all()
        assert sum(len(rows) for _, rows in observation.by_expert()) >= len(observation.rows)
        self.n_rows[observation.weight] = self.n_rows.get(observation.weight, 0) + len(observation.rows)


def test_an_observer_sees_every_token_of_the_weights_it_wants_and_changes_nothing(
    backend: Backend, prompt: list[int]
) -> None:
    assert backend.capabilities.observer
    found = []
    observer = Sums()
    for given in (None, observer):
        batcher = backend.open(n_sequences=2, context=CONTEXT, observer=given)
        found.append(batcher.step([Feed(sequence=0, tokens=prompt, want="all")])[0].logits)
        batcher.close()
    np.testing.assert_array_equal(found[0], found[1])
    assert {"blk.0.attn_q.weight", "blk.0.attn_k.weight"} <= observer.n_rows.keys()
    assert set(observer.n_rows.values()) == {len(prompt)}
    assert all(weight.startswith("blk.0.") for weight in observer.n_rows)


def test_what_an_observer_raises_the_step_raises(backend: Backend, prompt: list[int]) -> None:
    observer = Sums(RuntimeError("no room"))
    batcher = backend.open(n_sequences=1, context=CONTEXT, observer=observer)
    with pytest.raises(RuntimeError, match="no room"):
        batcher.step([Feed(sequence=0, tokens=prompt)])
    batcher.free(0)
    observer.error = None
    batcher.step([Feed(sequence=0, tokens=prompt)])
    assert observer.n_rows["blk.0.attn_q.weight"] == len(prompt)
    batcher.close()


def sampled(seed: int) -> SamplingParams:
    return SamplingParams(temperature=0.9, top_k=20, seed=seed)


@pytest.mark.parametrize("sampling", [GREEDY, sampled(1), sampled(2), SamplingParams(repeat_penalty=1.3)])
def test_a_draft_changes_no_token(batcher: Batcher, prompt: list[int], sampling: SamplingParams) -> None:
    plain = go_on(batcher, 0, prompt, 12, sampling)
    batcher.free(0)
    drawn: list[int] = []
    feed = prompt
    rng = np.random.default_rng(7)
    while len(drawn) < 12:
        n_right = int(rng.integers(0, 4))
        draft = plain[len(drawn) : len(drawn) + n_right] + [3, 4][: int(rng.integers(0, 3))]
        done = batcher.step([Feed(sequence=0, tokens=feed, draft=draft, sampling=sampling)])[0].tokens
        assert batcher.length(0) == len(prompt) + len(drawn) + len(done) - 1
        drawn += done
        feed = done[-1:]
    assert drawn[:12] == plain


def test_a_draft_that_cannot_be_checked_is_refused(batcher: Batcher, prompt: list[int]) -> None:
    for feed in (
        Feed(sequence=0, tokens=prompt, draft=[1]),
        Feed(sequence=0, tokens=prompt, draft=[1], sampling=GREEDY, want="all"),
        Feed(sequence=0, tokens=prompt, draft=[-1], sampling=GREEDY),
    ):
        with pytest.raises(ValueError, match=r"draft|vocabulary"):
            batcher.step([feed])
    assert batcher.length(0) == 0


class Only:
    """Lets some tokens pass, and remembers what was drawn."""

    def __init__(self, *tokens: int) -> None:
        self.tokens, self.drawn = list(tokens), []

    def mask(self, logits: FloatArray) -> None:
        kept = logits[self.tokens].copy()
        logits[:] = -np.inf
        logits[self.tokens] = kept

    def accept(self, token: int) -> None:
        self.drawn.append(token)


@pytest.mark.parametrize("sampling", [GREEDY, sampled(3)])
def test_a_constraint_is_kept_and_told(batcher: Batcher, prompt: list[int], sampling: SamplingParams) -> None:
    only = Only(*range(40, 60))
    feed, drawn = prompt, []
    for draft in ([], [41, 42], [5], []):
        done = batcher.step(
            [Feed(sequence=0, tokens=feed, sampling=sampling, constraint=only, draft=draft, want="last")]
        )[0]
        assert done.logits is not None
        assert np.isfinite(done.logits).all()
        drawn += done.tokens
        feed = done.tokens[-1:]
    assert only.drawn == drawn
    assert set(drawn) <= set(only.tokens)


def test_a_saved_sequence_goes_on_as_if_it_had_never_left(batcher: Batcher, prompt: list[int]) -> None:
    plain = go_on(batcher, 0, prompt, 8)
    fed = [*prompt, *plain[:-1]]
    state = batcher.save(0)
    expected = go_on(batcher, 0, plain[-1:], 8)
    go_on(batcher, 1, [5, 6, 7], 4)
    batcher.load(1, state, fed)
    assert batcher.length(1) == len(fed)
    assert go_on(batcher, 1, plain[-1:], 8) == expected


def test_what_is_no_state_leaves_the_sequence_empty(batcher: Batcher, prompt: list[int]) -> None:
    go_on(batcher, 0, prompt, 4)
    state = batcher.save(0)
    for wrong, tokens in ((b"", prompt), (state[:-9], prompt), (b"x" * 100, prompt), (state, [1])):
        with pytest.raises(BackendError):
            batcher.load(1, wrong, tokens)
        assert batcher.length(1) == 0
    assert go_on(batcher, 1, prompt, 2) == go_on_anew(batcher, prompt)


def go_on_anew(batcher: Batcher, prompt: list[int]) -> list[int]:
    batcher.free(0)
    return go_on(batcher, 0, prompt, 2)


def test_shifting_forgets_the_middle(batcher: Batcher, prompt: list[int]) -> None:
    go_on(batcher, 0, [*prompt, *range(40, 60)], 1)
    length = batcher.length(0)
    batcher.shift(0, 2, 9)
    assert batcher.length(0) == length - 9
    go_on(batcher, 0, [44], CONTEXT - batcher.length(0))
    assert batcher.length(0) == CONTEXT
    for keep, drop in ((-1, 2), (0, 0), (CONTEXT, 1)):
        with pytest.raises(ValueError, match="drop"):
            batcher.shift(0, keep, drop)


def test_an_unknown_adapter_is_refused(batcher: Batcher, prompt: list[int]) -> None:
    with pytest.raises(ValueError, match="adapter"):
        batcher.step([Feed(sequence=0, tokens=prompt, adapters=(("nobody", 1.0),))])
    assert batcher.length(0) == 0

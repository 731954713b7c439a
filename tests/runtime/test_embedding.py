"""Texts as embeddings over a fake encoder: shapes, what is refused, threads, asyncio, a child that embeds."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from edgellm.errors import BackendError, ContextOverflowError, NativeCrash, SpecError, UnsupportedError
from edgellm.protocols import Pooling
from edgellm.runtime import isolate
from edgellm.runtime.embedding import MAX_TEXTS, Batch, Embedded
from edgellm.runtime.engine import EmbeddingEngine
from edgellm.runtime.isolate import IsolatedEngine
from edgellm.runtime.model import Model
from tests.runtime.engines import make
from tests.samples import make_manifest
from tests.support.fake_backend import BOS, FakeBackend, FakeEmbedder, input_rows

CHILD = [sys.executable, "-m", "tests.support.engine_child"]
TEXTS = ["one", "another text", "", "naïve 😀"]


def isolated(**options: Any) -> Model:
    return Model(IsolatedEngine(CHILD, b"embed", **options), make_manifest(architecture="bert"))


def encoder(pooling: Pooling = "mean") -> Model:
    engine = EmbeddingEngine(FakeBackend(pooling=pooling, chat_template=None), name="tiny", context=64)
    return Model(engine, make_manifest(architecture="bert"))


@pytest.fixture(params=["here", "isolated"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    monkeypatch.setattr(isolate, "FIRST_PAUSE_S", 0.01)
    with encoder() if request.param == "here" else isolated() as opened:
        yield opened


def expected(text: str) -> Any:
    return input_rows([BOS, *text.encode()]).mean(axis=0)


def test_one_row_for_each_text_in_order(model: Model) -> None:
    found = model.embed(TEXTS, normalize=False)
    assert (found.rows.dtype, found.rows.shape) == (np.float32, (4, 32))
    for row, text in zip(found.rows, TEXTS, strict=True):
        np.testing.assert_array_equal(row, expected(text))
    assert found.usage.prompt_tokens == sum(1 + len(text.encode()) for text in TEXTS)
    assert found.usage.prompt_tokens == sum(model.count_tokens(text) for text in TEXTS)
    assert found.usage.total_s > 0
    assert model.counts().n_done == 4


def test_rows_have_length_one_unless_asked_otherwise(model: Model) -> None:
    rows, plain = model.embed(TEXTS).rows, model.embed(TEXTS, normalize=False).rows
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(rows * np.linalg.norm(plain, axis=1, keepdims=True), plain, rtol=1e-5)


def test_a_single_text_and_token_ids_are_texts_too(model: Model) -> None:
    one = model.embed("one").rows
    assert one.shape == (1, 32)
    np.testing.assert_array_equal(model.embed([[BOS, *b"one"], list(b"x")]).rows[:1], one)


def test_a_text_that_is_too_long_is_refused_with_both_numbers_and_its_place(model: Model) -> None:
    with pytest.raises(ContextOverflowError, match="text 2: 65 tokens do not fit the context of 64"):
        model.embed(["a", "x" * 63, "x" * 64])
    assert model.embed(["x" * 63]).usage.prompt_tokens == 64 == model.context


@pytest.mark.parametrize(
    ("texts", "kind", "words"),
    [
        ([], ValueError, "0 texts"), (["x"] * (MAX_TEXTS + 1), ValueError, "at most|65537 texts"),
        ([1], TypeError, "text 0 is int"), (["a", None], TypeError, "text 1 is NoneType"),
        ([[1.5]], TypeError, "text 0 is list"), ([b"x"], TypeError, "text 0 is bytes"),
        ([[]], ValueError, "text 0: no tokens"), (["a", [10**6]], ValueError, "text 1: .*outside the vocabulary"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused_by_its_place(
    model: Model, texts: Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        model.embed(texts)
    assert model.embed("a").rows.shape == (1, 32)


def test_an_encoder_generates_no_text(model: Model) -> None:
    assert not model.generates
    assert not model.has_chat_template
    for use in (
        lambda: model.generate("a"),
        lambda: model.stream("a"),
        lambda: model.chat([{"role": "user"}]),
    ):
        with pytest.raises(UnsupportedError, match="an embedding model: it generates no text") as caught:
            use()
        assert caught.value.hint
    assert model.tokenize("one") == list(b"one")
    with pytest.raises(SpecError, match="no chat template"):
        model.count_tokens([{"role": "user", "content": "x"}])


def test_threads_share_an_encoder_without_mixing(model: Model) -> None:
    texts = [f"text {i}" for i in range(24)]
    with ThreadPoolExecutor(6) as pool:
        rows = list(pool.map(lambda text: model.embed(text, normalize=False).rows[0], texts))
    for row, text in zip(rows, texts, strict=True):
        np.testing.assert_array_equal(row, expected(text))


def test_every_method_has_a_twin_for_asyncio() -> None:
    async def embeddings() -> None:
        async with encoder() as model:
            both = await asyncio.gather(model.aembed(TEXTS), model.aembed(TEXTS[::-1]))
            np.testing.assert_array_equal(both[0].rows, both[1].rows[::-1])
            np.testing.assert_array_equal(both[0].rows, model.embed(TEXTS).rows)
            with pytest.raises(ContextOverflowError):
                await model.aembed("x" * 99)
            with pytest.raises(UnsupportedError):
                await model.agenerate("x")
        with pytest.raises(RuntimeError, match="closed"):
            await model.aembed("x")

    async def text() -> None:
        async with make() as model:
            hello = [{"role": "user", "content": "Hello"}]
            assert (await model.achat(hello, temperature=0)).text == "an answer"
            assert await model.atokenize("ab") == model.tokenize("ab")
            assert await model.atokenize("<turn>", parse_special=True) == [258]
            assert await model.acount_tokens(hello) == model.count_tokens(hello)

    asyncio.run(embeddings())
    asyncio.run(text())


def test_cancelling_the_task_stops_after_the_text_that_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()
    seen: list[list[int]] = []

    def wait(tokens: Sequence[int]) -> None:
        seen.append(list(tokens))
        begun.set()
        go.wait()

    monkeypatch.setattr(FakeEmbedder, "before_text", staticmethod(wait))

    async def story(model: Model) -> None:
        task = asyncio.create_task(model.aembed(["a", "b", "c"]))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()

    with encoder() as model:
        asyncio.run(story(model))
    assert seen == [[BOS, *b"a"]]


def test_closing_lets_the_text_that_is_computed_end(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()
    monkeypatch.setattr(FakeEmbedder, "before_text", staticmethod(lambda _: (begun.set(), go.wait())))
    backend = FakeBackend(pooling="mean", chat_template=None)
    engine = EmbeddingEngine(backend, name="tiny", context=64)
    model = Model(engine, make_manifest(architecture="bert"))
    with ThreadPoolExecutor(1) as pool:
        embedding = pool.submit(model.embed, ["a", "b"])
        begun.wait()
        model.close()
        model.close()
        assert not backend.closed
        go.set()
        with pytest.raises(RuntimeError, match="closed"):
            embedding.result()
    assert backend.closed
    with pytest.raises(RuntimeError, match="closed"):
        model.embed("a")


def test_a_file_that_names_no_pooling_is_refused_until_one_is_given() -> None:
    with pytest.raises(UnsupportedError, match="does not say how") as caught:
        encoder("none")
    assert 'pooling="mean"' in (caught.value.hint or "")
    backend = FakeBackend(pooling="none", chat_template=None)
    engine = EmbeddingEngine(backend, name="tiny", context=64, pooling="cls")
    with Model(engine, make_manifest(architecture="bert")) as model:
        assert model.embed("x").rows.shape == (1, 32)


def test_a_model_of_text_embeds_where_a_pooling_is_named() -> None:
    with make() as model:
        with pytest.raises(UnsupportedError, match="generates text"):
            model.embed("x")
        assert model.generate("x", temperature=0).text == "an answer"
    with make(None, pooling="last") as model:
        assert model.generates
        stream = model.stream("x", temperature=0, overflow="shift")
        next(stream)
        assert model.embed(["a", "b"]).rows.shape == (2, 32)
        assert next(stream).token_ids


def test_a_refusal_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A context is a second KV cache: it is not made again to be refused again."""
    asked: list[int] = []
    plain = FakeBackend.open_embedder

    def open_embedder(backend: FakeBackend, *, context: int, **options: Any) -> Any:
        asked.append(context)
        return plain(backend, context=context, **options)

    monkeypatch.setattr(FakeBackend, "open_embedder", open_embedder)
    with make() as model:
        for _ in range(3):
            with pytest.raises(UnsupportedError, match="generates text"):
                model.embed("x")
    assert len(asked) == 1


@pytest.mark.parametrize("row", [b"", b"abc", b"\0\0\xc0\x7f", b"\0" * 8])
def test_an_engine_that_sends_no_rows_is_a_backend_error(row: bytes) -> None:
    rows = iter([Embedded(row=b"\0\0\x80\x3f", n_tokens=1), Embedded(row=row, n_tokens=1)])
    batch = Batch(lambda *_: next(rows), normalize=False)
    batch.add("a")
    with pytest.raises(BackendError, match="text 1: an embedding"):
        batch.add("b")


@pytest.mark.parametrize(("word", "name"), [("crash", "SIGSEGV"), ("hang", "hang")])
def test_a_crash_or_a_hang_while_embedding_is_an_error(
    word: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolate, "FIRST_PAUSE_S", 0.01)
    with isolated(hang_s=2.5) as model:
        with pytest.raises(NativeCrash) as caught:
            model.embed(["a", f"a {word}"])
        assert caught.value.signal_name == name
        assert model.embed("a").rows.shape == (1, 32)

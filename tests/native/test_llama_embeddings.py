"""Embeddings by llama.cpp: their shapes, what is refused before it could bring the process down, repeatable numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from edgellm.errors import BackendError, ContextOverflowError, UnsupportedError
from edgellm.native.llama import LlamaModel, LlamaOptions
from edgellm.native.llama_library import bindings
from edgellm.protocols import AskedPooling, Feed, Observation
from tests.support import tiny_llama, tiny_models
from tests.support.families.row import with_header
from tests.support.tiny_bert import CONTEXT, VOCAB_SIZE, WIDTH, random_tensors, write_tiny_bert

IDS = [5, 9, 63, 0, 17, 5]
OPTIONS = LlamaOptions(n_threads=1)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def encoder(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaModel]:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    model = LlamaModel(tiny_models.write_f32(tiny_models.read_source(directory), path), OPTIONS)
    yield model
    model.close()


def test_one_row_for_each_token_or_one_for_the_text(encoder: LlamaModel) -> None:
    states = encoder.open_embedder(context=CONTEXT, pooling="none").embed(IDS)
    assert states.shape == (len(IDS), WIDTH)
    expected = {
        "model": states.mean(axis=0),
        "mean": states.mean(axis=0),
        "cls": states[0],
        "last": states[-1],
    }
    pooling: AskedPooling
    for pooling in ("model", "mean", "cls", "last"):
        embedder = encoder.open_embedder(context=CONTEXT, pooling=pooling)
        assert embedder.pooling == ("mean" if pooling == "model" else pooling)
        found = embedder.embed(IDS)
        assert found.shape == (1, embedder.embedding_size)
        np.testing.assert_allclose(found[0], expected[pooling], rtol=1e-5, atol=1e-5)


def test_a_text_does_not_depend_on_the_one_before(encoder: LlamaModel) -> None:
    embedder = encoder.open_embedder(context=CONTEXT)
    first = embedder.embed(IDS)
    other = embedder.embed(list(range(CONTEXT)))
    np.testing.assert_array_equal(embedder.embed(IDS), first)
    assert np.abs(other - first).max() > 0.01


def test_every_token_sees_all_others(encoder: LlamaModel) -> None:
    embedder = encoder.open_embedder(context=CONTEXT, pooling="none")
    assert np.abs(embedder.embed(IDS)[0] - embedder.embed([*IDS[:-1], 6])[0]).max() > 1e-4


def test_normalized_rows_have_length_one(encoder: LlamaModel) -> None:
    embedder = encoder.open_embedder(context=CONTEXT, pooling="none")
    plain, scaled = embedder.embed(IDS), embedder.embed(IDS, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(scaled, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(scaled * np.linalg.norm(plain, axis=1, keepdims=True), plain, rtol=1e-5)


def test_a_text_longer_than_the_context(encoder: LlamaModel) -> None:
    embedder = encoder.open_embedder(context=4)
    assert embedder.embed(IDS[:4]).shape == (1, WIDTH)
    with pytest.raises(ContextOverflowError, match="5 tokens do not fit the context of 4"):
        embedder.embed(IDS[:5])


@pytest.mark.parametrize("context", [0, CONTEXT + 1])
def test_a_context_beyond_the_table_of_positions(encoder: LlamaModel, context: int) -> None:
    with pytest.raises(ValueError, match=f"context is {context}, outside 1 to {CONTEXT}"):
        encoder.open_embedder(context=context)


@pytest.mark.parametrize("tokens", [[], [-1], [3, VOCAB_SIZE]])
def test_tokens_that_are_none(encoder: LlamaModel, tokens: list[int]) -> None:
    embedder = encoder.open_embedder(context=CONTEXT)
    with pytest.raises(ValueError, match=r"no tokens|outside the vocabulary"):
        embedder.embed(tokens)


def test_a_closed_embedder(encoder: LlamaModel) -> None:
    embedder = encoder.open_embedder(context=CONTEXT)
    embedder.close()
    embedder.close()
    with pytest.raises(RuntimeError, match="closed"):
        embedder.embed(IDS)


def test_an_encoder_generates_no_text(encoder: LlamaModel) -> None:
    with pytest.raises(UnsupportedError, match="generates no text"):
        encoder.open(context=CONTEXT)


def test_a_model_that_generates_text_is_refused_before_a_cache_is_made(
    decoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_context(*_: object) -> None:
        pytest.fail("a context was made")

    model = LlamaModel(decoder, OPTIONS)
    monkeypatch.setattr(bindings(), "llama_init_from_model", no_context)
    pooling: AskedPooling
    for pooling in ("model", "none"):
        with pytest.raises(UnsupportedError, match="generates text"):
            model.open_embedder(context=64, pooling=pooling)
    monkeypatch.undo()
    model.close()


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    return tiny_llama.write_f32(
        tiny_llama.read_source(tiny_llama.write_tiny_llama(folder / "m")), folder / "m.gguf"
    )


@pytest.mark.parametrize("n_ubatch", [512, 8])
def test_a_model_that_generates_text_embeds_where_a_pooling_is_named(decoder: Path, n_ubatch: int) -> None:
    """What its head makes of the state of a token is that token's logits, and of a mean of states their mean."""
    model = LlamaModel(decoder, LlamaOptions(n_threads=1, n_ubatch=n_ubatch, n_batch=512))
    (entry,) = [t for t in GGUFReader(decoder).tensors if t.name == "output.weight"]
    head = np.asarray(entry.data, dtype=np.float32)
    batcher = model.open(context=64)
    ids = [5, 9, 300, 17, 5, 64, 31, 32, 33, 34, 35, 36, 90, 91, 7, 2, 11, 100, 101, 102]
    logits = batcher.step([Feed(sequence=0, tokens=ids, want="all")])[0].logits
    assert logits is not None
    expected = {"last": logits[-1], "mean": logits.mean(axis=0), "cls": logits[0]}
    pooling: AskedPooling
    for pooling in ("last", "mean", "cls"):
        embedder = model.open_embedder(context=64, pooling=pooling)
        first = embedder.embed(ids)
        np.testing.assert_allclose(head @ first[0], expected[pooling], atol=2e-3)
        embedder.embed(ids[:3])
        np.testing.assert_array_equal(embedder.embed(ids), first)
        embedder.close()
    batcher.close()
    model.close()


@pytest.mark.parametrize(("number", "refusal"), [(0, "names no pooling"), (4, "ranks"), (3, None)])
def test_a_model_that_generates_text_embeds_as_its_file_says(
    tmp_path: Path, number: int, refusal: str | None
) -> None:
    source = tiny_llama.read_source(tiny_llama.write_tiny_llama(tmp_path / "m"))
    entry = source.header["llama.block_count"]._replace(value=number)
    source = dataclasses.replace(source, header={**source.header, "llama.pooling_type": entry})
    model = LlamaModel(tiny_llama.write_f32(source, tmp_path / "model.gguf"), OPTIONS)
    if refusal:
        with pytest.raises(UnsupportedError, match=refusal):
            model.open_embedder(context=64)
    else:
        embedder = model.open_embedder(context=64)
        assert embedder.pooling == "last"
        embedder.close()
    model.close()


def test_a_model_that_ranks_does_not_embed(directory: Path, tmp_path: Path) -> None:
    source = with_header("pooling_type", 4)(tiny_models.read_source(directory))
    model = LlamaModel(tiny_models.write_f32(source, tmp_path / "model.gguf"), OPTIONS)
    with pytest.raises(UnsupportedError, match="ranks"):
        model.open_embedder(context=CONTEXT)
    model.close()


def test_a_model_that_gives_no_numbers_is_broken(tmp_path: Path) -> None:
    tensors = random_tensors()
    tensors["encoder.layer.1.output.LayerNorm.weight"][:] = 3e38  # finite, but its products are not
    source = tiny_models.read_source(write_tiny_bert(tmp_path / "bert", tensors=tensors))
    model = LlamaModel(tiny_models.write_f32(source, tmp_path / "model.gguf"), OPTIONS)
    with pytest.raises(BackendError, match="not finite"):
        model.open_embedder(context=CONTEXT).embed(IDS)
    model.close()


class Watcher:
    """Keeps how many rows each weight met; may fail."""

    def __init__(self, error: Exception | None = None) -> None:
        self.rows: dict[str, int] = {}
        self.error = error

    def wants(self, weight: str) -> bool:
        return weight.startswith("blk.")

    def observe(self, observation: Observation) -> None:
        if self.error:
            raise self.error
        self.rows[observation.weight] = self.rows.get(observation.weight, 0) + len(observation.rows)


def test_an_observer_sees_every_token_and_changes_nothing(encoder: LlamaModel) -> None:
    watcher = Watcher()
    plain = encoder.open_embedder(context=CONTEXT).embed(IDS)
    embedder = encoder.open_embedder(context=CONTEXT, observer=watcher)
    np.testing.assert_array_equal(embedder.embed(IDS), plain)
    names = {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"}
    assert watcher.rows == {f"blk.{i}.{name}.weight": len(IDS) for i in range(2) for name in names}


def test_what_an_observer_raises_is_raised(encoder: LlamaModel) -> None:
    embedder = encoder.open_embedder(context=CONTEXT, observer=Watcher(KeyError("mine")))
    with pytest.raises(KeyError, match="mine"):
        embedder.embed(IDS)

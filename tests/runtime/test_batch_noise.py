"""What company does to a greedy text: it parts only where two tokens are as likely as each other, within measured noise."""

from __future__ import annotations

from typing import Literal

import pytest

from edgellm import api
from edgellm.api import models
from edgellm.native.llama import LlamaOptions
from tests.runtime.conftest import OfType
from tests.support import batch_noise
from tests.support.batch_noise import STORIES

N_TOKENS = 16
N_LONGER = 16
WORDS = "river stone house green seven window carries slowly letter under music because winter paper " * 6


@pytest.mark.parametrize("kind", ["BF16", "Q4_0"])
def test_a_text_parts_in_company_only_where_two_tokens_are_closer_than_the_noise(
    kind: str, smollm2_of: OfType
) -> None:
    path = smollm2_of(kind)
    backend = models.open_backend(path / "model.gguf", LlamaOptions(n_threads=2))
    prompts = [
        backend.tokenize(text, add_special=False, parse_special=False)
        for text in (*STORIES[:-1], WORDS + STORIES[-1])
    ]
    alone = [batch_noise.answer_alone(backend, prompt, N_TOKENS) for prompt in prompts]
    noise = batch_noise.noise_in_company(backend, alone, chunk_tokens=32)
    backend.close()
    with api.load(path, context=256, parallel=8, threads=2) as model:
        streams = []
        for one in alone:
            options = {"max_tokens": N_TOKENS, "temperature": 0, "speculate": False}
            streams.append(model.stream(one.prompt, **options))  # type: ignore[arg-type]
            model.stream(WORDS, max_tokens=50, owner="another").close()
        answers = [[token for piece in stream for token in piece.token_ids] for stream in streams]
        assert model.counts().n_cancelled > 0
    gaps = [batch_noise.gap_where_they_part(one, ids) for one, ids in zip(alone, answers, strict=True)]
    assert all(gap is None or gap < noise for gap in gaps), f"gaps {gaps}, noise {noise}"
    assert noise < 3, "logits of a text in company have little to do with those of the text alone"


@pytest.mark.parametrize(("flash_attention", "most_words"), [("auto", 2), ("off", 4)])
def test_quantized_texts_in_company_are_those_of_an_idle_run(
    flash_attention: Literal["auto", "off"], most_words: int, smollm2_of: OfType
) -> None:
    """With flash attention up to 256 tokens: beyond, llama.cpp computes a sequence alone in another way."""
    path = smollm2_of("Q4_0")
    settings = LlamaOptions(n_threads=2, flash_attention=flash_attention)
    backend = models.open_backend(path / "model.gguf", settings)
    sizes = [i % most_words + 1 for i in range(8)]
    texts = [*STORIES, *(WORDS * n + STORIES[i % 8] for i, n in enumerate(sizes))]
    prompts = [backend.tokenize(text, add_special=False, parse_special=False) for text in texts]
    assert flash_attention == "off" or max(map(len, prompts)) + N_LONGER <= 256
    alone = [batch_noise.answer_alone(backend, prompt, N_LONGER).ids for prompt in prompts]
    backend.close()
    with api.load(path, context=512, parallel=8, threads=2, flash_attention=flash_attention) as model:
        streams = []
        for i, prompt in enumerate(prompts):
            options = {"max_tokens": N_LONGER, "temperature": 0, "cache_prompt": False, "owner": str(i % 3)}
            guess = flash_attention == "auto" and i % 2 == 1
            streams.append(model.stream(prompt, speculate=guess, **options))  # type: ignore[arg-type]
            model.stream(WORDS * (i % 5 + 1), max_tokens=50, owner="another").close()
        answers = [[token for piece in stream for token in piece.token_ids] for stream in streams]
        assert model.counts().n_cancelled > 0
    assert answers == alone

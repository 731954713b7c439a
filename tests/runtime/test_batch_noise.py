"""What company does to a greedy text: it parts only where two tokens are as likely as each other, within measured noise."""

from __future__ import annotations

import pytest

from edgellm import api
from edgellm.api import models
from edgellm.native.llama import LlamaOptions
from tests.runtime.conftest import OfType
from tests.support import batch_noise
from tests.support.batch_noise import STORIES

N_TOKENS = 16
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

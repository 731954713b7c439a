"""A real draft model: SmolLM2's own Q4_0 guesses for its Q8_0 and its BF16, here and in a child."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgellm import api
from edgellm.api import models
from edgellm.errors import SpecError
from edgellm.native.llama import LlamaOptions
from edgellm.runtime.model import Model
from edgellm.runtime.request import Completion, completion
from tests.runtime.conftest import OfType
from tests.support import batch_noise, tiny_llama
from tests.support.batch_noise import STORIES

N_TOKENS = 64
GREEDY: dict[str, Any] = {"max_tokens": N_TOKENS, "temperature": 0}
SAMPLED: dict[str, Any] = {"max_tokens": N_TOKENS, "temperature": 0.8, "seed": 7, "top_k": 40, "top_p": 0.9}


@pytest.fixture(scope="module")
def draft(smollm2_of: OfType) -> Path:
    return smollm2_of("Q4_0")


@pytest.fixture(scope="module", params=[False, True], ids=["here", "isolated"])
def drafted(request: pytest.FixtureRequest, smollm2_q8: Path, draft: Path) -> Iterator[Model]:
    with api.load(smollm2_q8, context=256, parallel=4, draft=draft, isolate=request.param) as model:
        yield model


def answers(model: Model, prompts: list[str], options: dict[str, Any]) -> list[Completion]:
    streams = [model.stream(prompt, **options) for prompt in prompts]
    return [completion(list(stream)) for stream in streams]


def share(found: list[Completion]) -> str:
    n_drafted = sum(done.usage.drafted_tokens for done in found)
    n_right = sum(done.usage.accepted_tokens for done in found)
    return f"{n_right} of {n_drafted} guesses were right"


@pytest.fixture(scope="module")
def expected(smollm2_q8: Path) -> dict[str, list[list[int]]]:
    """What the model says without guesses."""
    with api.load(smollm2_q8, context=256, parallel=4) as model:
        return {
            name: [done.token_ids for done in answers(model, STORIES[:4], {**options, "speculate": False})]
            for name, options in (("greedy", GREEDY), ("sampled", SAMPLED))
        }


@pytest.mark.parametrize("how", ["greedy", "sampled"])
def test_text_with_a_draft_model_equals_text_without(
    drafted: Model, expected: dict[str, list[list[int]]], how: str
) -> None:
    found = answers(drafted, STORIES[:4], GREEDY if how == "greedy" else SAMPLED)
    assert [done.token_ids for done in found] == expected[how]
    assert all(done.usage.draft_failure is None for done in found)
    assert 0 < sum(d.usage.accepted_tokens for d in found) <= sum(d.usage.drafted_tokens for d in found), (
        share(found)
    )


def test_bf16_with_a_q4_0_draft_parts_only_where_two_tokens_are_closer_than_the_noise(
    smollm2_of: OfType, draft: Path
) -> None:
    path = smollm2_of("BF16")
    backend = models.open_backend(path / "model.gguf", LlamaOptions(n_threads=2))
    prompts = [backend.tokenize(text, add_special=False, parse_special=False) for text in STORIES[:2]]
    alone = [batch_noise.answer_alone(backend, prompt, N_TOKENS) for prompt in prompts]
    noise = batch_noise.noise_of_drafts(backend, alone, (3, 12))
    backend.close()
    with api.load(path, context=256, threads=2, draft=draft) as model:
        found = [model.generate(prompt, **GREEDY) for prompt in prompts]
    gaps = [
        batch_noise.gap_where_they_part(one, done.token_ids) for one, done in zip(alone, found, strict=True)
    ]
    assert all(gap is None or gap < noise for gap in gaps), f"gaps {gaps}, noise {noise}; {share(found)}"
    assert sum(done.usage.accepted_tokens for done in found) > 0, share(found)


def test_a_draft_with_another_vocabulary_is_refused(smollm2_gguf: Path, tmp_path: Path) -> None:
    source = tiny_llama.read_source(tiny_llama.write_tiny_llama(tmp_path / "tiny"))
    tiny = tiny_llama.write_f32(source, tmp_path / "tiny.gguf")
    with pytest.raises(SpecError, match="the draft model has 320 tokens, the model 49152"):
        api.load(smollm2_gguf, context=64, draft=tiny)
    with pytest.raises(SpecError, match="the draft model has 320 tokens, the model 49152"):
        api.load(smollm2_gguf, context=64, draft=tiny, isolate=True)
    with api.load(smollm2_gguf, context=64) as model:
        assert model.generate("One, two", max_tokens=2).token_ids

"""Greedy text of converted models against transformers in FP32: 20 prompts, 64 tokens each.

Both sides run through the end-of-turn token: all 64 tokens are drawn and compared. One thread per side: on a busy
machine two wait for each other.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from edgellm.native.llama import LlamaModel, LlamaOptions
from edgellm.protocols import Feed, SamplingParams
from tests.convert.conftest import OfType
from tests.support import oracle

N_TOKENS = 64
PROMPTS = (
    "The capital of France is", "Once upon a time, in a small village,", "def fibonacci(n):\n", "1, 2, 3, 4,",
    "The three states of matter are", "Dear Sir or Madam,\n\n", "import numpy as np\n\n", "To make a good cup of tea, first",
    "In 1969, two astronauts", "Q: What is photosynthesis?\nA:", "SELECT name, age FROM", "The opposite of hot is",
    "Il était une fois", "<html>\n<head>\n<title>", "My favourite book is", "A prime number is a number that",
    "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWrite a haiku about the sea.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nList three fruits.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>system\nYou are terse.<|im_end|>\n<|im_start|>user\nWho wrote Hamlet?<|im_end|>\n<|im_start|>assistant\n",
)  # fmt: skip


class Reference(NamedTuple):
    """For each prompt: its ids, the 64 greedy ids after it, and the gap between the two best logits at each of them."""

    prompts: list[list[int]]
    drawn: list[list[int]]
    gaps: list[list[float]]


@pytest.fixture(scope="module")
def reference(smollm2_hf: Path) -> Reference:
    """All prompts in one batch, padded on the left; greedy steps by hand, so that nothing ends early.

    The mask is written here: it is zero on the padding only, since the pad token is <|im_end|>, which prompts hold.
    """
    answer = oracle.transformers(
        """
import torch
torch.set_num_threads(1)
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(spec["model"])
model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32)
prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in spec["prompts"]]
longest = max(map(len, prompts))
mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
feed = torch.tensor([[0] * (longest - len(ids)) + ids for ids in prompts])
positions = (mask.cumsum(1) - 1).clamp(min=0)
cache, drawn, gaps = None, [], []
with torch.no_grad():
    for step in range(spec["n_tokens"]):
        out = model(
            feed, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        cache = out.past_key_values
        best = out.logits[:, -1].topk(2)
        drawn.append(best.indices[:, 0].tolist())
        gaps.append((best.values[:, 0] - best.values[:, 1]).tolist())
        feed, positions = best.indices[:, :1], positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones((len(prompts), 1), dtype=mask.dtype)], dim=1)
print(json.dumps([prompts, list(zip(*drawn)), list(zip(*gaps))]))
""",
        model=str(smollm2_hf), prompts=PROMPTS, n_tokens=N_TOKENS,
    )  # fmt: skip
    return Reference(*answer)


def all_greedy(path: Path, options: LlamaOptions, prompts: list[list[int]]) -> list[list[int]]:
    """N_TOKENS ids after each prompt, drawn for all prompts together in sequences of their own; nothing ends early."""
    model = LlamaModel(path, options)
    batcher = model.open(n_sequences=len(prompts), context=128)
    drawn: list[list[int]] = [[] for _ in prompts]
    feeds = prompts
    try:
        for _ in range(N_TOKENS):
            step = batcher.step(
                [Feed(sequence=i, tokens=tokens, sampling=SamplingParams()) for i, tokens in enumerate(feeds)]
            )
            for ids, sampled in zip(drawn, step, strict=True):
                ids += sampled.tokens
            feeds = [ids[-1:] for ids in drawn]
        return drawn
    finally:
        batcher.close()
        model.close()


def test_the_prompts_are_the_same_ids_on_both_sides(reference: Reference, by_edgellm: OfType) -> None:
    model = LlamaModel(by_edgellm("BF16"), LlamaOptions(n_threads=1), vocab_only=True)
    assert [
        model.tokenize(text, add_special=True, parse_special=True) for text in PROMPTS
    ] == reference.prompts
    model.close()


def test_the_texts_are_long_and_different(reference: Reference) -> None:
    assert len(PROMPTS) == 20
    assert {len(ids) for ids in reference.drawn} == {N_TOKENS}
    assert len({tuple(ids[:12]) for ids in reference.drawn}) == len(PROMPTS)


def test_f32_gives_the_same_tokens(reference: Reference, by_edgellm: OfType) -> None:
    options = LlamaOptions(n_threads=1, kv_type="F32", flash_attention="off")
    assert all_greedy(by_edgellm("F32"), options, reference.prompts) == reference.drawn


def test_bf16_parts_only_where_two_tokens_are_nearly_equal(reference: Reference, by_edgellm: OfType) -> None:
    texts = all_greedy(by_edgellm("BF16"), LlamaOptions(n_threads=1), reference.prompts)
    n_equal = 0
    for ours, theirs, gaps in zip(texts, reference.drawn, reference.gaps, strict=True):
        first = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), None)
        n_equal += first is None
        assert first is None or gaps[first] < 0.1
    assert n_equal >= len(PROMPTS) // 2


def test_bf16_agrees_on_the_references_own_text(reference: Reference, by_edgellm: OfType) -> None:
    model = LlamaModel(by_edgellm("BF16"), LlamaOptions(n_threads=1))
    batcher = model.open(context=256)
    n_same = 0
    for prompt, drawn in zip(reference.prompts, reference.drawn, strict=True):
        batcher.free(0)
        logits = batcher.step([Feed(sequence=0, tokens=prompt + drawn[:-1], want="all")])[0].logits
        assert logits is not None
        n_same += int((logits[len(prompt) - 1 :].argmax(axis=1) == drawn).sum())
    batcher.close()
    model.close()
    assert n_same / (len(PROMPTS) * N_TOKENS) >= 0.99

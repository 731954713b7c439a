"""llama.cpp behind the Batcher contract: sequences do not disturb each other, caches are what they claim to be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm.api import models
from edgellm.errors import BackendError, BadInputError, ContextOverflowError, SpecError, UnsupportedError
from edgellm.native.llama import KV_TYPES, LlamaModel, LlamaOptions
from edgellm.protocols import Batcher, Feed, SamplingParams
from tests.support import gguf_files

GREEDY = SamplingParams()
TEXTS = ["The capital of France is", "def fibonacci(n):\n", "Once upon a time, in a village", "1, 2, 3, 4,"]


@pytest.fixture(scope="module", params=["Q4_1", "Q8_0"])
def model(request: pytest.FixtureRequest, smollm2_gguf: Path, smollm2_q8: Path) -> Iterator[LlamaModel]:
    path = smollm2_gguf if request.param == "Q4_1" else smollm2_q8 / "model.gguf"
    opened = models.open_backend(path, LlamaOptions(n_threads=1))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def small_batches(smollm2_gguf: Path) -> Iterator[LlamaModel]:
    """The same model with at most 64 tokens in a native call."""
    opened = models.open_backend(smollm2_gguf, LlamaOptions(n_threads=1, n_batch=64, n_ubatch=64))
    yield opened
    opened.close()


@pytest.fixture
def batcher(small_batches: LlamaModel) -> Iterator[Batcher]:
    opened = small_batches.open(n_sequences=3, context=256)
    yield opened
    opened.close()


def encode(model: LlamaModel, text: str) -> list[int]:
    return model.tokenize(text, add_special=False, parse_special=False)


def go_on(batcher: Batcher, prompts: dict[int, Sequence[int]], n_tokens: int) -> dict[int, list[int]]:
    """Greedy tokens of several sequences, all of them in each step."""
    feeds, drawn = prompts, {sequence: list[int]() for sequence in prompts}
    for _ in range(n_tokens):
        steps = [Feed(sequence=s, tokens=tokens, sampling=GREEDY) for s, tokens in feeds.items()]
        found = batcher.step(steps)
        feeds = {feed.sequence: done.tokens for feed, done in zip(steps, found, strict=True)}
        for sequence, tokens in feeds.items():
            drawn[sequence] += tokens
    return drawn


def alone(model: LlamaModel, prompt: Sequence[int], n_tokens: int) -> list[int]:
    batcher = model.open(n_sequences=1, context=256)
    try:
        return go_on(batcher, {0: prompt}, n_tokens)[0]
    finally:
        batcher.close()


def last_row(batcher: Batcher, sequence: int, tokens: Sequence[int]) -> Any:
    return batcher.step([Feed(sequence=sequence, tokens=tokens, want="last")])[0].logits


def test_sequences_in_one_step_equal_sequences_alone(model: LlamaModel) -> None:
    prompts = {i: encode(model, text) for i, text in enumerate(TEXTS)}
    batcher = model.open(n_sequences=4, context=128)
    together = go_on(batcher, prompts, 24)
    batcher.close()
    for i, prompt in prompts.items():
        assert together[i] == alone(model, prompt, 24), TEXTS[i]


def test_a_sequence_that_joins_later_does_not_disturb_the_others(model: LlamaModel) -> None:
    first, second = encode(model, TEXTS[0]), encode(model, TEXTS[2])
    batcher = model.open(n_sequences=2, context=128)
    begun = go_on(batcher, {1: first}, 8)[1]
    both = go_on(batcher, {1: begun[-1:], 0: second}, 8)
    batcher.close()
    assert begun + both[1] == alone(model, first, 16)
    assert both[0] == alone(model, second, 8)


def test_a_truncated_sequence_goes_on_as_a_fresh_one(model: LlamaModel) -> None:
    prompt = encode(model, TEXTS[2])
    batcher = model.open(n_sequences=2, context=128)
    go_on(batcher, {0: prompt, 1: prompt}, 10)
    batcher.truncate(0, len(prompt) - 2)
    assert batcher.length(0) == len(prompt) - 2
    assert go_on(batcher, {0: prompt[-2:]}, 12)[0] == alone(model, prompt, 12)
    batcher.close()


def test_a_copied_prefix_equals_a_fresh_prefill(model: LlamaModel) -> None:
    prompt = encode(model, TEXTS[2] + " there lived a baker")
    other = encode(model, TEXTS[1])
    batcher = model.open(n_sequences=3, context=128)
    go_on(batcher, {0: prompt, 2: other}, 6)
    batcher.copy_prefix(0, 2, len(prompt) - 1)
    assert batcher.length(2) == len(prompt) - 1
    assert go_on(batcher, {2: prompt[-1:]}, 12)[2] == alone(model, prompt, 12)
    assert batcher.length(0) == len(prompt) + 5
    batcher.close()


def test_a_freed_sequence_starts_anew(model: LlamaModel) -> None:
    prompt = encode(model, TEXTS[3])
    batcher = model.open(n_sequences=2, context=128)
    go_on(batcher, {0: encode(model, TEXTS[0]), 1: prompt}, 5)
    batcher.free(0)
    assert (batcher.length(0), batcher.length(1)) == (0, len(prompt) + 4)
    assert go_on(batcher, {0: prompt}, 12)[0] == alone(model, prompt, 12)
    batcher.close()


def test_a_prompt_longer_than_a_batch_equals_one_run(small_batches: LlamaModel, smollm2_gguf: Path) -> None:
    prompt = encode(small_batches, " ".join(TEXTS * 6))
    assert len(prompt) > 128
    whole = models.open_backend(smollm2_gguf, LlamaOptions(n_threads=1))
    assert alone(small_batches, prompt, 12) == alone(whole, prompt, 12)
    whole.close()


def test_feeds_that_exceed_a_batch_together_equal_feeds_alone(
    batcher: Batcher, small_batches: LlamaModel
) -> None:
    prompts = {i: encode(small_batches, text * 6)[:50] for i, text in enumerate(TEXTS[:3])}
    found = batcher.step([Feed(sequence=i, tokens=p, sampling=GREEDY) for i, p in prompts.items()])
    assert [done.tokens for done in found] == [alone(small_batches, p, 1) for p in prompts.values()]


def test_rows_have_the_wanted_shapes(batcher: Batcher, small_batches: LlamaModel) -> None:
    prompt = encode(small_batches, TEXTS[0])
    n_vocab = small_batches.vocab_size
    none, last, every = batcher.step(
        [
            Feed(sequence=0, tokens=prompt),
            Feed(sequence=1, tokens=prompt, want="last"),
            Feed(sequence=2, tokens=prompt, want="all", sampling=GREEDY),
        ]
    )
    assert (none.tokens, none.logits) == ([], None)
    assert last.logits is not None
    assert last.logits.shape == (1, n_vocab)
    assert every.logits is not None
    assert every.logits.shape == (len(prompt), n_vocab)
    assert every.logits.dtype == np.float32
    assert every.tokens == [int(every.logits[-1].argmax())]
    np.testing.assert_allclose(every.logits[-1], last.logits[0], atol=0.05)


def test_all_rows_equal_the_last_row_step_by_step(batcher: Batcher, small_batches: LlamaModel) -> None:
    prompt = encode(small_batches, TEXTS[2])
    rows = batcher.step([Feed(sequence=0, tokens=prompt, want="all")])[0].logits
    assert rows is not None
    for row, token in zip(rows, prompt, strict=True):
        step = last_row(batcher, 1, [token])[0]
        np.testing.assert_allclose(row, step, atol=0.5)
        assert row.argmax() == step.argmax()


def test_all_rows_of_a_prompt_longer_than_a_batch_come_in_order(
    batcher: Batcher, small_batches: LlamaModel
) -> None:
    prompt = encode(small_batches, " ".join(TEXTS * 6))[:150]
    rows = batcher.step([Feed(sequence=0, tokens=prompt, want="all")])[0].logits
    assert rows is not None
    assert rows.shape == (150, small_batches.vocab_size)
    for n in (1, 64, 65, 150):
        batcher.free(1)
        np.testing.assert_allclose(rows[n - 1], last_row(batcher, 1, prompt[:n])[0], atol=0.5)


def test_rows_are_copies_that_later_steps_do_not_change(batcher: Batcher, small_batches: LlamaModel) -> None:
    prompt = encode(small_batches, TEXTS[0])
    row = last_row(batcher, 0, prompt)
    before = row.copy()
    last_row(batcher, 1, encode(small_batches, TEXTS[1]))
    assert np.array_equal(row, before)


def test_a_step_that_overflows_one_sequence_appends_nothing(batcher: Batcher) -> None:
    batcher.step([Feed(sequence=0, tokens=[1] * 250), Feed(sequence=1, tokens=[1] * 3)])
    with pytest.raises(ContextOverflowError, match="257 tokens do not fit the context of 256"):
        batcher.step([Feed(sequence=1, tokens=[5]), Feed(sequence=0, tokens=[5] * 7)])
    assert [batcher.length(i) for i in range(3)] == [250, 3, 0]
    batcher.step([Feed(sequence=0, tokens=[5] * 6)])
    assert batcher.length(0) == 256


@pytest.mark.parametrize(
    "feeds",
    [
        [Feed(sequence=3, tokens=[1])],
        [Feed(sequence=-1, tokens=[1])],
        [Feed(sequence=0, tokens=[])],
        [Feed(sequence=0, tokens=[1]), Feed(sequence=0, tokens=[2])],
        [Feed(sequence=0, tokens=[49152])],
        [Feed(sequence=0, tokens=[1, -1])],
        [Feed(sequence=0, tokens=[2**40])],
        [Feed(sequence=1, tokens=[1]), Feed(sequence=0, tokens=[49152])],
    ],
    ids=["high sequence", "negative sequence", "no tokens", "one sequence twice", "high", "negative", "huge", "second feed"],
)  # fmt: skip
def test_bad_feeds_are_a_value_error_and_append_nothing(batcher: Batcher, feeds: list[Feed]) -> None:
    with pytest.raises(ValueError, match=r"sequence|token"):
        batcher.step(feeds)
    assert [batcher.length(i) for i in range(3)] == [0, 0, 0]


@pytest.mark.parametrize(
    "use",
    [
        lambda b: b.truncate(3, 0),
        lambda b: b.truncate(-1, 0),
        lambda b: b.truncate(0, -1),
        lambda b: b.free(-1),
        lambda b: b.length(-1),
        lambda b: b.copy_prefix(0, 3, 1),
        lambda b: b.copy_prefix(-1, 0, 1),
        lambda b: b.copy_prefix(0, 1, 9),
    ],
)
def test_bad_arguments_are_a_value_error_and_change_nothing(
    batcher: Batcher, use: Callable[[Any], None]
) -> None:
    batcher.step([Feed(sequence=i, tokens=[1, 2]) for i in range(3)])
    with pytest.raises(ValueError, match=r"sequence|tokens"):
        use(batcher)
    assert [batcher.length(i) for i in range(3)] == [2, 2, 2]


def test_a_prefix_copied_onto_itself_is_a_truncation(batcher: Batcher) -> None:
    batcher.step([Feed(sequence=0, tokens=[1, 2, 3])])
    batcher.copy_prefix(0, 0, 2)
    assert batcher.length(0) == 2


def test_ctrl_c_during_a_native_call_leaves_a_cache_that_can_be_truncated(small_batches: LlamaModel) -> None:
    prompt = encode(small_batches, TEXTS[2])
    batcher: Any = small_batches.open(n_sequences=1, context=128)
    batcher.step([Feed(sequence=0, tokens=prompt[:-1])])
    decode = batcher._decode

    def interrupted() -> None:
        decode()
        raise KeyboardInterrupt

    batcher._decode = interrupted
    with pytest.raises(KeyboardInterrupt):
        batcher.step([Feed(sequence=0, tokens=[5, 6, 7])])
    batcher._decode = decode
    batcher.truncate(0, len(prompt) - 1)
    assert go_on(batcher, {0: prompt[-1:]}, 12)[0] == alone(small_batches, prompt, 12)
    batcher.close()


def test_a_closed_batcher_refuses_instead_of_crashing(small_batches: LlamaModel) -> None:
    batcher = small_batches.open(n_sequences=1, context=64)
    batcher.close()
    batcher.close()
    uses: list[Callable[[], object]] = [
        lambda: batcher.step([Feed(sequence=0, tokens=[1])]),
        lambda: batcher.truncate(0, 0),
        lambda: batcher.free(0),
        lambda: batcher.copy_prefix(0, 0, 0),
    ]
    for use in uses:
        with pytest.raises(RuntimeError, match="closed"):
            use()


def test_a_closed_model_refuses_instead_of_crashing(smollm2_gguf: Path) -> None:
    model = LlamaModel(smollm2_gguf, LlamaOptions(n_threads=1), vocab_only=True)
    model.close()
    model.close()
    uses: list[Callable[[], object]] = [
        lambda: encode(model, "text"),
        lambda: model.token_bytes(5),
        lambda: model.is_end(5),
        lambda: model.open(n_sequences=1, context=64),
    ]
    for use in uses:
        with pytest.raises(RuntimeError, match="closed"):
            use()


@pytest.mark.parametrize(("n_sequences", "context"), [(0, 64), (-1, 64), (10_000, 64), (1, 0), (1, 1 << 30)])
def test_caches_out_of_bounds_are_a_value_error(
    small_batches: LlamaModel, n_sequences: int, context: int
) -> None:
    with pytest.raises(ValueError, match=r"n_sequences|context"):
        small_batches.open(n_sequences=n_sequences, context=context)


@pytest.mark.parametrize("token", [-1, 49152])
def test_a_token_outside_the_vocabulary_is_a_value_error(small_batches: LlamaModel, token: int) -> None:
    for use in (small_batches.token_bytes, small_batches.token_text):
        with pytest.raises(ValueError, match="vocabulary"):
            use(token)


def test_token_bytes_put_together_are_the_text(small_batches: LlamaModel) -> None:
    for text in ("Hello world", "naïve 漢字 😀\n\t x", "a\0b"):
        ids = encode(small_batches, text)
        assert b"".join(map(small_batches.token_bytes, ids)) == text.encode()


def test_control_tokens_have_a_name_and_no_bytes(small_batches: LlamaModel) -> None:
    ids = small_batches.tokenize("<|im_start|><|im_end|>", add_special=False, parse_special=True)
    assert ids == [1, 2]
    assert [small_batches.token_text(token) for token in ids] == ["<|im_start|>", "<|im_end|>"]
    assert [small_batches.token_bytes(token) for token in ids] == [b"", b""]
    assert [small_batches.is_end(token) for token in (*ids, 5)] == [False, True, False]


@pytest.mark.parametrize(
    "bad",
    [{"n_threads": 0}, {"n_threads": 2000}, {"n_threads": 1, "n_batch": 64}, {"n_threads": 1, "n_ubatch": 0},
     {"n_threads": 1, "n_batch": 1 << 20}, {"n_threads": 1, "n_threads_batch": -1}, {"n_threads": 1, "gpu_layers": -1}],
)  # fmt: skip
def test_options_out_of_bounds_are_a_value_error(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"n_threads|n_batch|gpu_layers"):
        LlamaOptions(**bad)


def test_an_unknown_kv_type_is_refused_with_the_known_ones(smollm2_gguf: Path) -> None:
    with pytest.raises(SpecError, match="Q3_K") as caught:
        LlamaModel(smollm2_gguf, LlamaOptions(n_threads=1, kv_type="Q3_K"))
    assert "Q8_0" in (caught.value.hint or "")


def test_layers_for_a_gpu_are_never_dropped_silently(smollm2_gguf: Path) -> None:
    with pytest.raises(UnsupportedError, match="gpu_layers is 3"):
        LlamaModel(smollm2_gguf, LlamaOptions(n_threads=1, gpu_layers=3))
    for gpu_layers in (0, "auto"):
        model = LlamaModel(smollm2_gguf, LlamaOptions(n_threads=1, gpu_layers=gpu_layers), vocab_only=True)  # type: ignore[arg-type]
        assert model.info.backend_asked == f"gpu_layers={gpu_layers}"
        assert model.info.backend_actual == "cpu"
        model.close()


@pytest.mark.parametrize("kv_type", [kind for kind in KV_TYPES if kind != "F16"])
def test_every_kv_type_answers_with_flash_attention(smollm2_gguf: Path, kv_type: str) -> None:
    options = LlamaOptions(n_threads=1, kv_type=kv_type, flash_attention="on")
    model = models.open_backend(smollm2_gguf, options)
    prompt = encode(model, TEXTS[0])
    answer = b"".join(map(model.token_bytes, alone(model, prompt, 8))).decode()
    assert answer.strip()
    if kv_type in ("F32", "BF16", "Q8_0"):
        assert "Paris" in answer
    assert model.info.kv_type == kv_type
    model.close()


def test_a_quantized_cache_without_flash_attention_is_refused_with_the_reason(smollm2_gguf: Path) -> None:
    model = models.open_backend(
        smollm2_gguf, LlamaOptions(n_threads=1, kv_type="Q8_0", flash_attention="off")
    )
    with pytest.raises(BackendError, match=r"(?i)flash") as caught:
        model.open(n_sequences=1, context=64)
    assert caught.value.hint
    model.close()


def test_reading_and_mapping_the_file_give_the_same_tokens(
    smollm2_gguf: Path, small_batches: LlamaModel
) -> None:
    model = models.open_backend(smollm2_gguf, LlamaOptions(n_threads=1, mmap=False, n_batch=64, n_ubatch=64))
    prompt = encode(model, TEXTS[0])
    assert alone(model, prompt, 8) == alone(small_batches, prompt, 8)
    assert not model.info.mmap
    model.close()


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGML" + bytes(100), bytes(4096), b"{}", b"\x80" * 64])
def test_a_file_of_garbage_is_bad_input_before_native_code(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(BadInputError, match=r"model\.gguf"):
        models.open_backend(path, LlamaOptions(n_threads=1))


def test_a_sound_file_that_llama_cpp_refuses_is_a_backend_error_with_its_words(tmp_path: Path) -> None:
    path = gguf_files.write_model(tmp_path / "model.gguf")
    with pytest.raises((BackendError, BadInputError), match=r"model\.gguf.*(missing|tensor|key)"):
        models.open_backend(path, LlamaOptions(n_threads=1))


def test_a_model_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    path = gguf_files.write_model(tmp_path / "model.gguf", vocab=None)
    with pytest.raises((UnsupportedError, BadInputError), match="vocab"):
        models.open_backend(path, LlamaOptions(n_threads=1))


def test_a_path_that_is_not_utf8_is_loaded(smollm2_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "mod\udcff\udce9l.gguf"
    path.symlink_to(smollm2_gguf)
    model = LlamaModel(path, LlamaOptions(n_threads=1), vocab_only=True)
    assert model.vocab_size == 49152
    model.close()

"""Comparing embeddings: how the text is cut, what is not comparable, figures worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from edgellm.convert import mixture, quality
from edgellm.convert.quality_embeddings import (
    FULL_TOKENS,
    GOLDEN_TEXTS,
    MIN_COSINE,
    compare_embeddings,
    cut,
    golden_embeddings,
    longest_piece,
    min_cosine,
    special_ends,
)
from edgellm.errors import BadInputError
from edgellm.native.llama_embeddings import unit_rows
from edgellm.protocols import FloatArray, Pooling

CLS, SEP = 101, 102


class Turned:
    """An embedder whose rows are (cos a, sin a), where a is `angle` times the text's first token."""

    context, vocab_size, embedding_size = 256, 1000, 2

    def __init__(self, angle: float, pooling: Pooling = "mean") -> None:
        self.angle, self.pooling = angle, pooling

    def embed(self, tokens: Sequence[int], *, normalize: bool = False) -> FloatArray:
        a = self.angle * tokens[0]
        row = np.asarray([[np.cos(a), np.sin(a)]], dtype=np.float32) * 7
        return unit_rows(row) if normalize else row

    def close(self) -> None:
        pass


def test_pieces_have_three_lengths_in_turn_and_lose_no_token_between_them() -> None:
    ids = list(range(200, 870))
    pieces = cut(ids, ([CLS], [SEP]), limit=256, max_tokens=FULL_TOKENS)
    assert [len(piece) for piece in pieces] == [16, 64, 256, 16, 64, 256]
    assert all(piece[0] == CLS and piece[-1] == SEP for piece in pieces)
    assert [i for piece in pieces for i in piece[1:-1]] == ids[: 2 * (14 + 62 + 254)]


def test_pieces_are_no_longer_than_the_context_and_end_with_the_budget() -> None:
    ids = list(range(500))
    assert [len(piece) for piece in cut(ids, ([], []), limit=40, max_tokens=150)] == [16, 40, 40, 16]
    assert longest_piece(8192) == 256
    assert longest_piece(40) == 40


@pytest.mark.parametrize(("n_ids", "limit"), [(13, 256), (0, 256), (100, 2)])
def test_a_text_without_one_piece(n_ids: int, limit: int) -> None:
    with pytest.raises(BadInputError, match=f"{n_ids} tokens, too few for one piece of {min(16, limit)}"):
        cut(list(range(n_ids)), ([CLS], [SEP]), limit=limit, max_tokens=1024)


def test_the_special_tokens_around_a_text() -> None:
    assert special_ends([7, 8], [CLS, 7, 8, SEP]) == ([CLS], [SEP])
    assert special_ends([7, 8], [7, 8]) == ([], [])
    assert special_ends([7, 8], [CLS, 7, 9, SEP]) == ([], [])  # another text: nothing is known


def test_cosines_are_those_of_the_angles() -> None:
    seen: list[int] = []
    texts = [[0, 5], [1, 5, 5], [2]]
    found = compare_embeddings(Turned(0.1), Turned(0.4), texts, progress=seen.append)
    assert found.cosine_min == pytest.approx(np.cos(0.6), abs=1e-6)
    assert found.cosine_mean == pytest.approx((1 + np.cos(0.3) + np.cos(0.6)) / 3, abs=1e-6)
    assert (found.n_texts, found.n_tokens, seen) == (3, 6, [2, 3, 1])
    same = compare_embeddings(Turned(0.4), Turned(0.4), texts)
    assert same.cosine_min == pytest.approx(1, abs=1e-6)
    assert same.cosine_min <= 1


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("vocab_size", 999, "vocab size of the reference is 1000, of the converted model 999"),
        ("embedding_size", 3, "embedding size of the reference is 2"),
        ("pooling", "cls", "pooling of the reference is mean, of the converted model cls"),
    ],
)
def test_what_is_not_the_same_model(name: str, value: object, said: str) -> None:
    other = Turned(0.1)
    setattr(other, name, value)
    with pytest.raises(BadInputError, match=said):
        compare_embeddings(Turned(0.1), other, [[1]])


def test_golden_embeddings_are_of_length_one_and_of_fixed_sentences() -> None:
    found = golden_embeddings(Turned(0.1), lambda text: [len(text)])
    assert [golden.text for golden in found] == list(GOLDEN_TEXTS)
    for golden in found:
        assert golden.token_ids == [len(golden.text)]
        angle = 0.1 * len(golden.text)
        assert golden.first_values == pytest.approx([np.cos(angle), np.sin(angle)], abs=1e-6)


def test_bounds_are_of_types_and_finer_types_are_held_to_more() -> None:
    assert MIN_COSINE.keys() <= mixture.QUANTS.keys() & quality.MAX_KL.keys()
    order = ["F32", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "Q4_0", "Q3_K_S", "Q2_K", "IQ1_S"]
    bounds = [min_cosine(quant) for quant in order]
    assert bounds == sorted(bounds, reverse=True)
    assert min_cosine("no such type") == min(MIN_COSINE.values()) > 0


@pytest.mark.parametrize(
    ("mix", "like"),
    [
        ("MIX_16.00", "BF16"), ("MIX_8.61", "Q8_0"), ("MIX_8.49", "Q6_K"), ("MIX_4.83", "Q4_K_M"), ("MIX_3.10", "Q2_K"),
        ("MIX_2.63", "Q2_K"), ("MIX_1.00", "Q2_K"),
    ],
)  # fmt: skip
def test_a_mix_of_our_own_is_held_to_the_named_type_with_the_next_lower_bits(mix: str, like: str) -> None:
    assert min_cosine(mix) == MIN_COSINE[like]
    assert quality.max_kl(mix) == quality.MAX_KL[like]


@pytest.mark.parametrize("name", ["MIX", "MIX_", "MIX_nan", "MIX_1e99", "MIX_4.83.2", "MIX_four"])
def test_a_file_that_calls_itself_a_mix_in_another_way_is_of_no_known_type(name: str) -> None:
    assert min_cosine(name) == min_cosine("no such type")
    assert quality.max_kl(name) == quality.max_kl("no such type")

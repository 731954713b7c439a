"""Types under a byte budget, against every possible choice."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.convert.allocate import Candidate, allocate, max_file_bytes, padded_bytes
from edgellm.errors import SpecError
from edgellm.shape import ModelShape

SMALL, LARGE = Candidate("Q4_0", 576, 4.0), Candidate("Q8_0", 1088, 0.02)
MIDDLE = Candidate("Q5_1", 768, 1.0)


def test_bytes_go_where_they_take_away_most_damage() -> None:
    sensitive = [Candidate(c.type_name, c.n_bytes, 10 * c.damage) for c in (SMALL, MIDDLE, LARGE)]
    found = allocate(
        {"blk.0.a.weight": [SMALL, MIDDLE, LARGE], "blk.0.b.weight": sensitive}, 100, 100 + 576 + 1088
    )
    assert found.types == {"blk.0.a.weight": "Q4_0", "blk.0.b.weight": "Q8_0"}
    assert found.file_bytes == 100 + 576 + 1088
    assert found.damage == pytest.approx(4.2)


def test_a_type_that_is_larger_and_worse_is_never_chosen() -> None:
    options = [SMALL, Candidate("Q4_1", 640, 5.0), LARGE]
    assert allocate({"x.weight": options}, 0, 700).types == {"x.weight": "Q4_0"}


def test_what_a_large_step_leaves_goes_to_small_ones() -> None:
    big = [Candidate("Q4_0", 10_000, 100.0), Candidate("Q8_0", 20_000, 0.0)]
    found = allocate({"big.weight": big, "small.weight": [SMALL, MIDDLE]}, 0, 10_000 + 768)
    assert found.types == {"big.weight": "Q4_0", "small.weight": "Q5_1"}


def test_with_bytes_to_spare_every_tensor_is_at_its_best() -> None:
    found = allocate({"a.weight": [LARGE, SMALL], "b.weight": [MIDDLE]}, 0, 1 << 40)
    assert found.types == {"a.weight": "Q8_0", "b.weight": "Q5_1"}


def test_a_budget_that_nothing_fits_is_refused_with_what_would() -> None:
    with pytest.raises(SpecError, match=r"below the smallest file") as caught:
        allocate({"a.weight": [SMALL, LARGE], "b.weight": [SMALL, MIDDLE]}, 1000, 2151)
    hint = caught.value.hint or ""
    assert "Q4_0 2.10 KiB" in hint
    assert "Q8_0 2.60 KiB" in hint
    assert allocate({"a.weight": [SMALL, LARGE], "b.weight": [SMALL, MIDDLE]}, 1000, 2152).file_bytes == 2152


def test_reasons_name_parts_types_and_what_they_cost() -> None:
    layers = {f"blk.{i}.ffn_up.weight": [SMALL, LARGE] for i in range(3)}
    found = allocate({**layers, "token_embd.weight": [MIDDLE]}, 0, 3 * 576 + 768 + 512)
    said = {reason.choice: reason.because for reason in found.reasons}
    assert set(said) == {"ffn_up 2 x Q4_0, 1 x Q8_0", "token_embd Q5_1"}
    assert "89 % of the predicted damage" in said["ffn_up 2 x Q4_0, 1 x Q8_0"]


options_of_a_tensor = st.lists(st.tuples(st.integers(1, 40), st.floats(0, 10)), min_size=1, max_size=4).map(
    lambda rows: [Candidate(f"T{i}", 32 * n, damage) for i, (n, damage) in enumerate(rows)]
)


@given(st.lists(options_of_a_tensor, min_size=1, max_size=4), st.integers(0, 2000))
def test_near_the_best_of_all_choices(tensors: list[list[Candidate]], spare: int) -> None:
    """Within one step of the best: the bound that a greedy choice on convex hulls has."""
    options = {f"t{i}.weight": rows for i, rows in enumerate(tensors)}
    smallest = sum(min(c.n_bytes for c in rows) for rows in tensors)
    budget = smallest + spare
    found = allocate(options, 0, budget)
    chosen = [next(c for c in rows if c.type_name == found.types[name]) for name, rows in options.items()]
    assert found.file_bytes == sum(c.n_bytes for c in chosen) <= budget
    assert found.damage == pytest.approx(sum(c.damage for c in chosen))
    best = min(
        sum(c.damage for c in choice)
        for choice in itertools.product(*tensors)
        if sum(c.n_bytes for c in choice) <= budget
    )
    widest = max(max(c.damage for c in rows) - min(c.damage for c in rows) for rows in tensors)
    assert found.damage <= best + widest + 1e-9


def test_bits_per_weight_count_tensors_and_the_header_comes_on_top() -> None:
    shape = ModelShape(
        architecture="llama", tensors={"a.weight": (64, 64)}, n_layers=1, n_heads=1, n_kv_heads=1, head_size=64,
        vocab_size=1, context_train=1, embedding_size=64,
    )  # fmt: skip
    assert max_file_bytes(shape, header_bytes=100, bpw=4.5) == 100 + 64 * 64 * 4.5 / 8
    assert padded_bytes((3, 32), "Q4_0") == 64

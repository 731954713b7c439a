"""Threads of numpy's linear algebra: bounded inside the block, as before after it."""

from __future__ import annotations

import pytest

from edgellm.native import blas


@pytest.mark.skipif(blas.threads() is None, reason="numpy is not built with the OpenBLAS of its wheels")
def test_a_bound_holds_inside_the_block_only() -> None:
    before = blas.threads()
    assert before is not None
    with blas.limited(1):
        assert blas.threads() == 1
        with blas.limited(64):
            assert blas.threads() == 1
    assert blas.threads() == before
    with pytest.raises(ZeroDivisionError), blas.limited(1):
        raise ZeroDivisionError
    assert blas.threads() == before


def test_no_bound_changes_nothing() -> None:
    before = blas.threads()
    with blas.limited(None):
        assert blas.threads() == before

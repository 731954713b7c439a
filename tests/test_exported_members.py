"""What `import edgellm` offers is sorted, complete and importable."""

from __future__ import annotations

import pytest

import edgellm


def test_all_is_sorted_and_lists_every_lazy_name() -> None:
    assert edgellm.__all__ == sorted(edgellm.__all__)
    assert set(edgellm.__all__) == {*edgellm._HOMES, "__version__"}


@pytest.mark.parametrize("name", edgellm.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(edgellm, name) is not None
    assert name in dir(edgellm)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        edgellm.nonsense  # noqa: B018

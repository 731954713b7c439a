"""The tree of errors: its drawing in the docstring is the truth, and every error survives pickling."""

from __future__ import annotations

import copy
import pickle
import re

import pytest

from edgellm import errors
from edgellm.errors import EdgeLLMError, NativeCrash

ROW = re.compile(r"^ {4}((?:[|'] *-? ?|\s)*)([A-Z]\w+) +(\d+)  ", re.MULTILINE)


def drawn_tree() -> dict[str, tuple[str | None, int]]:
    """Class name -> (parent, exit code), from the module's docstring."""
    tree: dict[str, tuple[str | None, int]] = {}
    path: list[str] = []
    for branch, name, code in ROW.findall(errors.__doc__ or ""):
        depth = len(branch) // 3
        path[depth:] = [name]
        tree[name] = (path[depth - 1] if depth else None, int(code))
    return tree


def all_classes() -> list[type[EdgeLLMError]]:
    found = [EdgeLLMError]
    for kind in found:
        found += [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    return found


def test_the_drawing_has_every_class_with_its_parent_and_exit_code() -> None:
    defined = {
        kind.__name__: (None if kind is EdgeLLMError else kind.__mro__[1].__name__, kind.exit_code)
        for kind in all_classes()
    }
    assert drawn_tree() == defined
    assert len(defined) == 23


def test_exit_codes_are_sysexits() -> None:
    assert errors.EXIT_OK == 0
    assert errors.EXIT_USAGE == 64
    assert errors.EXIT_INTERRUPTED == 130
    assert all(64 <= kind.exit_code <= 78 for kind in all_classes())


@pytest.mark.parametrize("kind", all_classes(), ids=lambda kind: kind.__name__)
def test_every_error_has_a_message_and_a_hint(kind: type[EdgeLLMError]) -> None:
    error = kind("model.gguf: 3 bytes", hint="convert it again")
    assert str(error) == error.message == "model.gguf: 3 bytes"
    assert error.hint == "convert it again"
    assert kind("x").hint is None
    assert kind.__doc__


@pytest.mark.parametrize("kind", all_classes(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_keeps_type_message_and_hint(kind: type[EdgeLLMError], protocol: int) -> None:
    back = pickle.loads(pickle.dumps(kind("what", hint="next"), protocol))
    assert type(back) is kind
    assert (back.message, back.hint, str(back), back.args) == ("what", "next", "what", ("what",))


def test_pickling_and_copying_keep_the_signal() -> None:
    crash = NativeCrash("decode died", hint="edgellm doctor", signal_name="SIGSEGV")
    for back in (pickle.loads(pickle.dumps(crash)), copy.copy(crash)):
        assert (back.message, back.hint, back.signal_name) == ("decode died", "edgellm doctor", "SIGSEGV")
    assert NativeCrash("exited").signal_name is None


def test_an_error_cannot_be_made_without_words() -> None:
    with pytest.raises(TypeError):
        EdgeLLMError()  # type: ignore[call-arg]

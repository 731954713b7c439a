"""Native code that was taken over by a file speaks for the engine: what it says never harms who listens."""

from __future__ import annotations

import contextlib
import sys
import threading
from pathlib import Path

import psutil
import pytest

from edgellm.errors import EdgeLLMError, NativeCrash, SpecError
from edgellm.runtime import isolate, remote_ticket, wire
from edgellm.runtime.isolate import IsolatedEngine
from edgellm.runtime.model import Model
from tests.samples import make_manifest
from tests.support import hostile_child
from tests.support.hostile_child import ANSWERS, SAYS

CHILD = [sys.executable, str(Path(hostile_child.__file__))]


def start(kind: str) -> Model:
    return Model(IsolatedEngine(CHILD, kind.encode()), make_manifest())


def pid_of(model: Model) -> int:
    assert isinstance(model._engine, IsolatedEngine)
    assert model._engine.pid
    return model._engine.pid


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolate, "FIRST_PAUSE_S", 0.001)


@pytest.mark.parametrize("kind", SAYS)
def test_nonsense_in_a_generation_is_a_crash_of_the_child(kind: str) -> None:
    with start(kind) as model:
        child = pid_of(model)
        with pytest.raises(NativeCrash, match="sent nonsense") as caught:
            model.generate("ab")
        assert len(str(caught.value)) < 1000
        assert not psutil.pid_exists(child)


@pytest.mark.parametrize("kind", ANSWERS)
def test_nonsense_in_an_answer_is_a_crash_of_the_child(kind: str) -> None:
    with start(kind) as model:
        child = pid_of(model)
        asked = model.counts if kind == "yes" else lambda: model.tokenize("ab")
        with pytest.raises(NativeCrash, match="the engine answered nonsense"):
            asked()
        with contextlib.suppress(psutil.NoSuchProcess):  # gone already
            psutil.Process(child).wait(10)
        assert not psutil.pid_exists(child)


def test_a_context_below_nothing_is_no_context() -> None:
    with pytest.raises(NativeCrash, match="sent nonsense: a context of -3 tokens"):
        start("negative context")


@pytest.mark.parametrize("kind", ["flood", "flood of text", "flood of calls"])
def test_a_flood_that_nobody_reads_ends_the_child_before_the_memory(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_ticket, "_MAX_UNREAD_BYTES", 32 << 20)
    with start(kind) as model:
        child = psutil.Process(pid_of(model))
        before = psutil.Process().memory_info().rss
        stream = model.stream("ab")
        child.wait(60)
        assert psutil.Process().memory_info().rss - before < 200 << 20
        with pytest.raises(NativeCrash, match="sent nonsense"):
            list(stream)


def test_what_belongs_to_nobody_is_dropped() -> None:
    with start("flood of others") as model:
        assert model.generate("ab").text == "x"
        engine = model._engine
        assert isinstance(engine, IsolatedEngine)
        assert not engine._tickets
        assert not engine._answers


def test_an_error_of_a_megabyte_becomes_a_line() -> None:
    with start("long error") as model, pytest.raises(SpecError) as caught:
        model.generate("ab")
    assert len(caught.value.message) <= 4000
    assert "\n" not in caught.value.message
    assert "\n" not in (caught.value.hint or "")
    with start("unknown error") as model, pytest.raises(EdgeLLMError) as unknown:
        model.generate("ab")
    assert len(unknown.value.message) < 200


def test_an_error_holds_no_commands_for_a_terminal() -> None:
    for kind in ("SpecError", "\x1b[2J"):
        told = wire.error_of(wire.Failed(number=1, kind=kind, message="a\x1b[2J\u202eb", hint="c\x07"))
        assert isinstance(told, EdgeLLMError)
        assert "a\\x1b[2J\\u202eb" in told.message
        assert told.message.isprintable()
        assert (told.hint or "").isprintable()


def test_an_answer_that_would_be_too_long_is_an_error_of_who_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_ANSWER_BYTES", 1000)
    told = wire.decode_from_engine(wire.encode_answer(wire.Answered(number=7, value=[1] * 5000)))
    assert isinstance(told, wire.Failed)
    assert told.number == 7
    assert isinstance(wire.error_of(told), ValueError)


def test_a_bug_of_ours_while_listening_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    with start("negative token") as model:

        def fail(_: bytes) -> None:
            raise KeyError("a bug")

        monkeypatch.setattr(wire, "decode_from_engine", fail)
        ended: list[BaseException] = []

        def ask() -> None:
            try:
                model.generate("ab")
            except NativeCrash as err:
                ended.append(err)

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join(60)
        assert len(ended) == 1


def test_the_end_of_a_generation_that_nobody_began_forgets_no_crash() -> None:
    with start("end of another") as model:
        engine = model._engine
        assert isinstance(engine, IsolatedEngine)
        for n_crashes in (1, 2, 3):
            with pytest.raises(NativeCrash, match="SIGABRT"):
                model.generate("ab")
            assert engine._n_crashes_in_row == n_crashes

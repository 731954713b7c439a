"""An engine in a child: the same answers, and what kills the child is an exception here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from edgellm.errors import (
    BackendError,
    ContextOverflowError,
    NativeCrash,
    NetworkAttemptError,
    ResourceError,
    SpecError,
)
from edgellm.runtime import isolate, remote_ticket
from edgellm.runtime.isolate import IsolatedEngine
from edgellm.runtime.model import Model
from tests.runtime.engines import make
from tests.samples import make_manifest

CHILD = [sys.executable, "-m", "tests.support.engine_child"]


def start(script: bytes = b"any", **options: object) -> Model:
    return Model(IsolatedEngine(CHILD, script, **options), make_manifest())  # type: ignore[arg-type]


def engine_of(model: Model) -> IsolatedEngine:
    assert isinstance(model._engine, IsolatedEngine)
    return model._engine


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    monkeypatch.setattr(isolate, "FIRST_PAUSE_S", 0.01)
    with start() as opened:
        yield opened


def test_the_same_answers_as_in_this_process(model: Model) -> None:
    with make(None, context=30000) as here:
        for seed, prompt in enumerate(
            ["ab", "the quick brown fox", [{"role": "user", "content": "Hello"}], [1, 2, 3]]
        ):
            options = {"max_tokens": 12, "seed": seed, "top_logprobs": 2, "stop": ["zz"]}
            far, near = model.generate(prompt, **options), here.generate(prompt, **options)  # type: ignore[arg-type]
            assert (far.text, far.token_ids, far.finish_reason) == (
                near.text,
                near.token_ids,
                near.finish_reason,
            )
            assert far.logprobs == near.logprobs
            assert far.usage.prompt_tokens == near.usage.prompt_tokens
        assert model.tokenize("naïve") == here.tokenize("naïve")
        assert model.count_tokens("abc") == 4
        assert model.info == here.info
        assert model.chat_template == here.chat_template
        assert model.counts().n_done == 4


def test_errors_of_a_request_arrive_as_the_class_they_were(model: Model) -> None:
    with pytest.raises(ContextOverflowError, match="30000") as caught:
        model.stream("x" * 40000)
    assert caught.value.hint
    with pytest.raises(SpecError):
        model.stream([{"role": "nobody", "content": "x"}])
    with pytest.raises(ValueError, match="outside the vocabulary"):
        model.stream([1, 10**6])
    assert model.generate("ab", max_tokens=1).token_ids


@pytest.mark.parametrize(("word", "name"), [("crash", "SIGSEGV"), ("abort", "SIGABRT")])
def test_a_crash_names_its_signal_to_everyone_and_the_next_request_is_served(
    model: Model, word: str, name: str
) -> None:
    first = engine_of(model).pid
    others = [model.stream("endless", overflow="shift") for _ in range(2)]
    for stream in others:
        next(stream)
    for use in (lambda: model.generate(f"please {word} now"), *(stream.__iter__ for stream in others)):
        with pytest.raises(NativeCrash) as caught:
            list(use())
        assert caught.value.signal_name == name
    assert len(model.generate("ab", max_tokens=3).token_ids) == 3
    assert engine_of(model).pid != first


@pytest.mark.parametrize("code", ["", "import os; os.write(1, b'\\x03\\0\\0\\0abc')", "print('x' * 99)"])
def test_a_child_that_ends_at_once_or_talks_nonsense_is_an_error_at_once(code: str) -> None:
    with pytest.raises(NativeCrash):
        IsolatedEngine([sys.executable, "-c", code], b"any")


def test_an_engine_that_ended_without_its_process_is_started_anew(model: Model) -> None:
    first = engine_of(model).pid
    with pytest.raises(Exception, match="SystemExit"):
        model.generate("quit")
    deadline = time.monotonic() + 30
    while engine_of(model).pid == first and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(model.generate("ab", max_tokens=3).token_ids) == 3
    assert engine_of(model).pid not in (None, first)


def test_a_hang_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolate, "FIRST_PAUSE_S", 0.01)
    seen: list[NativeCrash] = []
    with start(hang_s=2.0, on_crash=seen.append) as model:
        with pytest.raises(NativeCrash, match="no sign of life"):
            model.generate("hang")
        assert model.generate("ab", max_tokens=1).token_ids
        assert [crash.signal_name for crash in seen] == ["hang"]


def test_crashes_in_a_row_are_counted_and_wait_longer_and_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolate, "FIRST_PAUSE_S", 0.05)
    seen: list[NativeCrash] = []
    with start(on_crash=seen.append) as model:
        refused = None
        for _ in range(9):
            try:
                model.generate("crash")
            except NativeCrash:
                continue
            except BackendError as err:
                refused = err
                break
        assert refused is not None
        assert "times in a row" in refused.message
        assert len(seen) >= 2


def test_an_embedding_ends_a_row_of_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolate, "FIRST_PAUSE_S", 0.001)
    with start(b"embed") as model:
        for _ in range(2):
            with pytest.raises(NativeCrash):
                model.embed("crash")
        assert engine_of(model)._n_crashes_in_row == 2
        model.embed("ab")
        assert engine_of(model)._n_crashes_in_row == 0


def test_a_child_that_dies_while_loading_is_a_crash_at_once() -> None:
    with pytest.raises(NativeCrash, match="SIGILL"):
        start(b"die")


def test_what_is_not_read_stops_the_child_and_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_ticket, "_ACKNOWLEDGE_EVERY", 8)
    with start(b"stall", hang_s=2.5) as model:
        stream = model.stream("ab", temperature=0, speculate=False)
        first = engine_of(model).pid
        while model.counts().n_steps < 60:
            time.sleep(0.01)
        time.sleep(3.5)
        assert model.counts().n_steps < 80
        assert model.generate("cd", temperature=0, speculate=False, max_tokens=40).text == "x" * 40
        assert sum(len(piece.text) for piece in stream) == 900
        assert engine_of(model).pid == first


def test_closing_ends_the_child_and_its_streams() -> None:
    model = start()
    child = psutil.Process(engine_of(model).pid)
    stream = model.stream("endless", overflow="shift")
    next(stream)
    ended: list[BaseException] = []

    def read() -> None:
        try:
            list(stream)
        except RuntimeError as err:
            ended.append(err)

    reader = threading.Thread(target=read)
    reader.start()
    model.close()
    model.close()
    reader.join()
    assert "closed" in str(ended[0])
    assert not child.is_running()
    with pytest.raises(RuntimeError, match="closed"):
        model.generate("ab")


def test_leaving_a_stream_stops_it_in_the_child(model: Model) -> None:
    stream = model.stream("endless", overflow="shift")
    next(stream)
    stream.close()
    while model.counts().busy_sequences:
        time.sleep(0.01)
    assert model.counts().n_cancelled == 1


def start_watched(script: bytes = b"any") -> Model:
    return start(script, watched_argv=lambda first: CHILD)


def needs_held_calls(model: Model) -> None:
    proof = model.offline_proof
    assert proof
    if "seccomp" not in proof.methods:
        pytest.skip("this machine holds no system calls for a listener")


def test_a_watched_child_that_stays_offline_gives_its_proof_also_when_closed() -> None:
    with start_watched() as model:
        assert len(model.generate("ab", max_tokens=3).token_ids) == 3
        during = model.offline_proof
    after = model.offline_proof
    assert during
    assert after
    assert during.verdict == after.verdict == "offline"
    assert during.methods == after.methods


def test_an_attempt_to_leave_the_machine_ends_every_generation_and_the_model() -> None:
    with start_watched() as model:
        needs_held_calls(model)
        other = model.stream("endless", overflow="shift")
        next(other)
        for use in (
            lambda: model.generate("please phone home"),
            other.__iter__,
            lambda: model.generate("ab"),
        ):
            with pytest.raises(NetworkAttemptError) as caught:
                list(use())
            assert "IPv4 stream socket" in caught.value.message or "192.0.2.1" in caught.value.message
        proof = model.offline_proof
    assert proof
    assert proof.verdict == "attempted"
    assert proof.n_attempts >= 1


def test_an_attempt_while_loading_is_the_error_of_loading() -> None:
    with start_watched() as model:
        needs_held_calls(model)
    with pytest.raises(NetworkAttemptError, match="socket"):
        start_watched(b"call")


def test_nothing_is_proven_of_a_child_that_nobody_watches(model: Model) -> None:
    assert model.offline_proof is None


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT", "SIGSTOP"])
def test_a_signal_from_outside_reaches_every_stream_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(isolate, "FIRST_PAUSE_S", 0.01)
    with start(hang_s=3.0) as model:
        streams = [model.stream("endless", overflow="shift", owner=str(i)) for i in range(5)]
        for stream in streams[:3]:
            next(stream)
        first = engine_of(model).pid
        assert first is not None
        os.kill(first, signal.Signals[name])
        seen = []
        for stream in streams:
            with pytest.raises(NativeCrash) as caught:
                list(stream)
            assert caught.value.signal_name == ("hang" if name == "SIGSTOP" else name)
            seen.append(caught.value)
        assert len({id(err) for err in seen}) == len(seen)
        assert len(model.generate("ab", max_tokens=3).token_ids) == 3
        assert engine_of(model).pid != first


def test_the_memory_limit_is_a_resource_error_to_everyone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolate, "FIRST_PAUSE_S", 0.01)
    with start(memory_limit_bytes=4 << 30) as model:
        other = model.stream("endless", overflow="shift")
        next(other)
        for use in (lambda: model.generate("gobble"), other.__iter__):
            with pytest.raises(ResourceError, match="below its limit of 4"):
                list(use())
        assert model.generate("ab", max_tokens=1).token_ids


def test_streams_that_were_left_are_forgotten_here_too(model: Model) -> None:
    for _ in range(20):
        stream = model.stream("endless", overflow="shift")
        next(stream)
        stream.close()
    model.generate("ab", max_tokens=2)
    assert engine_of(model)._tickets == {}
    assert engine_of(model)._answers == {}


def test_it_outlives_the_thread_that_loaded_it() -> None:
    made: list[Model] = []
    loader = threading.Thread(target=lambda: made.append(start()))
    loader.start()
    loader.join()
    with made[0] as model:
        first = engine_of(model).pid
        assert model.generate("ab", max_tokens=2).token_ids
        assert engine_of(model).pid == first


def test_a_prompt_that_takes_for_ever_keeps_nobody_waiting_and_is_ended() -> None:
    with start(hang_s=4.0) as model:
        ended: list[BaseException] = []

        def ponder() -> None:
            try:
                model.count_tokens("ponder")
            except NativeCrash as err:
                ended.append(err)

        ponders = threading.Thread(target=ponder)
        ponders.start()
        stream = model.stream("endless", overflow="shift")
        next(stream)
        stream.close()
        assert model.generate("ab", max_tokens=2).token_ids
        ponders.join(60)
        assert [getattr(err, "signal_name", "") for err in ended] == ["hang"]


def test_embeddings_that_take_for_ever_keep_nobody_else_waiting() -> None:
    with start(b"embed", hang_s=4.0) as model:
        ended: list[str | None] = []

        def embed() -> None:
            try:
                model.embed("hang")
            except NativeCrash as err:
                ended.append(err.signal_name)

        waiting = [threading.Thread(target=embed) for _ in range(6)]
        for thread in waiting:
            thread.start()
        while len(engine_of(model)._answers) < len(waiting):
            time.sleep(0.01)
        assert model.counts().n_done == 0
        assert model.tokenize("ab") == [97, 98]
        for thread in waiting:
            thread.join(60)
        assert ended == ["hang"] * 6


def test_counting_a_crash_keeps_nobody_waiting_but_the_next_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolate, "FIRST_PAUSE_S", 0.01)
    counted = threading.Event()
    seen: list[bool] = []

    with start(
        on_crash=lambda _: counted.wait(60), before_start=lambda: seen.append(counted.is_set())
    ) as model:
        stream = model.stream("endless", overflow="shift")
        next(stream)
        with pytest.raises(NativeCrash):
            model.generate("crash")
        with pytest.raises(NativeCrash):
            list(stream)
        assert not counted.is_set()
        threading.Timer(0.3, counted.set).start()
        assert model.generate("ab", max_tokens=1).token_ids
    assert seen == [False, True]


def test_closing_waits_until_a_crash_is_counted() -> None:
    counted: list[str] = []

    def count(crash: NativeCrash) -> None:
        time.sleep(0.3)
        counted.append(str(crash.signal_name))

    with start(on_crash=count) as model, pytest.raises(NativeCrash):
        model.generate("crash")
    assert counted == ["SIGSEGV"]


def test_a_child_that_goes_as_soon_as_it_is_ready_is_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolate, "FIRST_PAUSE_S", 0.01)
    with start(b"brief") as model:
        for _ in range(3):
            with pytest.raises(BackendError):
                model.generate("ab")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_closing_in_a_forked_process_leaves_the_engine_to_the_one_that_loaded_it(model: Model) -> None:
    first = engine_of(model).pid
    forked = os.fork()
    if not forked:
        try:
            model.close()
        finally:
            os._exit(0)
    os.waitpid(forked, 0)
    assert model.generate("ab", max_tokens=2).token_ids
    assert engine_of(model).pid == first


CLIENT = """
import sys, time
from tests.runtime.test_isolate import start, engine_of
model = start()
streams = [model.stream("endless", overflow="shift") for _ in range(5)]
for stream in streams[:3]:
    next(stream)
print(engine_of(model).pid, flush=True)
time.sleep(600)
"""


def test_the_child_ends_with_a_program_that_is_killed() -> None:
    client = subprocess.Popen([sys.executable, "-c", CLIENT], stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    child = psutil.Process(int(client.stdout.readline()))
    client.kill()
    client.wait()
    client.stdout.close()
    gone, _ = psutil.wait_procs([child], timeout=60)
    assert gone == [child]


SLEEPER = """
import sys
from edgellm.runtime.isolate import IsolatedEngine
from edgellm.runtime.model import Model
from tests.samples import make_manifest

child = [sys.executable, "-m", "tests.support.engine_child"]
with Model(IsolatedEngine(child, b"any", hang_s=2.0), make_manifest()) as model:
    stream = model.stream("endless", overflow="shift")
    next(stream)
    print("going", flush=True)
    sys.stdin.readline()
    for _ in range(5000):
        next(stream)
    print("still going", flush=True)
"""


def test_a_program_that_was_stopped_does_not_take_its_child_for_hung() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdin
        assert program.stdout
        assert program.stdout.readline() == "going\n"
        found = psutil.Process(program.pid)
        both = [found, *found.children(recursive=True)]
        for one in both:
            one.suspend()
        time.sleep(4)
        for one in both:  # the program first: it sees how late it is before the child can say anything
            one.resume()
            time.sleep(0.7)
        program.stdin.write("\n")
        program.stdin.flush()
        assert program.stdout.readline() == "still going\n"

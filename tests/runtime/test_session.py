"""Conversations over the fake backend: what is remembered, taken back, saved and refused."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from edgellm.errors import (
    BackendError,
    BadInputError,
    ContextOverflowError,
    DeadlineError,
    MissingInputError,
    OutputError,
    OutputExistsError,
    SpecError,
)
from edgellm.runtime.cache_identity import LoadedFiles
from edgellm.runtime.model import Model
from edgellm.runtime.session import Session
from edgellm.runtime.session_file import SessionMessage
from tests.runtime.engines import backend_of, batcher_of, make
from tests.support.damage import damaged, mutated

SYSTEM = "You are a very terse assistant who says little."


def said(session: Session) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in session.messages]


@pytest.fixture
def files(tmp_path: Path) -> LoadedFiles:
    (tmp_path / "model.gguf").write_bytes(b"weights")
    return LoadedFiles(tmp_path / "model.gguf")


def real(files: LoadedFiles, **options: Any) -> Model:
    """A model whose answers follow from all that was said."""
    return make(None, files=files, **{"cache_bytes": 1 << 20, "context": 2000, **options})


def test_it_remembers_what_was_said() -> None:
    with make(b"an answer") as model:
        session = model.session(system=SYSTEM, temperature=0)
        assert session.chat("one").text == "an answer"
        assert "".join(piece.text for piece in session.stream("two")) == "an answer"
        expected = [
            ("system", SYSTEM), ("user", "one"), ("assistant", "an answer"), ("user", "two"), ("assistant", "an answer"),
        ]  # fmt: skip
        assert said(session) == expected
        session.reset()
        assert said(session) == expected[:1]
        assert session.cut_messages == []
        assert session.restored is None


def test_the_model_sees_all_of_it_and_the_cache_has_it() -> None:
    with make(b"an answer", context=1000) as model:
        session = model.session(system=SYSTEM)
        session.chat("one")
        done = session.chat("two")
        assert done.usage.prompt_tokens == model.count_tokens([*session.messages[:-1]])
        assert done.usage.cached_tokens >= model.count_tokens(session.messages[:2])
        session.reset()
        assert session.chat("three").usage.prompt_tokens < done.usage.prompt_tokens


def test_messages_may_be_given_and_answers_of_functions_returned() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    with make(b"noon") as model:
        session = model.session(
            messages=[
                {"role": "user", "content": [{"type": "text", "text": "what time is it?"}]},
                {"role": "assistant", "content": None, "tool_calls": [call]},
            ]
        )
        session.chat({"role": "tool", "tool_call_id": "1", "content": "12:00"})
        assert [message["role"] for message in session.messages] == ["user", "assistant", "tool", "assistant"]
        assert session.messages[1] == {"role": "assistant", "tool_calls": [call]}
        session.chat([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
        assert len(session.messages) == 7


def test_options_of_the_session_hold_for_each_turn_and_those_of_a_turn_for_it_alone() -> None:
    with make(None) as model:
        session = model.session(max_tokens=3, temperature=0)
        assert len(session.chat("one").token_ids) == 3
        assert len(session.chat("two", max_tokens=5).token_ids) == 5
        assert len(session.chat("three").token_ids) == 3
        with pytest.raises(ValueError, match="temperature"):
            model.session(temperature=-1)
        with pytest.raises(TypeError, match="unknown option"):
            model.session(heat=1)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="unknown option"):
            session.chat("four", heat=1)  # type: ignore[call-arg]
        assert len(session.messages) == 6
        session.chat("four")


@pytest.mark.parametrize(
    "bad",
    [
        {"role": "nobody", "content": "x"},
        {"role": "user"},
        {"role": "user", "content": "x", "secret": 1},
        {"role": "user", "content": "x", "name": 5},
        {"role": "tool", "content": "x", "tool_call_id": 5},
    ],
)
def test_what_is_no_message_is_refused_and_changes_nothing(bad: dict[str, Any]) -> None:
    with make(b"fine") as model:
        session = model.session()
        with pytest.raises(SpecError):
            session.chat(bad)
        with pytest.raises(SpecError):
            session.chat([])
        with pytest.raises(SpecError):
            model.session(messages=[bad])
        assert session.messages == []
        assert session.chat("hello").text == "fine"


def test_a_copy_of_the_messages_is_a_copy() -> None:
    with make(b"fine") as model:
        session = model.session(system=SYSTEM)
        session.messages[0]["content"] = "changed"
        session.messages.clear()
        assert said(session) == [("system", SYSTEM)]
        parts = [{"type": "text", "text": "hello"}]
        session.chat({"role": "user", "content": parts})
        parts[0]["text"] = "changed"
        session.messages[1]["content"][0]["text"] = "changed"
        assert session.messages[1]["content"] == [{"type": "text", "text": "hello"}]


def test_a_session_is_saved_after_its_model_was_closed_but_answers_no_more(
    files: LoadedFiles, tmp_path: Path
) -> None:
    with real(files) as model:
        session = model.session(max_tokens=2)
        session.chat("one")
    assert "closed" in str(session.save(tmp_path / "chat.json").recomputed_because)
    with pytest.raises(RuntimeError, match="closed"):
        session.chat("two")
    with real(files) as model:
        assert model.resume(tmp_path / "chat.json").messages == session.messages


def test_a_model_without_a_template_has_no_conversations() -> None:
    with make(chat_template=None) as model, pytest.raises(SpecError, match="no chat template"):
        model.session()


def test_an_error_takes_the_turn_back() -> None:
    with make(None, context=200) as model:
        session = model.session(max_tokens=4)
        session.chat("one")
        before = session.messages
        with pytest.raises(ContextOverflowError):
            session.chat("x" * 300)
        with pytest.raises(DeadlineError):
            session.chat("late", deadline_s=1e-9)
        batcher_of(model).before_step = lambda: (_ for _ in ()).throw(BackendError("broken"))
        with pytest.raises(BackendError, match="broken"):
            session.chat("broken")
        batcher_of(model).before_step = lambda: None
        assert session.messages == before
        assert session.cut_messages == []
        assert len(session.chat("two").token_ids) == 4


def test_an_error_in_mid_answer_takes_the_turn_back_too() -> None:
    with make(None, context=200) as model:
        session = model.session()
        n_steps = 0

        def fail() -> None:
            nonlocal n_steps
            n_steps += 1
            if n_steps == 6:
                raise BackendError("broken")

        batcher_of(model).before_step = fail
        heard = []
        with pytest.raises(BackendError, match="broken"):
            heard += list(session.stream("hello"))
        assert session.messages == []


def stop_by_closing(session: Session) -> str:
    with session.stream("hello") as turn:
        return "".join(next(turn).text for _ in range(5))


def stop_by_breaking(session: Session) -> str:
    text = ""
    for i, piece in enumerate(session.stream("hello")):
        text += piece.text
        if i == 4:
            break
    gc.collect()
    return text


def stop_by_cancelling(session: Session) -> str:
    heard: list[str] = []

    async def work() -> None:
        async for piece in session.astream("hello"):
            heard.append(piece.text)
            if len(heard) == 5:
                asyncio.current_task().cancel()  # type: ignore[union-attr]

    async def main() -> None:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(work())

    asyncio.run(main())
    return "".join(heard)


@pytest.mark.parametrize("stop", [stop_by_closing, stop_by_breaking, stop_by_cancelling])
def test_an_answer_that_is_stopped_is_kept_as_far_as_it_was_read_and_marked(
    stop: Any, tmp_path: Path
) -> None:
    with make(None, context=4000) as model:
        session = model.session(max_tokens=3000, overflow="shift")
        text = stop(session)
        assert text
        assert said(session) == [("user", "hello"), ("assistant", text)]
        assert session.cut_messages == [1]
        session.chat("and then?", max_tokens=3)
        assert session.cut_messages == [1]
        session.save(tmp_path / "chat.json")
        resumed = model.resume(tmp_path / "chat.json")
        assert resumed.messages == session.messages
        assert resumed.cut_messages == [1]


def test_an_answer_that_is_stopped_before_its_first_word_was_not_asked_for() -> None:
    with make(None) as model:
        session = model.session()
        session.stream("hello").close()
        turn = session.stream("hello")
        turn.close()
        turn.close()
        assert list(turn) == []
        assert session.messages == []


def test_one_turn_at_a_time() -> None:
    with make(None, context=4000, parallel=2) as model:
        session = model.session(max_tokens=3000, overflow="shift")
        turn = session.stream("one")
        next(turn)
        for use in (lambda: session.chat("two"), session.reset):
            with pytest.raises(RuntimeError, match="not over"):
                use()
        turn.close()
        session.chat("two", max_tokens=2)
        assert [role for role, _ in said(session)] == ["user", "assistant"] * 2


def test_closing_from_another_thread_ends_the_reader() -> None:
    with make(None, context=4000) as model:
        session = model.session(overflow="shift")
        turn = session.stream("one")
        next(turn)
        threading.Timer(0.05, turn.close).start()
        text = "".join(piece.text for piece in turn)
        assert session.cut_messages == [1]
        assert said(session)[1][1].startswith(text[:3]) or text
        assert turn.is_over


def test_what_was_saved_is_resumed(files: LoadedFiles, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    with real(files) as model:
        session = model.session(system=SYSTEM, temperature=0, max_tokens=5, logit_bias={5: -1.5}, stop=["zz"])
        session.chat("one")
        done = session.save(path)
        assert done.cache is not None
        assert (done.n_messages, done.cache.n_states, done.recomputed_because) == (3, 1, None)
        expected = session.chat("two")
    with real(files) as model:
        session = model.resume(path)
        assert session.restored is not None
        assert session.restored.cache == done.cache
        again = session.chat("two")
        assert again.token_ids == expected.token_ids
        assert again.usage.cached_tokens == expected.usage.cached_tokens > 0
    for name in ("chat.json", "chat.json.cache"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_only_its_own_part_of_the_cache_is_saved(files: LoadedFiles, tmp_path: Path) -> None:
    with real(files, parallel=2) as model:
        session = model.session(system=SYSTEM, owner="a", max_tokens=3)
        session.chat("one")
        model.generate("a secret of somebody else, long enough to be worth keeping", max_tokens=2, owner="b")
        done = session.save(tmp_path / "chat.json")
        assert done.cache is not None
        assert done.cache.owners == ["a"]


def test_the_cache_is_that_of_the_adapters_of_the_last_turn(files: LoadedFiles, tmp_path: Path) -> None:
    def load(model: Model) -> Model:
        backend_of(model).load_adapter("one", Path("one.gguf"))
        return model

    with load(real(files, parallel=2)) as model:
        session = model.session(system=SYSTEM, max_tokens=3)
        session.chat("one", adapters={"one": 0.5})
        assert session.save(tmp_path / "chat.json").cache is not None
    with load(real(files, parallel=2)) as model:
        assert model.resume(tmp_path / "chat.json").chat("two", adapters={"one": 0.5}).usage.cached_tokens > 0
        assert model.resume(tmp_path / "chat.json").chat("two").usage.cached_tokens == 0


def test_without_its_cache_it_works_and_says_so(files: LoadedFiles, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    with real(files) as model:
        session = model.session(system=SYSTEM, temperature=0, max_tokens=5)
        session.chat("one")
        assert "without" in str(session.save(path, cache=False).recomputed_because)
        assert not (tmp_path / "chat.json.cache").exists()
        expected = session.chat("two").token_ids
    with real(files) as model:
        session = model.resume(path)
        assert session.restored is not None
        assert session.restored.cache is None
        assert "no cache" in str(session.restored.recomputed_because)
        done = session.chat("two")
        assert done.token_ids == expected
        assert done.usage.cached_tokens == 0


def test_a_cache_that_cannot_be_used_is_no_error_and_is_said(files: LoadedFiles, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    beside = tmp_path / "chat.json.cache"
    with real(files) as model:
        session = model.session(system=SYSTEM, temperature=0, max_tokens=5)
        session.chat("one")
        session.save(path)
        expected = session.chat("two").token_ids

    def resumed(model: Model, **options: Any) -> str:
        session = model.resume(path, **options)
        done = session.chat("two")
        assert done.token_ids == expected
        assert done.usage.cached_tokens == 0
        assert session.restored is not None
        assert session.restored.cache is None
        return str(session.restored.recomputed_because)

    with real(files, context=1999) as other:
        assert "context" in resumed(other)
    with real(files, cache_bytes=0) as other:
        assert "cache_bytes" in resumed(other)
    with real(files) as other:
        assert "owner" in resumed(other, owner="somebody else")
    whole = beside.read_bytes()
    beside.write_bytes(whole[:-1])
    with real(files) as other:
        assert "damaged" in resumed(other)


def test_a_session_file_does_not_say_whose_it_is(files: LoadedFiles, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    with real(files) as model:
        model.session(owner="a", max_tokens=2, temperature=0).save(path)
        found = json.loads(path.read_bytes())
        assert found["options"] == {"max_tokens": 2, "temperature": 0}
        path.write_text(json.dumps({**found, "options": {"owner": "b"}}))
        with pytest.raises(BadInputError, match="owner"):
            model.resume(path)


def test_what_was_forgotten_does_not_stay_on_the_disk(files: LoadedFiles, tmp_path: Path) -> None:
    with real(files) as model:
        session = model.session(system=SYSTEM, max_tokens=3)
        session.chat("one")
        session.save(tmp_path / "chat.json")
        assert (tmp_path / "chat.json.cache").exists()
        session.reset()
        session.save(tmp_path / "chat.json", cache=False)
        assert not (tmp_path / "chat.json.cache").exists()
        assert len(model.resume(tmp_path / "chat.json").messages) == 1


def test_a_turn_that_runs_is_not_saved(files: LoadedFiles, tmp_path: Path) -> None:
    with real(files) as model:
        session = model.session(overflow="shift")
        session.chat("one", max_tokens=2)
        with session.stream("two") as turn:
            next(turn)
            session.save(tmp_path / "chat.json")
        assert len(model.resume(tmp_path / "chat.json").messages) == 2
        assert len(session.messages) == 4


def test_options_of_resume_come_before_those_in_the_file(files: LoadedFiles, tmp_path: Path) -> None:
    with real(files) as model:
        model.session(max_tokens=2, temperature=0).save(tmp_path / "chat.json")
        assert len(model.resume(tmp_path / "chat.json").chat("one").token_ids) == 2
        assert len(model.resume(tmp_path / "chat.json", max_tokens=4).chat("one").token_ids) == 4
        with pytest.raises(ValueError, match="max_tokens"):
            model.resume(tmp_path / "chat.json", max_tokens=0)


def test_other_files_are_not_replaced_and_no_sessions(files: LoadedFiles, tmp_path: Path) -> None:
    precious = tmp_path / "precious.json"
    precious.write_text('{"a": 1}')
    with real(files) as model:
        session = model.session(system=SYSTEM, max_tokens=2)
        with pytest.raises(OutputExistsError):
            session.save(precious)
        with pytest.raises(BadInputError):
            model.resume(precious)
        with pytest.raises(MissingInputError):
            model.resume(tmp_path / "none.json")
        with pytest.raises(OutputError):
            session.save(tmp_path / "none" / "chat.json")
        assert precious.read_text() == '{"a": 1}'
        (tmp_path / "empty.json").touch()
        session.save(tmp_path / "empty.json")
        session.save(tmp_path / "empty.json")
        session.chat("one")
        (tmp_path / "empty.json.cache").write_bytes(b"precious too")
        assert "exists" in str(session.save(tmp_path / "empty.json").recomputed_because)
        assert (tmp_path / "empty.json.cache").read_bytes() == b"precious too"


def test_what_json_cannot_hold_is_refused_before_anything_is_written(
    files: LoadedFiles, tmp_path: Path
) -> None:
    path = tmp_path / "chat.json"
    with real(files) as model:
        model.session().save(path)
        before = path.read_bytes()
        with pytest.raises(SpecError, match="cannot be saved"):
            model.session(logit_bias={1: float("-inf")}).save(path)
        with pytest.raises(SpecError, match="at most"):
            model.session(system="x" * (33 << 20)).save(path)
        assert path.read_bytes() == before


def change(found: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({**found, **fields}).encode()


def test_files_that_are_no_sessions_are_refused_with_a_line(files: LoadedFiles, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    with real(files, context=4000) as model:
        session = model.session(system=SYSTEM, max_tokens=3, adapters={})
        session.chat("one")
        session.save(path, cache=False)
        found = json.loads(path.read_bytes())
        call = {"role": "assistant", "tool_calls": [{"function": 5}]}
        for data in (
            change(found, schema="edgellm.session/2"),
            change(found, extra=1),
            change(found, cut_messages=[0]),
            change(found, cut_messages=[99]),
            change(found, cut_messages=[-1]),
            change(found, messages=[{"role": "nobody", "content": "x"}]),
            change(found, messages=[{"role": "user", "content": "x", "extra": 1}]),
            change(found, messages=[call]),
            change(found, messages=[{"role": "user", "content": "x"}] * 10_001),
            change(found, options={"heat": 1}),
            change(found, options={"temperature": "hot"}),
            change(found, options={"temperature": -1}),
            change(found, options={"json_schema": "{}", "regex": "x"}),
            b"[" * 100_000,
            b"",
        ):
            path.write_bytes(data)
            with pytest.raises(BadInputError, match=r"chat\.json"):
                model.resume(path)
        content = json.dumps(found).encode()
        for data in (*damaged(content, 7, 300), *mutated(content, 7, 300)):
            path.write_bytes(data)
            with contextlib.suppress(BadInputError):
                again = model.resume(path)
                assert all(set(m) <= set(SessionMessage.__struct_fields__) for m in again.messages)


def test_async_twins(files: LoadedFiles, tmp_path: Path) -> None:
    async def work() -> None:
        with real(files) as model:
            session = model.session(system=SYSTEM, max_tokens=4, temperature=0)
            done = await session.achat("one")
            pieces = [piece async for piece in session.astream("two")]
            assert [text for _, text in said(session)][2::2] == [done.text, "".join(p.text for p in pieces)]
            await session.asave(tmp_path / "chat.json")
            again = await model.aresume(tmp_path / "chat.json")
            assert again.messages == session.messages
            with pytest.raises(ContextOverflowError):
                await session.achat("x" * 3000)
            assert len(session.messages) == 5

    asyncio.run(work())


SAVE_FOR_EVER = """
import sys
from pathlib import Path
from edgellm.runtime.cache_identity import LoadedFiles
from tests.runtime.engines import make

place = Path(sys.argv[1])
with make(None, files=LoadedFiles(place / "model.gguf"), cache_bytes=1 << 20, context=2000) as model:
    session = model.session(max_tokens=3, overflow="shift")
    while True:
        session.chat("a question that is long enough to be kept in the cache of this model")
        session.save(place / "chat.json")
        print("saved", flush=True)
"""


def test_a_process_killed_while_it_saves_leaves_whole_files(files: LoadedFiles, tmp_path: Path) -> None:
    for moment in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", SAVE_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "saved\n"
            time.sleep(0.003 * moment)
            child.kill()
        with real(files) as model:
            session = model.resume(tmp_path / "chat.json")
            assert len(session.messages) >= 2
            assert session.restored is not None
            assert session.restored.cache is not None
            session.save(tmp_path / "chat.json")
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []

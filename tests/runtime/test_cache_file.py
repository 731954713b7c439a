"""Saved caches as files: what was written is read, by its user, for its model; nothing else is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgellm.errors import (
    BadInputError,
    EdgeLLMError,
    MissingInputError,
    OutputError,
    OutputExistsError,
    SpecError,
    UnsafeInputError,
)
from edgellm.formats.records import replace
from edgellm.resources import user_directory
from edgellm.runtime import cache_file, user_key
from edgellm.runtime.cache_identity import CacheIdentity, LoadedFiles
from edgellm.runtime.prefix_cache import Key, Saved
from tests.samples import make_runtime
from tests.support.damage import damaged

VOCAB_SIZE = 1000
STATES = [
    Saved(Key("anna", ()), (1, 2, 3, 999), b"the state of anna"),
    Saved(Key("", (("one", 0.5), ("two", 1.0))), tuple(range(40)), bytes(range(256))),
]


@pytest.fixture
def identity(tmp_path: Path) -> CacheIdentity:
    for name in ("model.gguf", "one.gguf"):
        (tmp_path / name).write_bytes(name.encode() * 9)
    files = LoadedFiles(tmp_path / "model.gguf", {"one": tmp_path / "one.gguf"})
    return files.identity(make_runtime(), context=64, n_sequences=2)


@pytest.fixture
def saved(tmp_path: Path, identity: CacheIdentity) -> Path:
    path = tmp_path / "saved.cache"
    cache_file.write(path, identity, STATES)
    return path


def read(path: Path, identity: CacheIdentity, max_bytes: int = 1 << 20) -> list[Saved]:
    return cache_file.read(path, identity, max_bytes=max_bytes, vocab_size=VOCAB_SIZE)


def test_what_was_written_is_read(saved: Path, identity: CacheIdentity) -> None:
    assert read(saved, identity) == STATES
    assert read(saved, identity, sum(len(state.state) for state in STATES)) == STATES
    cache_file.write(saved, identity, [])
    assert read(saved, identity) == []


def test_it_and_the_key_are_for_their_user_alone(saved: Path) -> None:
    for path in (saved, user_directory() / "cache.key"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert user_directory().stat().st_mode & 0o077 == 0
    assert sorted(path.name for path in user_directory().iterdir()) == ["cache.key"]


def test_a_file_with_any_byte_changed_or_missing_is_refused(saved: Path, identity: CacheIdentity) -> None:
    whole = saved.read_bytes()
    changed = [whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :] for i in range(len(whole))]
    changed += [whole[:n_bytes] for n_bytes in range(0, len(whole), 7)]
    changed += [whole + b"\0", whole + whole, whole[:-1] + b"\0\0", b""]
    changed += [data for data in damaged(whole, 5, 200) if data != whole]
    for data in changed:
        saved.write_bytes(data)
        with pytest.raises(BadInputError):
            read(saved, identity)
    saved.write_bytes(whole)
    assert read(saved, identity) == STATES


def test_states_that_change_places_are_refused(saved: Path, identity: CacheIdentity) -> None:
    cache_file.write(
        saved, identity, [Saved(STATES[0].key, (1, 2), b"first"), Saved(STATES[0].key, (3, 4), b"other")]
    )
    whole = saved.read_bytes()
    first, other = whole[-26:-13], whole[-13:]
    saved.write_bytes(whole[:-26] + other + first)
    with pytest.raises(BadInputError, match="hash of a state"):
        read(saved, identity)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda i: replace(i, model=replace(i.model, sha256="0" * 64)), "another model file"),
        (lambda i: replace(i, model=replace(i.model, modified_ns=1)), "another model file"),
        (lambda i: replace(i, model=replace(i.model, inode="1")), "another model file"),
        (lambda i: replace(i, adapters={}), "no adapter"),
        (lambda i: replace(i, adapters={"one": i.model}), "adapter 'one'"),
        (lambda i: replace(i, engine="llama.cpp 0"), "llama.cpp"),
        (lambda i: replace(i, binding="other"), "binding"),
        (lambda i: replace(i, backend="gpu2"), "backend"),
        (lambda i: replace(i, kv_type="Q4_0"), "KV type"),
        (lambda i: replace(i, flash_attention="sometimes"), "flash attention"),
        (lambda i: replace(i, context=63), "context"),
        (lambda i: replace(i, n_sequences=1), "parallel"),
    ],
)
def test_another_model_or_other_settings_refuse_it(
    saved: Path, identity: CacheIdentity, change: Callable[[CacheIdentity], CacheIdentity], says: str
) -> None:
    with pytest.raises(BadInputError, match=says) as caught:
        read(saved, change(identity))
    assert caught.value.hint


def test_every_field_of_an_identity_counts(identity: CacheIdentity) -> None:
    for field in CacheIdentity.__struct_fields__:
        other = replace(identity, **{field: {} if field == "adapters" else None})
        assert identity.difference(other), field
    assert identity.difference(identity) is None


def test_another_users_file_is_refused_before_anything_else_of_it_is_read(
    saved: Path, identity: CacheIdentity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELLM_DATA", str(tmp_path / "another"))
    with pytest.raises(BadInputError, match="another key"):
        read(saved, identity)
    assert not (tmp_path / "another").exists()
    cache_file.write(tmp_path / "mine", identity, STATES)
    assert read(tmp_path / "mine", identity) == STATES
    with pytest.raises(BadInputError, match="another key") as caught:
        read(saved, identity)
    assert caught.value.hint
    assert caught.value.exit_code == 65


def test_a_signature_by_another_key_that_claims_to_be_ours_is_refused(
    saved: Path, identity: CacheIdentity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = user_key.key_id(user_key.find_or_make())
    monkeypatch.setenv("EDGELLM_DATA", str(tmp_path / "another"))
    monkeypatch.setattr(user_key, "key_id", lambda _: mine)
    cache_file.write(saved, identity, STATES)
    monkeypatch.delenv("EDGELLM_DATA")
    with pytest.raises(BadInputError, match="signature"):
        read(saved, identity)


def test_more_than_the_budget_is_refused_unread(saved: Path, identity: CacheIdentity) -> None:
    with pytest.raises(SpecError, match="cache_bytes"):
        read(saved, identity, sum(len(state.state) for state in STATES) - 1)


@pytest.mark.parametrize(
    "states",
    [
        [Saved(Key("a", ()), (VOCAB_SIZE,), b"x")],
        [Saved(Key("a", ()), tuple(range(65)), b"x")],
        [Saved(Key("a", ()), (), b"x")],
    ],
)
def test_a_signed_file_that_makes_no_sense_is_refused(
    saved: Path, identity: CacheIdentity, states: list[Saved]
) -> None:
    cache_file.write(saved, identity, states)
    with pytest.raises(BadInputError, match="damaged"):
        read(saved, identity)


def test_too_many_states_are_refused_before_they_are_written(saved: Path, identity: CacheIdentity) -> None:
    before = saved.read_bytes()
    many = [Saved(Key(str(i), ()), (1,), b"") for i in range(cache_file.MAX_STATES + 1)]
    for states in (many, [Saved(Key("x" * cache_file.MAX_HEADER_BYTES, ()), (1,), b"")]):
        with pytest.raises(SpecError, match="at most"):
            cache_file.write(saved, identity, states)
    assert saved.read_bytes() == before


@pytest.mark.parametrize("content", [b"GGUF\3\0\0\0", b"edgellm cache 2\n", b"x"])
def test_other_files_are_never_replaced(tmp_path: Path, identity: CacheIdentity, content: bytes) -> None:
    path = tmp_path / "precious"
    path.write_bytes(content)
    with pytest.raises(OutputExistsError):
        cache_file.write(path, identity, STATES)
    with pytest.raises(BadInputError):
        read(path, identity)
    assert path.read_bytes() == content
    with pytest.raises(OutputExistsError):
        cache_file.write(tmp_path, identity, STATES)


def test_a_place_that_cannot_be_written_or_read(tmp_path: Path, identity: CacheIdentity) -> None:
    with pytest.raises(MissingInputError):
        read(tmp_path / "none", identity)
    with pytest.raises(OutputError):
        cache_file.write(tmp_path / "none" / "saved", identity, STATES)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInputError):
        read(tmp_path / "pipe", identity)


def test_a_home_that_cannot_be_written_is_said(
    tmp_path: Path, identity: CacheIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("/dev/null/x", "/proc/nonexistent/x"):
        monkeypatch.setenv("EDGELLM_DATA", place)
        with pytest.raises(OutputError, match=r"cache\.key") as caught:
            cache_file.write(tmp_path / "saved", identity, STATES)
        assert "EDGELLM_DATA" in str(caught.value.hint)
        assert not (tmp_path / "saved").exists()
        assert user_key.find() is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_may_read_is_not_used(saved: Path, identity: CacheIdentity, mode: int) -> None:
    (user_directory() / "cache.key").chmod(mode)
    for use in (lambda: read(saved, identity), lambda: cache_file.write(saved, identity, STATES)):
        with pytest.raises(UnsafeInputError, match=f"{mode:04o}"):
            use()


def test_a_damaged_key_is_not_used(saved: Path, identity: CacheIdentity, tmp_path: Path) -> None:
    key = user_directory() / "cache.key"
    for content in (b"", b"x" * 31, b"x" * 33):
        key.write_bytes(content)
        with pytest.raises(BadInputError, match="no key"):
            read(saved, identity)
    key.unlink()
    key.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInputError):
        read(saved, identity)
    key.unlink()
    cache_file.write(saved, identity, STATES)
    assert read(saved, identity) == STATES


def test_two_that_make_the_key_at_once_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = user_key.find
    made: list[bytes] = []

    def find() -> bytes | None:
        if not made:  # the other process comes between looking and making
            made.append(b"")
            monkeypatch.setattr(user_key, "find", plain)
            made[0] = user_key.find_or_make()
            return None
        return plain()

    monkeypatch.setattr(user_key, "find", find)
    assert user_key.find_or_make() == made[0] == plain()


def test_a_model_file_that_was_changed_after_loading_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"x" * 100)
    files = LoadedFiles(path)
    replacement = tmp_path / "new"
    replacement.write_bytes(b"y" * 100)
    replacement.replace(path)
    with pytest.raises(BadInputError, match="changed since it was loaded"):
        files.identity(make_runtime(), context=64, n_sequences=1)


def test_a_large_file_is_known_by_its_beginning_and_by_blocks_of_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "large"
    seen = set()
    for place in (None, 5, 17 << 20, (40 << 20) - 1):
        with path.open("wb") as file:
            file.truncate(40 << 20)
            for start in range(16 << 20, 40 << 20, 4096):  # as where most weights differ
                if place is not None and start >= place:
                    file.seek(start)
                    file.write(b"z")
            if place is not None:
                file.seek(place)
                file.write(b"z")
        os.utime(path, ns=(1, 1))
        identity = LoadedFiles(path).identity(make_runtime(), context=64, n_sequences=1)
        seen.add(identity.model.sha256)
    assert len(seen) == 4


def test_the_header_is_json_and_says_no_secret(saved: Path) -> None:
    data = saved.read_bytes()
    start = data.index(b"{")
    header = json.JSONDecoder().raw_decode(data[start:].decode("latin-1"))[0]
    assert [state["n_tokens"] for state in header["states"]] == [4, 40]
    key = (user_directory() / "cache.key").read_bytes()
    assert key not in data


def test_errors_are_one_line_with_a_next_step(saved: Path, identity: CacheIdentity) -> None:
    saved.write_bytes(b"\n\n" + saved.read_bytes())
    with pytest.raises(EdgeLLMError) as caught:
        read(saved, identity)
    assert "\n" not in caught.value.message
    assert caught.value.hint

"""Planning and downloading against a hub that misbehaves: what arrives is whole and checked, or one line says why."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import constants

from edgellm.checkpoint import open_checkpoint
from edgellm.errors import (
    BadInputError,
    EdgeLLMError,
    MissingInputError,
    NetworkError,
    NetworkInterrupted,
    OutputError,
    SpecError,
    UnsafeInputError,
)
from edgellm.hub import client as clients
from edgellm.hub import finish, parse_id, plan, pull, snapshot, store
from edgellm.hub.client import HubClient
from tests.hub.conftest import TOKEN
from tests.support import fake_hub
from tests.support.fake_hub import FakeHub, Fault
from tests.support.gguf_files import gguf_bytes, key, tensor
from tests.support.tiny_llama import write_tiny_llama

MODEL = parse_id("org/tiny")
NEEDED = {
    "config.json", "tokenizer.json", "tokenizer_config.json", "README.md", "model.safetensors.index.json",
    *(f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)),
}  # fmt: skip
GGUF = gguf_bytes([key("general.architecture", "STRING", "llama")], [tensor("t", [64])], bytes(range(256)))
SHARD = "model-00002-of-00003.safetensors"


def names(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() or path.is_symlink()
    }


def leftovers(cache: Path) -> set[str]:
    """Files of the store that are neither records, locks nor refs."""
    return {name for name in names(cache) if "/.lock" not in name and "/refs/" not in name}


def check_whole(path: Path, tiny: Path) -> None:
    """All needed files, with the right bytes, and nothing else."""
    assert names(path) == NEEDED | {store.RECORD_NAME}
    for name in NEEDED:
        assert (path / name).read_bytes() == (tiny / name).read_bytes(), name


def test_only_what_is_needed_is_fetched_and_all_at_one_commit(
    hub: FakeHub, client: HubClient, tiny: Path
) -> None:
    commit = hub.add("org/tiny", tiny)
    pulled = pull(MODEL, client=client)
    check_whole(pulled.path, tiny)
    assert (pulled.name, pulled.commit, pulled.complete) == ("tiny", commit, True)
    api, *files = hub.paths("hub")
    assert api == "/api/models/org/tiny/revision/main?blobs=true"
    assert {path.removeprefix(f"/org/tiny/resolve/{commit}/") for path in files} == NEEDED


def test_a_second_pull_asks_only_what_the_branch_means(hub: FakeHub, client: HubClient, tiny: Path) -> None:
    commit = hub.add("org/tiny", tiny)
    first = pull(MODEL, client=client)
    hub.seen.clear()
    assert pull(MODEL, client=client) == first
    assert len(hub.seen) == 1
    assert pull(parse_id(f"org/tiny@{commit}"), client=client) == first
    assert plan(parse_id(f"org/tiny@{commit}"), client=client) == first
    assert len(hub.seen) == 1  # a commit never moves, so nothing is asked


def test_a_branch_that_moves_is_followed_and_equal_files_are_not_fetched_again(
    hub: FakeHub, client: HubClient, tiny: Path, tmp_path: Path
) -> None:
    old = hub.add("org/tiny", tiny)
    first = pull(MODEL, client=client)
    shutil.copytree(tiny, tmp_path / "next")
    (tmp_path / "next" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    new = hub.add("org/tiny", tmp_path / "next")
    hub.seen.clear()
    second = pull(MODEL, client=client)
    assert (first.commit, second.commit) == (old, new)
    check_whole(second.path, tmp_path / "next")
    check_whole(first.path, tiny)
    assert hub.bytes_sent(".safetensors") == hub.bytes_sent("tokenizer") == 0
    assert pull(parse_id(f"org/tiny@{old}"), client=client) == first


def test_files_in_hugging_faces_own_cache_are_taken_from_there(
    hub: FakeHub, client: HubClient, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.add("org/tiny", tiny)
    theirs = tmp_path / "hf"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(theirs))
    folder = theirs / "models--org--tiny" / "snapshots" / commit
    folder.mkdir(parents=True)
    shutil.copy(tiny / SHARD, folder)
    (folder / "model-00001-of-00003.safetensors").write_bytes(b"damaged")
    check_whole(pull(MODEL, client=client).path, tiny)
    assert hub.bytes_sent(SHARD) == 0
    assert hub.bytes_sent("model-00001") == (tiny / "model-00001-of-00003.safetensors").stat().st_size


def test_a_plan_has_headers_only_and_is_not_a_download(
    hub: FakeHub, client: HubClient, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "FIRST_BYTES", 700)  # less than the header, so that the rest is fetched too
    big = write_tiny_llama(tmp_path / "big", {"vocab_size": 4096, "hidden_size": 128})
    hub.add("org/big", big)
    planned = plan(parse_id("org/big"), client=client)
    assert not planned.complete
    size = (big / "model.safetensors").stat().st_size
    assert (planned.path / "model.safetensors").stat().st_size == size
    header = 8 + int.from_bytes((big / "model.safetensors").read_bytes()[:8], "little")
    assert header > 700
    assert hub.bytes_sent(".safetensors") == header < size / 100
    ours, theirs = open_checkpoint(planned.path), open_checkpoint(big)
    assert [(t.name, t.type_name, t.shape, t.offset) for t in ours.tensors.values()] == [
        (t.name, t.type_name, t.shape, t.offset) for t in theirs.tensors.values()
    ]
    assert ours.config == theirs.config
    assert store.kept() == []
    assert store.find_complete(parse_id("org/big"), planned.commit) is None
    hub.seen.clear()
    assert plan(parse_id("org/big"), client=client) == planned
    assert len(hub.seen) == 1
    done = finish(planned.path, client=client)
    assert done.complete
    assert done.commit == planned.commit
    assert (done.path / "model.safetensors").read_bytes() == (big / "model.safetensors").read_bytes()
    assert hub.bytes_sent("config.json") == 0  # taken from the plan
    assert finish(planned.path, client=client) == done  # as a second process that planned before would


def test_a_plan_is_finished_at_its_own_commit_though_the_branch_moves(
    hub: FakeHub, client: HubClient, tiny: Path
) -> None:
    old = hub.add("org/tiny", tiny)
    planned = plan(MODEL, client=client)
    hub.add("org/tiny", {"config.json": b"{}", "model.safetensors": b"other"})
    done = finish(planned.path, client=client)
    assert done.commit == old
    check_whole(done.path, tiny)


def test_a_server_without_ranges_still_gives_headers(
    hub: FakeHub, client: HubClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "FIRST_BYTES", 100)
    big = write_tiny_llama(tmp_path / "big", {"vocab_size": 8192, "hidden_size": 128})
    hub.add("org/big", big)
    hub.faults = [Fault(".safetensors", ignores_range=True, times=9)]
    planned = plan(parse_id("org/big"), client=client)
    assert len(open_checkpoint(planned.path).tensors) == len(open_checkpoint(big).tensors)


def test_a_gguf_is_planned_from_its_header_and_fetched_alone(
    hub: FakeHub, client: HubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "FIRST_BYTES", 64)
    data = GGUF
    commit = hub.add(
        "org/g", {"a-Q4_0.gguf": data, "mmproj-a.gguf": b"x", "README.md": b"x", "pytorch_model.bin": b"x"}
    )
    planned = plan(parse_id("org/g"), client=client)
    assert planned.path.name == "a-Q4_0.gguf"
    assert planned.path.stat().st_size == len(data)
    assert not planned.complete
    assert open_checkpoint(planned.path).tensors.keys() == {"t"}
    done = finish(planned.path, client=client)
    assert done.path.read_bytes() == data
    assert (done.name, done.commit) == ("a-Q4_0", commit)
    assert pull(parse_id("org/g/a-Q4_0.gguf"), client=client) == done
    assert not any("mmproj" in path or "README" in path for path in hub.paths("hub"))


# Resuming


def test_a_reset_at_half_way_goes_on_by_range(
    hub: FakeHub, client: HubClient, tiny: Path, waits: list[float]
) -> None:
    hub.add("org/tiny", tiny)
    size = (tiny / SHARD).stat().st_size
    hub.faults = [Fault(SHARD, cut_after=size // 2, times=1), Fault(SHARD, cut_after=1000, times=1)]
    done: list[tuple[str, int, int]] = []
    pulled = pull(MODEL, client=client, progress=lambda *row: done.append(row))
    check_whole(pulled.path, tiny)
    starts = [seen.start for seen in hub.seen if seen.server == "cdn" and SHARD in seen.path]
    assert starts == [0, size // 2, size // 2 + 1000]
    assert hub.bytes_sent(SHARD) == size
    assert waits == [clients.FIRST_WAIT_S] * 2  # a try that brought something starts the count again
    total = sum((tiny / name).stat().st_size for name in NEEDED)
    assert done[-1] == ("download", total, total)
    assert [row[1] for row in done] == sorted(row[1] for row in done)


def test_what_arrived_is_kept_for_the_next_run(
    hub: FakeHub, client: HubClient, tiny: Path, cache: Path
) -> None:
    hub.add("org/tiny", tiny)
    size = (tiny / SHARD).stat().st_size
    hub.faults = [Fault(SHARD, cut_after=size // 2), Fault(SHARD, cut_after=0, times=99)]
    with pytest.raises(NetworkInterrupted, match=rf"{SHARD}.*connection lost") as caught:
        pull(MODEL, client=client)
    assert caught.value.exit_code == 75
    assert "kept" in str(caught.value.hint)
    (row,) = store.kept()
    assert (row.complete, row.model.repo) == (False, "org/tiny")
    assert store.find_complete(MODEL, row.commit) is None
    hub.faults, hub.seen = [], []
    check_whole(pull(MODEL, client=client).path, tiny)
    assert [seen.start for seen in hub.seen if seen.server == "cdn" and SHARD in seen.path] == [size // 2]
    assert hub.bytes_sent("model-00001") == 0
    assert [each.complete for each in store.kept()] == [True]


def test_a_server_that_forgets_ranges_gives_the_whole_file_again(
    hub: FakeHub, client: HubClient, tiny: Path
) -> None:
    hub.add("org/tiny", tiny)
    hub.faults = [Fault(SHARD, cut_after=5000), Fault(SHARD, ignores_range=True)]
    done: list[int] = []
    check_whole(pull(MODEL, client=client, progress=lambda _, n, total: done.append(n)).path, tiny)
    assert done[-1] == sum((tiny / name).stat().st_size for name in NEEDED)


def test_a_file_that_changes_between_two_tries_is_not_mixed(
    hub: FakeHub, client: HubClient, tiny: Path
) -> None:
    hub.add("org/tiny", tiny)
    hub.faults = [Fault(SHARD, cut_after=5000), Fault(SHARD, server="hub", times=0)]
    hub.faults[1].headers = {"X-Linked-Etag": '"' + "0" * 64 + '"'}
    taken = hub.take_fault

    def take(server: str, path: str) -> Fault | None:
        found = taken(server, path)
        if found is hub.faults[0]:
            hub.faults[1].times = 1
        return found

    hub.take_fault = take  # type: ignore[method-assign]
    with pytest.raises(BadInputError, match="its hash on the hub is 0000"):
        pull(MODEL, client=client)
    assert not any(seen.start for seen in hub.seen if seen.server == "cdn")


def test_a_part_that_went_bad_on_the_disk_is_found_by_its_hash(
    hub: FakeHub, client: HubClient, tiny: Path, cache: Path
) -> None:
    hub.add("org/tiny", tiny)
    hub.faults = [Fault(SHARD, cut_after=5000), Fault(SHARD, cut_after=0, times=99)]
    with pytest.raises(NetworkInterrupted):
        pull(MODEL, client=client)
    (part,) = cache.rglob("*.part")
    part.write_bytes(bytes(5000))
    hub.faults = []
    with pytest.raises(BadInputError, match="its hash is"):
        pull(MODEL, client=client)
    assert not list(cache.rglob("*.part"))
    check_whole(pull(MODEL, client=client).path, tiny)


# Wrong content


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    ("name", "server"), [(SHARD, "cdn"), ("config.json", "hub"), ("tokenizer.json", "cdn")]
)
def test_a_wrong_hash_is_refused_and_removed(
    name: str, server: str, hub: FakeHub, client: HubClient, tiny: Path, cache: Path
) -> None:
    hub.add("org/tiny", tiny)
    hub.faults = [Fault(f"/{name}", server=server, body=flip)]
    with pytest.raises(BadInputError, match=rf"{name}: its hash is [0-9a-f]+, the hub says") as caught:
        pull(MODEL, client=client)
    assert caught.value.exit_code == 65
    assert not list(cache.rglob(name))
    assert not list(cache.rglob("*.part"))
    assert [row.complete for row in store.kept()] in ([], [False])
    check_whole(pull(MODEL, client=client).path, tiny)


def test_a_good_copy_survives_a_bad_download(
    hub: FakeHub, client: HubClient, tiny: Path, tmp_path: Path, cache: Path
) -> None:
    hub.add("org/tiny", tiny)
    good = pull(MODEL, client=client)
    shutil.copytree(tiny, tmp_path / "next")
    shard = bytearray((tiny / SHARD).read_bytes())
    shard[-1] ^= 3
    (tmp_path / "next" / SHARD).write_bytes(shard)
    hub.add("org/tiny", tmp_path / "next")
    hub.faults = [Fault(SHARD, body=flip)]
    with pytest.raises(BadInputError, match="its hash is"):
        pull(MODEL, client=client)
    check_whole(good.path, tiny)
    assert plan(parse_id(f"org/tiny@{good.commit}"), client=client) == good


@pytest.mark.parametrize(
    ("fault", "said", "code"),
    [
        (Fault(SHARD, body=lambda data: data + b"more"), "bytes, the hub's listing says", 69),
        (Fault(SHARD, body=lambda data: data[:-4]), "bytes, the hub's listing says", 69),
        (Fault(SHARD, declared=10**9), "has 1000000000 bytes, the hub's listing says", 69),
        (Fault(SHARD, headers={"Transfer-Encoding": "chunked"}, times=99), "connection lost", 75),
        (Fault(SHARD, encoding="br"), "sent as 'br', though plain bytes were asked for", 69),
        (Fault(SHARD, encoding="gzip", body=lambda data: bytes(1 << 22)), "longer than the", 69),
        (
            Fault("/api/", server="hub", encoding="gzip", body=lambda data: bytes(1 << 22)),
            "longer than the",
            69,
        ),
        (Fault("/api/", server="hub", body=lambda data: b"<html>"), "not JSON", 69),
    ],
    ids=["longer", "shorter", "declared", "chunked", "brotli", "bomb", "listing bomb", "html"],
)
def test_what_is_not_the_file_is_refused_before_it_is_kept(
    fault: Fault,
    said: str,
    code: int,
    hub: FakeHub,
    client: HubClient,
    tiny: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(snapshot.listings, "MAX_LISTING_BYTES", 1 << 20)
    hub.add("org/tiny", tiny)
    hub.faults = [fault]
    with pytest.raises(NetworkError, match=said) as caught:
        pull(MODEL, client=client)
    assert caught.value.exit_code == code
    assert "\n" not in caught.value.message
    assert not list(cache.rglob(SHARD))
    size = (tiny / SHARD).stat().st_size
    assert all(part.stat().st_size <= size for part in cache.rglob("*.part"))
    hub.faults = []
    check_whole(pull(MODEL, client=client).path, tiny)


def test_gzip_that_was_not_asked_for_is_unpacked(hub: FakeHub, client: HubClient, tiny: Path) -> None:
    hub.add("org/tiny", tiny)
    hub.faults = [
        Fault(name, server="hub", encoding="gzip") for name in ("/api/", "/config.json", "index.json")
    ]
    check_whole(pull(MODEL, client=client).path, tiny)
    assert [fault.times for fault in hub.faults] == [0, 0, 0]


# Refusals


@pytest.mark.parametrize(
    ("change", "model", "error", "said"),
    [
        (None, "org/nope", MissingInputError, "no model 'org/nope' here or on 127.0.0.1"),
        (None, "org/tiny@v9", MissingInputError, "no revision 'v9'"),
        (None, "org/tiny/x.gguf", MissingInputError, r"no file 'x\.gguf'"),
        ({"status": 404, "headers": {"X-Error-Code": "EntryNotFound"}}, "org/tiny", MissingInputError, "not in the repos"),
        ({"status": 401}, "org/tiny", NetworkError, "or it is private"),
        ({"status": 403, "headers": {"X-Error-Code": "GatedRepo"}}, "org/tiny", NetworkError, "gated"),
        ({"status": 401, "headers": {"X-Error-Code": "GatedRepo"}}, "org/tiny", NetworkError, "gated"),
        ({"status": 403}, "org/tiny", NetworkError, "gated or not open"),
        ({"status": 400}, "org/tiny", NetworkError, "refused .HTTP 400"),
        ({"status": 418}, "org/tiny", NetworkError, "refused .HTTP 418"),
    ],
)  # fmt: skip
def test_a_refusal_is_one_line_with_a_hint(
    change: dict[str, Any] | None, model: str, error: type[EdgeLLMError], said: str, hub: FakeHub, client: HubClient,
    tiny: Path, waits: list[float],
) -> None:  # fmt: skip
    hub.add("org/tiny", tiny)
    hub.faults = [Fault("/config.json", server="hub", times=99, **change)] if change else []
    with pytest.raises(error, match=said) as caught:
        pull(parse_id(model), client=client)
    assert type(caught.value) is error
    assert caught.value.exit_code == (66 if error is MissingInputError else 69)
    assert "\n" not in caught.value.message
    assert waits == []  # these are not tried again
    if "gated" in said:
        assert f"{hub.endpoint}/org/tiny" in str(caught.value.hint)
        assert "hf auth login" in str(caught.value.hint)


def test_a_repository_of_pickles_is_refused_before_anything_is_fetched(
    hub: FakeHub, client: HubClient, cache: Path
) -> None:
    hub.add("org/old", {"config.json": b"{}", "pytorch_model.bin": b"\x80\x04", "tokenizer.json": b"{}"})
    for action in (plan, pull):
        with pytest.raises(UnsafeInputError, match=r"pytorch_model\.bin") as caught:
            action(parse_id("org/old"), client=client)  # type: ignore[operator]
        assert caught.value.exit_code == 65
    assert len(hub.seen) == 2
    assert leftovers(cache) == set()


def test_several_ggufs_are_listed(hub: FakeHub, client: HubClient) -> None:
    hub.add("org/g", {"a.gguf": b"x", "b.gguf": b"y"})
    with pytest.raises(SpecError, match="has 2 GGUF files"):
        plan(parse_id("org/g"), client=client)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 408])
def test_a_busy_hub_is_asked_again(
    status: int, hub: FakeHub, client: HubClient, tiny: Path, waits: list[float]
) -> None:
    hub.add("org/tiny", tiny)
    hub.faults = [
        Fault("/api/", server="hub", status=status, headers={"Retry-After": "7"}),
        Fault(SHARD, status=status, times=2),
    ]
    check_whole(pull(MODEL, client=client).path, tiny)
    assert waits == [7, clients.FIRST_WAIT_S, 2 * clients.FIRST_WAIT_S]


@pytest.mark.parametrize(
    ("after", "n_waits"), [("1", 4), ("", 4), ("3600", 0), ("99999999999999", 4), ("soon", 4)]
)
def test_waiting_for_a_busy_hub_is_bounded(
    after: str, n_waits: int, hub: FakeHub, client: HubClient, tiny: Path, waits: list[float]
) -> None:
    hub.add("org/tiny", tiny)
    hub.faults = [Fault("/api/", server="hub", status=429, headers={"Retry-After": after}, times=99)]
    with pytest.raises(NetworkInterrupted, match=r"too many requests \(HTTP 429\)") as caught:
        pull(MODEL, client=client)
    assert caught.value.exit_code == 75
    assert len(waits) == n_waits
    assert sum(waits) <= clients.MAX_WAIT_S * clients.MAX_TRIES
    if after == "3600":
        assert "asks to wait 3600 s" in caught.value.message


@pytest.mark.parametrize("path", ["/api/", SHARD])
def test_a_hub_that_says_nothing_is_given_up(
    path: str, hub: FakeHub, tiny: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/tiny", tiny)
    hub.faults = [Fault(path, server="hub" if path == "/api/" else "cdn", hangs=True, times=99)]
    monkeypatch.setattr(clients, "MAX_TRIES", 1)
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")
    with pytest.raises(NetworkInterrupted, match="did not answer in time") as caught:
        pull(MODEL, client=HubClient(sleep=waits.append))
    assert caught.value.exit_code == 75


def test_no_hub_at_all_is_one_line(hub: FakeHub, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(NetworkInterrupted, match=r"org/tiny: 127\.0\.0\.1: connection lost"):
        pull(MODEL, client=HubClient(sleep=waits.append))
    assert len(waits) == clients.MAX_TRIES - 1


@pytest.mark.parametrize("endpoint", ["ftp://x", "nonsense", "https://", "file:///etc"])
def test_an_endpoint_that_is_none_is_refused(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(SpecError, match="HF_ENDPOINT"):
        HubClient()


def test_without_huggingface_hub_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(EdgeLLMError, match="huggingface_hub") as caught:
        HubClient()
    assert caught.value.exit_code == 69
    assert caught.value.hint == "pip install 'edgellm[hub]'"


# Redirects and the token


def test_the_token_goes_to_the_hub_and_nowhere_else(
    hub: FakeHub, tiny: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/tiny", tiny)
    hub.token = TOKEN
    with pytest.raises(NetworkError, match="or it is private") as caught:
        pull(MODEL, client=HubClient(sleep=waits.append))
    assert "HF_TOKEN" in str(caught.value.hint)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    pull(MODEL, client=HubClient(sleep=waits.append))
    sent = {seen.server: set() for seen in hub.seen}
    for seen in hub.seen[1:]:
        sent[seen.server].add(seen.headers.get("Authorization"))
    assert sent == {"hub": {f"Bearer {TOKEN}"}, "cdn": {None}}
    assert not any(TOKEN in str(seen.headers) for seen in hub.seen if seen.server == "cdn")


def test_the_agent_says_what_asks_and_nothing_of_the_user(
    hub: FakeHub, client: HubClient, tiny: Path
) -> None:
    hub.add("org/tiny", tiny)
    pull(MODEL, client=client)
    agents = {seen.headers["User-Agent"] for seen in hub.seen}
    assert len(agents) == 1
    assert agents.pop().split("/")[0] == "edgellm"
    assert not any("agent-harnesses" in path or "telemetry" in path for path in hub.paths("hub"))


def over(answer: Callable[[httpx2.Request], httpx2.Response], waits: list[float]) -> HubClient:
    """A client whose network is a function."""
    return HubClient(session=httpx2.Client(transport=httpx2.MockTransport(answer)), sleep=waits.append)


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("http://huggingface.co/x", r"redirected from https to http \(huggingface\.co\), refused"),
        ("http://cdn.example/x", "redirected from https to http"),
        ("file:///etc/passwd", "no web address"),
        ("ftp://cdn.example/x", "no web address"),
        ("", "no web address"),
        ("/api/models/org/tiny/revision/main?blobs=true", "more than 5 redirects"),
    ],
)
def test_a_redirect_that_is_not_safe_is_refused(
    location: str, said: str, monkeypatch: pytest.MonkeyPatch, waits: list[float], cache: Path
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://huggingface.co")
    monkeypatch.setenv("EDGELLM_CACHE", str(cache))
    asked: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(str(request.url))
        return httpx2.Response(302, headers={"Location": location})

    with pytest.raises(NetworkError, match=said):
        pull(MODEL, client=over(answer, waits))
    assert all(url.startswith("https://huggingface.co/") for url in asked)
    assert waits == []


def test_the_token_is_dropped_at_every_other_origin(
    monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://huggingface.co")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hops = iter(
        [
            "https://huggingface.co/renamed",
            "https://huggingface.co:444/x",
            "https://cdn.huggingface.co/x",
            "https://huggingface.co/z",
        ]
    )
    seen: dict[str, str | None] = {}

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen[str(request.url)] = request.headers.get("Authorization")
        target = next(hops, None)
        return (
            httpx2.Response(307, headers={"Location": target})
            if target
            else httpx2.Response(200, content=iter([b"{}"]))
        )

    assert over(answer, waits).read_listing(MODEL, 100) == b"{}"
    secret = f"Bearer {TOKEN}"
    assert list(seen.values()) == [secret, secret, None, None, secret]


# The disk


def test_a_disk_that_is_too_small_is_refused_before_the_weights(
    hub: FakeHub, client: HubClient, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/tiny", tiny)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6, 1000))
    with pytest.raises(OutputError, match=r"needed, 1000 B free|needed, .* free") as caught:
        pull(MODEL, client=client)
    assert caught.value.exit_code == 74
    assert "EDGELLM_CACHE" in str(caught.value.hint)
    assert hub.bytes_sent(".safetensors") < 10_000


def test_a_disk_that_fills_up_is_one_line_and_leaves_no_part(
    hub: FakeHub, client: HubClient, tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/tiny", tiny)
    fetch = HubClient.fetch

    def full(self: HubClient, model: Any, commit: str, file: Any, part: Any, advance: Any) -> None:
        if file.name == SHARD:
            part.write(b"some")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fetch(self, model, commit, file, part, advance)

    monkeypatch.setattr(HubClient, "fetch", full)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        pull(MODEL, client=client)
    assert "EDGELLM_CACHE" in str(caught.value.hint)
    assert not list(cache.rglob("*.part"))
    monkeypatch.undo()


def test_a_store_that_cannot_be_made_is_one_line(
    hub: FakeHub, client: HubClient, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/tiny", tiny)
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "file"))
    for action in (plan, pull):
        with pytest.raises(OutputError, match="cannot be written"):
            action(MODEL, client=client)  # type: ignore[operator]


# Without a network


def test_offline_works_from_what_is_kept(
    hub: FakeHub, client: HubClient, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.add("org/tiny", tiny)
    pulled = pull(MODEL, client=client)
    hub.seen.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for text in ("org/tiny", "org/tiny@main", f"org/tiny@{commit}"):
        assert pull(parse_id(text)) == plan(parse_id(text)) == pulled
    for text in ("org/other", "org/tiny@v2", "org/tiny@" + "0" * 40):
        with pytest.raises(MissingInputError, match="HF_HUB_OFFLINE forbids") as caught:
            pull(parse_id(text))
        assert "\n" not in caught.value.message
    assert hub.seen == []


def test_offline_does_not_finish_a_plan(
    hub: FakeHub, client: HubClient, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/tiny", tiny)
    planned = plan(MODEL, client=client)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for action in (lambda: finish(planned.path), lambda: plan(MODEL), lambda: pull(MODEL)):
        with pytest.raises(MissingInputError, match="HF_HUB_OFFLINE"):
            action()


# The store


def test_downloads_are_listed_and_removed(hub: FakeHub, client: HubClient, tiny: Path, cache: Path) -> None:
    commit = hub.add("org/tiny", tiny)
    hub.add("org/g", {"a.gguf": GGUF, "b.gguf": GGUF})
    pull(MODEL, client=client)
    pull(parse_id("org/g/a.gguf"), client=client)
    pull(parse_id("org/g/b.gguf"), client=client)
    assert [str(row.model) for row in store.kept()] == [
        "org/g/a.gguf@main",
        "org/g/b.gguf@main",
        "org/tiny@main",
    ]
    size = sum((tiny / name).stat().st_size for name in NEEDED)
    assert store.kept()[2].n_bytes == pytest.approx(size, abs=16_384)
    assert len(store.matching(parse_id("org/g"))) == 2
    for text in (f"org/tiny@{commit[:8]}", "org/tiny@main", "org/tiny", f"org/tiny@{commit}"):
        assert len(store.matching(parse_id(text))) == 1, text
    for text in ("org/tin", "org/tiny@v1", f"org/tiny@{commit[:6]}", "org/g/c.gguf"):
        assert store.matching(parse_id(text)) == []
        with pytest.raises(MissingInputError, match="no download"):
            store.remove(parse_id(text))
    assert [str(row.model) for row in store.remove(parse_id("org/g/a.gguf"))] == ["org/g/a.gguf@main"]
    store.remove(MODEL)
    assert [str(row.model) for row in store.kept()] == ["org/g/b.gguf@main"]
    assert [path.name for path in (cache / "hub").iterdir()] == ["org--g"]


def test_what_is_being_downloaded_is_not_removed(hub: FakeHub, client: HubClient, tiny: Path) -> None:
    hub.add("org/tiny", tiny)
    pull(MODEL, client=client)
    with (
        store.locked(MODEL),
        pytest.raises(EdgeLLMError, match="being downloaded by another process") as caught,
    ):
        store.remove(MODEL)
    assert caught.value.exit_code == 75
    assert len(store.kept()) == 1


def test_records_of_strangers_are_passed_over(
    hub: FakeHub, client: HubClient, tiny: Path, cache: Path
) -> None:
    hub.add("org/tiny", tiny)
    pulled = pull(MODEL, client=client)
    record = pulled.path / store.RECORD_NAME
    for text in (
        "{}",
        "not json",
        record.read_text().replace("org/tiny", "../x").replace(pulled.commit, "z"),
    ):
        other = cache / "hub" / "a--b" / "complete" / "x"
        other.mkdir(parents=True, exist_ok=True)
        (other / store.RECORD_NAME).write_text(text)
        assert [str(row.model) for row in store.kept()] == ["org/tiny@main"]


def test_hashes_are_those_of_git_and_sha256sum(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"hello\n")
    known = "ce013625030ba8dba906f756967f9e9ca394464a"  # echo hello | git hash-object --stdin
    small = snapshot.HubFile(name="x", n_bytes=6, sha256=None, git_sha1=known)
    assert snapshot.digest_of(path, small) == known == fake_hub.git_sha1(b"hello\n")
    large = snapshot.HubFile(
        name="x", n_bytes=6, sha256=hashlib.sha256(b"hello\n").hexdigest(), git_sha1=None
    )
    assert snapshot.digest_of(path, large) == large.digest


def test_offline_mode_of_the_library_is_said_too(
    hub: FakeHub, client: HubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NetworkError, match="offline mode"):
        pull(MODEL, client=client)
    assert hub.seen == []

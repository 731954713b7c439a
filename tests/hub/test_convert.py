"""`edgellm convert org/name` and the verbs of the store, as users start them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgellm import api
from edgellm.cli.main import run
from edgellm.convert import pipeline, slabs
from edgellm.errors import EdgeLLMError, ResourceError
from edgellm.formats.gguf import read_gguf
from edgellm.machine.memory import Headroom
from tests.hub.conftest import TOKEN
from tests.support.cli import EDGELLM, edgellm, succeed
from tests.support.fake_hub import FakeHub, Fault

SHARD = "model-00002-of-00003.safetensors"
Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """A command in this process, which starts faster: exit code, stdout, stderr."""

    def said(*arguments: str | Path) -> tuple[int, str, str]:
        code = run(list(map(str, arguments)))
        done = capsys.readouterr()
        return code, done.out, done.err

    return said


def without_hash(model: Path) -> bytes:
    """A model file without the hash of its manifest."""
    sha256 = read_gguf(model).metadata["edgellm.manifest.sha256"].value
    before, _, after = model.read_bytes().partition(sha256.encode())
    return before + after


def test_a_model_of_the_hub_becomes_the_same_bytes_as_a_local_one(
    hub: FakeHub, tiny: Path, tmp_path: Path, cache: Path, say: Say
) -> None:
    commit = hub.add("org/tiny", tiny)
    api.convert(tiny, quant="Q8_0", output=tmp_path / "local")
    assert hub.seen == []
    hub.faults = [Fault(SHARD, cut_after=60_000)]
    succeed("convert", "org/tiny", "--quant", "Q8_0", "-o", "remote", cwd=tmp_path)
    # The manifest names the commit, and the model has its hash.
    remote, local = (without_hash(tmp_path / name / "model.gguf") for name in ("remote", "local"))
    assert remote == local
    tokenizers = [(tmp_path / name / "tokenizer.json").read_bytes() for name in ("remote", "local")]
    assert tokenizers[0] == tokenizers[1]
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("remote", "local")]
    ours, theirs = manifests
    assert (ours["revision"], theirs["revision"]) == (commit, None)
    assert (ours["model"], ours["licence"]) == ("tiny", "mit") == (theirs["model"], theirs["licence"])
    assert ours["parents"] == theirs["parents"]
    # Now everything is here: only what the branch means is asked.
    hub.seen.clear()
    plan = api.plan_conversion("org/tiny", quant="Q4_0")
    assert plan.source.checkpoint.has_weights
    assert str(plan.output) == "tiny-host"
    assert [seen.path.split("?")[0] for seen in hub.seen] == ["/api/models/org/tiny/revision/main"]
    (row,) = json.loads(say("ls", "--json")[1])
    assert (row["name"], row["commit"], row["revision"]) == ("org/tiny", commit, "main")
    assert row["complete"] is True
    assert Path(row["path"]).is_relative_to(cache)


def test_a_dry_run_and_a_refusal_fetch_no_weights(hub: FakeHub, tiny: Path, tmp_path: Path, say: Say) -> None:
    hub.add("org/tiny", tiny)
    out = tmp_path / "out"
    code, words, _ = say("convert", "org/tiny", "--dry-run", "--quant", "Q8_0", "-o", out)
    assert code == 0
    assert f"would write {out}" in words
    out.mkdir()
    assert say("convert", "org/tiny", "--quant", "Q8_0", "-o", out)[0] == 73
    assert say("convert", "org/tiny", "--quant", "Q9_9")[0] == 64
    shards = [seen for seen in hub.seen if seen.path.endswith(".safetensors")]
    assert shards
    assert all(seen.headers.get("Range") for seen in shards)
    assert json.loads(say("ls", "--json")[1]) == []
    assert list(out.iterdir()) == []


def test_a_tokenizer_that_cannot_be_converted_is_refused_before_the_weights(
    hub: FakeHub, tiny: Path, tmp_path: Path, say: Say
) -> None:
    files = {
        path.name: path.read_bytes() for path in tiny.iterdir() if path.name.startswith(("model", "config"))
    }
    hub.add("org/mute", files)
    code, _, err = say("convert", "org/mute", "--quant", "Q8_0", "-o", tmp_path / "out")
    assert code in (65, 66)
    assert "tokenizer" in err
    assert json.loads(say("ls", "--json")[1]) == []


def test_too_little_memory_is_refused_before_the_weights(
    hub: FakeHub, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/tiny", tiny)
    monkeypatch.setattr(slabs, "headroom", lambda: Headroom(1 << 20, 0, "limit of the cgroup"))
    with pytest.raises(ResourceError, match="limit of the cgroup"):
        api.convert("org/tiny", quant="Q8_0", output=tmp_path / "out")
    shards = [seen for seen in hub.seen if seen.path.endswith(".safetensors")]
    assert shards
    assert all(seen.headers.get("Range") for seen in shards)


def test_a_plan_cannot_be_converted(hub: FakeHub, tiny: Path, tmp_path: Path) -> None:
    hub.add("org/tiny", tiny)
    planned = api.plan_conversion("org/tiny", quant="Q8_0")
    assert not planned.source.checkpoint.has_weights
    with pytest.raises(EdgeLLMError, match="planned from headers only"):
        pipeline.convert(planned.source, planned.target, planned.recipe, tmp_path, n_workers=1, argv=[])
    assert list(tmp_path.glob("*.gguf")) == []


def test_pull_ls_and_rm(hub: FakeHub, tiny: Path, say: Say) -> None:
    commit = hub.add("org/tiny", tiny)
    hub.add("org/tiny", tiny, revision="v1")
    assert "no downloads" in say("ls")[2]
    path = Path(succeed("pull", "org/tiny", "--revision", "v1").strip())
    assert (path / SHARD).read_bytes() == (tiny / SHARD).read_bytes()
    found = json.loads(say("pull", "org/tiny@v1", "--json")[1])
    assert found == {"name": "tiny", "commit": commit, "path": str(path)}
    row = say("ls")[1].split()
    assert row[:2] == ["org/tiny", commit[:12]]
    assert "v1" in row
    code, _, err = say("rm", "org/tiny")
    assert code == 64
    assert "would be removed" in err
    assert "hint: add --yes" in err
    assert path.is_dir()
    assert "removed 1" in say("rm", "org/tiny", "--yes")[1]
    assert not path.exists()
    for expected, *arguments in (
        (66, "rm", "org/tiny", "--yes"), (64, "rm", "../..", "--yes"), (66, "pull", "org/nope", "--json"),
        (64, "pull", "org/tiny@v1", "--revision", "main"), (64, "pull", "tiny"), (66, "convert", "org/nope"),
    ):  # fmt: skip
        code, out, err = say(*arguments)
        assert (code, out) == (expected, ""), arguments
        assert "Traceback" not in err


def test_a_local_directory_wins_and_the_message_says_so(
    hub: FakeHub, tiny: Path, tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "tiny").symlink_to(tiny)
    code, _, err = say("convert", "org/tiny", "--dry-run", "--quant", "Q8_0")
    assert code == 0
    assert "org/tiny is a directory here; hf://org/tiny asks the hub" in err
    assert hub.seen == []
    hub.add("org/tiny", tiny)
    assert say("convert", "hf://org/tiny", "--dry-run", "--quant", "Q8_0")[0] == 0
    assert hub.seen
    (tmp_path / "org" / "empty").mkdir()
    code, _, err = say("convert", "org/empty")
    assert code == 66
    assert "so the hub was not asked: hf://org/empty asks it" in err


def test_a_download_that_was_killed_goes_on(hub: FakeHub, tiny: Path, say: Say) -> None:
    hub.add("org/tiny", tiny)
    hub.faults = [Fault(SHARD, cut_after=50_000), Fault(SHARD, hangs=True)]
    null = subprocess.DEVNULL
    with subprocess.Popen([*EDGELLM, "pull", "org/tiny"], stdout=null, stderr=null) as child:
        for _ in range(6000):
            if hub.faults[1].times == 0:
                break
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    (row,) = json.loads(say("ls", "--json")[1])
    assert row["complete"] is False
    hub.seen.clear()
    assert say("pull", "org/tiny")[0] == 0
    assert next(seen.start for seen in hub.seen if seen.server == "cdn") == 50_000
    assert hub.bytes_sent(SHARD) == (tiny / SHARD).stat().st_size - 50_000


def test_the_token_is_in_nothing_that_is_written(
    hub: FakeHub, tiny: Path, tmp_path: Path, cache: Path
) -> None:
    hub.add("org/tiny", tiny)
    hub.add("org/gated", tiny)
    hub.gated.add("org/gated")
    hub.token = TOKEN
    home = str(tmp_path / "home")
    env = {"HF_TOKEN": TOKEN, "HF_DEBUG": "1", "HOME": home, "HF_HOME": home}
    said = []
    for code, *arguments in (
        (0, "convert", "org/tiny", "--quant", "Q8_0", "-o", "out"), (69, "convert", "org/gated"),
        (66, "pull", "org/nope", "--json"),
    ):  # fmt: skip
        done = edgellm(*arguments, cwd=tmp_path, **env)
        assert done.returncode == code, done.stderr
        said.append(done.stdout + done.stderr)
    hub.token = "hf_another"
    done = edgellm("pull", "org/other", cwd=tmp_path, **env)
    assert done.returncode == 69
    said.append(done.stdout + done.stderr)
    assert any(seen.headers.get("Authorization") == f"Bearer {TOKEN}" for seen in hub.seen)
    assert TOKEN not in "".join(said)
    written = [path for folder in (tmp_path, cache) for path in folder.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert [path for path in written if TOKEN.encode() in path.read_bytes()] == []


GUARD = """
import sys
asked = set()
def guard(event, args):
    if event in ("socket.connect", "socket.sendto"):
        asked.add(args[1] if isinstance(args[1], str) else args[1][:2])
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        asked.add(args[:2])
sys.addaudithook(guard)
from edgellm.cli.main import run
code = run(sys.argv[1:])
print(code, sorted({str(port) for _, port in asked}), "huggingface_hub" in sys.modules, "hf_xet" in sys.modules)
"""


def guarded(*arguments: str | Path, cwd: Path) -> str:
    """A command under a guard: its exit code, the ports that were asked for, which modules were loaded."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", GUARD, *map(str, arguments)], cwd=cwd, env=os.environ, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return done.stdout.splitlines()[-1]


def test_no_request_is_made_that_was_not_asked_for(hub: FakeHub, tiny: Path, tmp_path: Path) -> None:
    hub.add("org/tiny", tiny)
    for code, *arguments in (
        (0, "convert", tiny, "--quant", "Q8_0", "-o", "a"), (0, "ls"), (66, "convert", "./org/x"),
    ):  # fmt: skip
        assert guarded(*arguments, cwd=tmp_path) == f"{code} [] False False", arguments
    assert hub.seen == []
    ports = sorted(str(server.server_port) for server in hub.servers.values())
    assert guarded("pull", "org/tiny", cwd=tmp_path) == f"0 {ports} True False"
    assert all("/org/tiny/" in seen.path for seen in hub.seen if seen.server == "hub")

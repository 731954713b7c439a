"""Scratch: removed at the end, swept after a kill, never taken from a live run; a cache that cannot be written."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgellm import api, scratch
from edgellm.errors import OutputError
from tests.support.cli import EDGELLM, edgellm, refused, succeed
from tests.support.disks import small_disk
from tests.support.tiny_llama import write_tiny_llama

HOLD = """
import sys
from edgellm import scratch
with scratch.directory("held") as folder:
    (folder / "file").write_bytes(b"half")
    print(folder, flush=True)
    sys.stdin.read()
"""
WIDE = {
    "hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "head_dim": 64,
    "max_position_embeddings": 1024,
}  # fmt: skip
# What a killed run leaves, and the options of a run that makes it.
KINDS = {
    "mix": ["--bpw", "5"],
    "reference": ["--quant", "Q8_0", "--verify", "quick", "--reference-engine", "gguf"],
    "tokenizer": ["--quant", "Q8_0"],
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's place for temporary files, empty."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    return place


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("m") / "wide", WIDE)


@contextlib.contextmanager
def holding() -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A process that has scratch, and where."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout
        yield child, Path(child.stdout.readline().decode().strip())


def entries() -> list[str]:
    return sorted(path.name for path in scratch.root().iterdir()) if scratch.root().exists() else []


def test_it_is_removed_when_the_block_is_left(cache: Path) -> None:
    with scratch.directory("one") as one, scratch.directory("two") as two:
        (one / "file").write_bytes(b"x")
        assert one.parent == two.parent == cache / "scratch"
        assert len(entries()) == 4
    assert entries() == []
    with pytest.raises(ZeroDivisionError), scratch.directory("one"):
        raise ZeroDivisionError
    assert entries() == []


def test_what_a_killed_process_left_is_swept_under_any_name(cache: Path) -> None:
    with holding() as (child, folder):
        child.kill()
        child.wait()
        assert (folder / "file").read_bytes() == b"half"
    with scratch.directory("another"):
        assert not folder.exists()
        assert len(entries()) == 2


def test_scratch_of_a_live_process_is_kept_even_in_the_same_process(cache: Path) -> None:
    with holding() as (child, folder), scratch.directory("mine") as mine:
        scratch.sweep()
        assert (folder / "file").exists()
        assert mine.is_dir()
        child.communicate()
    assert child.returncode == 0
    assert entries() == []


def test_a_directory_that_is_not_ours_is_left_alone(cache: Path) -> None:
    (cache / "scratch" / "notes").mkdir(parents=True)
    scratch.sweep()
    assert entries() == ["notes"]


def test_a_link_in_the_place_of_scratch_is_not_followed(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (cache / "scratch").mkdir(parents=True)
    (cache / "scratch" / "mix-0.lock").touch()
    (cache / "scratch" / "mix-0").symlink_to(tmp_path / "precious")
    scratch.sweep()
    assert (tmp_path / "precious" / "file").exists()


def wait_for(child: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
    while not condition():
        assert child.poll() is None, child.communicate()
        time.sleep(0.0005)


def stop_with_scratch(wide: Path, out: Path, kind: str) -> subprocess.Popen[bytes]:
    """A conversion that is stopped as soon as it has files of that kind."""
    child = subprocess.Popen(
        [*EDGELLM, "convert", str(wide), "--target", "rpi5", "--jobs", "1", "-o", str(out), *KINDS[kind]],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_for(child, lambda: any(any(path.iterdir()) for path in scratch.root().glob(f"{kind}-*[!k]")))
    child.send_signal(signal.SIGSTOP)
    return child


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_conversion_is_cleaned_up_by_the_next(
    cache: Path, temporary: Path, wide: Path, tmp_path: Path, kind: str
) -> None:
    with stop_with_scratch(wide, tmp_path / "killed", kind) as child:
        child.kill()
        child.wait()
    assert any(name.startswith(f"{kind}-") for name in entries())
    succeed("convert", wide, "--quant", "Q8_0", "-o", tmp_path / "out")
    assert entries() == []
    assert list(temporary.iterdir()) == []


def test_a_conversion_beside_a_live_one_leaves_its_scratch_alone(
    cache: Path, wide: Path, tmp_path: Path
) -> None:
    with stop_with_scratch(wide, tmp_path / "first", "mix") as child:
        succeed("convert", wide, "--quant", "Q8_0", "-o", tmp_path / "second")
        assert any(name.startswith("mix-") for name in entries())
        child.send_signal(signal.SIGCONT)
        _, err = child.communicate()
    assert child.returncode == 0, err
    assert (tmp_path / "first" / "model.gguf").exists()
    assert entries() == []


def test_a_gguf_source_sweeps_too(cache: Path, wide: Path, tmp_path: Path) -> None:
    made = api.convert(wide, quant="F16", output=tmp_path / "f16", target="rpi5")
    with holding() as (child, folder):
        child.kill()
        child.wait()
    api.convert(made.model_path, quant="Q8_0", output=tmp_path / "q8", target="rpi5")
    assert not folder.exists()


def test_a_cache_that_is_a_file_is_named_with_its_variable(cache: Path, wide: Path, tmp_path: Path) -> None:
    cache.write_text("mine")
    error, hint = refused(74, "convert", wide, "--quant", "Q8_0", "-o", tmp_path / "out")
    assert str(cache) in error
    assert "cache" in error
    assert "EDGELLM_CACHE" in hint
    assert "-o" not in hint.split()
    assert cache.read_text() == "mine"


def test_a_cache_that_is_full_is_named_with_its_variable(tmp_path: Path, wide: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, 64 << 10) as mounted:
        if not mounted:
            pytest.skip("a file system cannot be mounted here")
        done = edgellm(
            "convert", wide, "--bpw", "5", "--target", "rpi5", "-o", tmp_path / "out", EDGELLM_CACHE=str(disk)
        )
    assert done.returncode == 74, done.stderr
    assert "EDGELLM_CACHE" in done.stderr
    assert "-o on another" not in done.stderr


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.EDQUOT, errno.EIO]
)
def test_every_write_error_of_scratch_says_how_to_choose_another_cache(number: int, tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught, scratch.write_errors(tmp_path / "x"):
        raise OSError(number, os.strerror(number))
    assert "EDGELLM_CACHE" in str(caught.value.hint)
    assert "-o" not in str(caught.value.hint).split()

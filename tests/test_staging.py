"""A directory appears whole or not at all: errors, interrupts, kills, full disks and leftovers."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgellm import artifact
from edgellm.artifact import open_directory
from edgellm.errors import OutputError, OutputExistsError
from edgellm.staging import staged_directory, staged_file, write_error
from tests.support.disks import small_disk
from tests.test_artifact import write_artifact

TOOLKIT = Path(artifact.__file__).resolve().parent.parent


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def start(code: str, *arguments: str | Path, stdout: int | None = None) -> subprocess.Popen[bytes]:
    """A Python child that can import edgellm."""
    environment = {**os.environ, "PYTHONPATH": str(TOOLKIT)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment, stdin=subprocess.PIPE, stdout=stdout,
    )  # fmt: skip


def stage_and_raise(final: Path, error: BaseException, *, force: bool = False) -> None:
    """Fail after the model was written and before the name is taken."""
    with staged_directory(final, force=force) as staging:
        write_artifact(staging)
        raise error


def test_clean_exit(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "out"
    with staged_directory(final) as staging:
        assert staging.parent == final.parent
        assert not final.exists()
        write_artifact(staging)
    assert open_directory(final).manifest.model == "tiny"
    assert names(final.parent) == ["out"]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit, OSError])
def test_any_exception_leaves_nothing(tmp_path: Path, kind: type[BaseException]) -> None:
    final = tmp_path / "out"
    with pytest.raises(kind):
        stage_and_raise(final, kind())
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_exception_keeps_what_was_to_be_replaced(tmp_path: Path, kind: type[BaseException]) -> None:
    final = write_artifact(tmp_path / "out", b"old!")
    with pytest.raises(kind):
        stage_and_raise(final, kind(), force=True)
    assert names(tmp_path) == ["out"]
    assert (final / "model.gguf").read_bytes() == b"old!"


def test_existing_output_is_refused_before_any_work(tmp_path: Path) -> None:
    final = write_artifact(tmp_path / "out", b"old!")
    with pytest.raises(OutputExistsError, match="exists already") as caught, staged_directory(final):
        pytest.fail("the body ran")
    assert "--force" in (caught.value.hint or "")
    assert (final / "model.gguf").read_bytes() == b"old!"


@pytest.mark.parametrize("exchange", [True, False], ids=["renameat2", "two renames"])
def test_force_replaces_an_artifact_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr("edgellm.staging._exchange", lambda one, other: False)
    final = write_artifact(tmp_path / "out", b"old!")
    with staged_directory(final, force=True) as staging:
        write_artifact(staging, b"new!")
        assert (final / "model.gguf").read_bytes() == b"old!"
    assert (final / "model.gguf").read_bytes() == b"new!"
    assert names(tmp_path) == ["out"]


def test_force_does_not_replace_what_is_not_an_artifact(tmp_path: Path) -> None:
    folder, file, link = tmp_path / "photos", tmp_path / "file", tmp_path / "link"
    folder.mkdir()
    (folder / "cat.jpg").write_bytes(b"cat")
    file.write_bytes(b"text")
    link.symlink_to(write_artifact(tmp_path / "real"))
    for final in (folder, file, link):
        with (
            pytest.raises(OutputExistsError, match="--force does not replace it"),
            staged_directory(final, force=True),
        ):
            pytest.fail("the body ran")
    assert (folder / "cat.jpg").read_bytes() == b"cat"
    assert file.read_bytes() == b"text"
    assert link.is_symlink()


def test_a_dangling_link_counts_as_existing(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputExistsError), staged_directory(tmp_path / "out"):
        pytest.fail("the body ran")


def test_a_name_taken_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    final = tmp_path / "out"

    def race() -> None:
        with staged_directory(final) as staging:
            write_artifact(staging)
            write_artifact(final, b"them")

    with pytest.raises(OutputExistsError, match="appeared while"):
        race()
    assert (final / "model.gguf").read_bytes() == b"them"
    assert names(tmp_path) == ["out"]


HOLD = """
import pathlib, sys
from edgellm.staging import staged_directory
with staged_directory(pathlib.Path(sys.argv[1])) as staging:
    (staging / "model.gguf").write_bytes(b"half")
    print("ready", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def holding(final: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is writing under that name."""
    with start(HOLD, final, stdout=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdout.readline() == b"ready\n"
        yield child


def leave_behind(name: str, place: Path) -> Path:
    """What a killed process leaves under a name of work in progress: its lock, which nobody holds, beside it."""
    path = place / f".{name}.partial-0123456789ab"
    (place / f"{path.name}.lock").touch()
    return path


def test_leftovers_of_the_dead_are_removed_and_all_else_is_kept(tmp_path: Path) -> None:
    dead, other = leave_behind("out", tmp_path), leave_behind("other", tmp_path)
    without_lock, unlike = tmp_path / ".out.partial-ba9876543210", tmp_path / ".out.partial-notes"
    (tmp_path / ".out.partial-notes.lock").touch()
    for folder in (dead, other, without_lock, unlike):
        write_artifact(folder)
    with staged_directory(tmp_path / "out") as staging:
        write_artifact(staging)
    kept = [other.name, f"{other.name}.lock", without_lock.name, unlike.name, f"{unlike.name}.lock", "out"]
    assert names(tmp_path) == sorted(kept)


def test_a_live_process_keeps_its_files_where_its_id_means_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As between two containers that share a directory."""

    def nobody_there(pid: int, number: int) -> None:
        raise ProcessLookupError

    final = tmp_path / "out"
    with holding(final) as child:
        monkeypatch.setattr(os, "kill", nobody_there)
        with staged_directory(final) as staging:
            write_artifact(staging)
            assert len(list(tmp_path.glob(".out.partial-*/model.gguf"))) == 2
        (kept,) = tmp_path.glob(".out.partial-*/model.gguf")
        assert kept.read_bytes() == b"half"
        monkeypatch.undo()
        child.kill()
    with staged_directory(final, force=True) as staging:
        write_artifact(staging)
    assert names(tmp_path) == ["out"]


def test_a_leftover_that_is_a_link_is_unlinked_not_followed(tmp_path: Path) -> None:
    target = write_artifact(tmp_path / "real")
    leave_behind("out", tmp_path).symlink_to(target)
    with staged_directory(tmp_path / "out") as staging:
        write_artifact(staging)
    assert names(tmp_path) == ["out", "real"]
    assert names(target) == ["manifest.json", "model.gguf"]


def test_killed_in_the_middle(tmp_path: Path) -> None:
    final = tmp_path / "out"
    with holding(final) as child:
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    assert not final.exists()
    assert len(list(tmp_path.glob(".out.partial-*/model.gguf"))) == 1
    with staged_directory(final) as staging:
        write_artifact(staging)
    assert names(tmp_path) == ["out"]


FILL = """
import pathlib, resource, signal, sys
from edgellm.staging import staged_directory, write_error
from edgellm.errors import OutputError
final, limit = pathlib.Path(sys.argv[1]), int(sys.argv[2])
if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    with staged_directory(final, force=True) as staging:
        path = staging / "model.gguf"
        try:
            path.write_bytes(bytes(1 << 20))
        except OSError as err:
            raise write_error(path, err) from err
except OutputError as err:
    print(err, err.hint)
    sys.exit(err.exit_code)
"""


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    limit_bytes = 64 * 1024
    with small_disk(tmp_path / "disk", limit_bytes) as mounted:
        final = write_artifact(tmp_path / "disk" / "out", b"old!")
        child = start(FILL, final, "0" if mounted else str(limit_bytes), stdout=subprocess.PIPE)
        words, _ = child.communicate()
        assert child.returncode == OutputError.exit_code == 74
        assert b"cannot be written" in words
        if mounted:
            assert b"free some space" in words
        assert names(tmp_path / "disk") == ["out"]
        assert (final / "model.gguf").read_bytes() == b"old!"


def test_a_place_that_cannot_be_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot be written"), staged_directory(tmp_path / "file" / "out"):
        pytest.fail("the body ran")


def test_staged_file_replaces_in_one_step(tmp_path: Path) -> None:
    final = tmp_path / "report.json"
    final.write_text("old")
    with staged_file(final) as temporary:
        temporary.write_text("new")
        assert final.read_text() == "old"
    assert final.read_text() == "new"

    def interrupted() -> None:
        with staged_file(final) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert final.read_text() == "new"
    assert names(tmp_path) == ["report.json"]


def test_a_file_that_a_killed_process_began_is_removed_by_the_next(tmp_path: Path) -> None:
    leave_behind("report.json", tmp_path).write_text("half")
    with staged_file(tmp_path / "report.json") as temporary:
        temporary.write_text("new")
    assert names(tmp_path) == ["report.json"]


def test_staged_file_that_was_never_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError), staged_file(tmp_path / "report.json"):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EDQUOT])
def test_write_errors_have_a_hint(number: int) -> None:
    error = write_error(Path("out"), OSError(number, os.strerror(number)))
    assert isinstance(error, OutputError)
    assert str(error) == f"out: cannot be written: {os.strerror(number)}"
    assert error.hint
    assert write_error(Path("out"), OSError("odd")).hint is None


def test_a_folder_that_merely_has_a_manifest_is_not_replaced(tmp_path: Path) -> None:
    """A web page's manifest.json does not make its folder one of ours."""
    page = tmp_path / "webapp"
    page.mkdir()
    (page / "manifest.json").write_text('{"name": "my page"}')
    (page / "code.js").write_text("precious")
    with (
        pytest.raises(OutputExistsError, match="holds more than an artifact"),
        staged_directory(page, force=True),
    ):
        pass
    assert (page / "code.js").read_text() == "precious"


def test_an_artifact_with_a_file_of_the_users_is_not_replaced(tmp_path: Path) -> None:
    final = write_artifact(tmp_path / "out")
    (final / "report.json").write_text("mine")
    with (
        pytest.raises(OutputExistsError, match="holds more than an artifact"),
        staged_directory(final, force=True),
    ):
        pass
    assert (final / "report.json").read_text() == "mine"


def test_what_appears_while_converting_is_looked_at_again(tmp_path: Path) -> None:
    final = tmp_path / "out"

    def convert() -> None:
        with staged_directory(final, force=True) as folder:
            write_artifact(folder)
            final.mkdir()
            (final / "precious").write_text("mine")

    with pytest.raises(OutputExistsError):
        convert()
    assert (final / "precious").read_text() == "mine"


def test_the_old_artifact_comes_back_when_two_renames_are_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where names cannot be swapped, an interrupt between the renames must not leave nothing under the name."""
    final = write_artifact(tmp_path / "out", b"old!")
    monkeypatch.setattr("edgellm.staging._exchange", lambda one, other: False)
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), staged_directory(final, force=True) as folder:
        write_artifact(folder, b"new!")
    assert (final / "model.gguf").read_bytes() == b"old!"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OutputError, match="not a regular file"), staged_file(pipe) as temporary:
        temporary.write_bytes(b"report")
    assert pipe.is_fifo()


def test_a_file_behind_a_link_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    with staged_file(link) as temporary:
        temporary.write_bytes(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_an_output_below_a_file_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="Not a directory"), staged_directory(tmp_path / "file" / "out"):
        pass

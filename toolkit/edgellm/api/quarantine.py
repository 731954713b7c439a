"""Model files that crash native code: counted by their hash, and not loaded again after the third time."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path

from edgellm import artifact, resources, staging
from edgellm.errors import BackendError, BadInputError, NativeCrash, OutputError
from edgellm.formats.records import Record, from_json

MAX_CRASHES = 3
# A kill from outside, as by the kernel when memory runs out, says nothing about the file; an illegal instruction
# says that the library was built for another CPU.
_NOT_THE_FILE = {"SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGILL"}


class Crashes(Record):
    """What is known of one file.

    Attributes:
        n_bytes: its size.  n_crashes: how often native code died with it.  last: the last crash, in words.
    """

    sha256: str
    n_bytes: int
    n_crashes: int
    last: str


def directory() -> Path:
    """Where the records are; it need not exist."""
    return resources.cache_directory() / "crashes"


def note(path: Path, crash: NativeCrash) -> None:
    """Count a crash of a file. Where the cache cannot be written, nothing is counted."""
    if crash.signal_name is None or crash.signal_name in _NOT_THE_FILE:
        return
    with contextlib.suppress(OSError, OutputError):
        sha256 = _sha256(path)
        known = _read(directory() / f"{sha256}.json")
        record = Crashes(
            sha256=sha256, n_bytes=path.stat().st_size, n_crashes=(known.n_crashes if known else 0) + 1,
            last=f"{crash.signal_name}: {crash.message}"[:500],
        )  # fmt: skip
        directory().mkdir(parents=True, exist_ok=True)
        with staging.staged_file(directory() / f"{sha256}.json") as staged:
            artifact.write_record(staged, record)


def check(path: Path) -> None:
    """Refuse a file that crashed too often.

    Raises:
        BackendError: it did; the hint says how to try it again.
    """
    try:
        n_bytes = path.stat().st_size
    except OSError:
        return
    # Hashing takes seconds: only files of a size that is known to crash are hashed.
    suspects = [
        record for record in records() if record.n_crashes >= MAX_CRASHES and record.n_bytes == n_bytes
    ]
    if not suspects:
        return
    sha256 = _sha256(path)
    for record in suspects:
        if record.sha256 == sha256:
            raise BackendError(
                f"{path}: crashed {record.n_crashes} times and is quarantined; the last was {record.last}",
                hint=f"to try it all the same: edgellm doctor --unquarantine {sha256[:12]}",
            )


def records() -> list[Crashes]:
    """All files that have crashed."""
    try:
        paths = sorted(directory().glob("*.json"))
    except OSError:
        return []
    return [record for path in paths if (record := _read(path))]


def release(prefix: str) -> list[Crashes]:
    """Forget the crashes of files whose hash begins so; what was forgotten."""
    found = [record for record in records() if record.sha256.startswith(prefix)]
    for record in found:
        (directory() / f"{record.sha256}.json").unlink(missing_ok=True)
    return found


def _sha256(path: Path) -> str:
    """Hashing takes seconds: done once for a file that is as it was."""
    now = path.stat()
    return _hashed(path, now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _hashed(path: Path, *_: int) -> str:
    return artifact.sha256_file(path)


def _read(path: Path) -> Crashes | None:
    try:
        return from_json(Crashes, path.read_bytes(), str(path))
    except (OSError, BadInputError):  # a damaged record counts as none
        return None

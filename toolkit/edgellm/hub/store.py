"""Where downloads are kept: `hub` in the cache directory, a folder for each repository.

    org--name/complete/<commit>/          a whole model, every file checked; it appears in one step
    org--name/complete/<commit>+a.gguf/   one GGUF
    org--name/partial/<commit>/           being downloaded; a later run goes on from here
    org--name/plans/<commit>/             small files, and weights of the right length that hold only their headers
    org--name/refs/<revision>             the commit that a branch or tag meant last

Nothing here uses the network.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from edgellm import resources, staging
from edgellm.errors import BackendUnavailable, EdgeLLMError, MissingInputError, OutputError, ResourceError
from edgellm.formats.records import from_json, read_bounded, to_json
from edgellm.hub.listing import Download
from edgellm.hub.names import INSTALL_HINT, ModelId, is_commit

RECORD_NAME = ".edgellm-download.json"
LOCK_NAME = ".lock"
MAX_RECORD_BYTES = 64 * 1024**2
COMPLETE, PARTIAL, PLANS, REFS = "complete", "partial", "plans", "refs"


class Kept(NamedTuple):
    """One download in the store. `n_bytes` is what it takes on the disk now."""

    model: ModelId
    revision: str
    commit: str
    complete: bool
    n_bytes: int
    created_at: str
    path: Path


def root() -> Path:
    """The store's directory; it need not exist."""
    return resources.cache_directory() / "hub"


def home(model: ModelId) -> Path:
    """The folder of a repository."""
    return root() / model.repo.replace("/", "--")


def key(commit: str, file: str | None) -> str:
    """The folder name of a download."""
    return commit + ("+" + file.replace("/", "+") if file else "")


def read_download(folder: Path) -> Download:
    """The record of a downloaded folder.

    Raises:
        MissingInputError: it has none.  BadInputError: malformed.
    """
    path = folder / RECORD_NAME
    return from_json(Download, read_bounded(path, MAX_RECORD_BYTES), str(path))


def write_download(folder: Path, record: Download) -> None:
    """Write or replace the record of a folder."""
    with staging.staged_file(folder / RECORD_NAME) as path:
        path.write_bytes(to_json(record))


def write_ref(model: ModelId, commit: str) -> None:
    """Remember what a revision means, for when there is no network."""
    if is_commit(model.revision):
        return
    path = home(model) / REFS / quote(model.revision or "main", safe="")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staging.staged_file(path) as temporary:
            temporary.write_text(commit)
    except OSError as err:
        raise write_error(path, err) from err


def read_ref(model: ModelId) -> str | None:
    """The commit a revision meant when it was last asked for."""
    if is_commit(model.revision):
        return model.revision
    with contextlib.suppress(EdgeLLMError, UnicodeDecodeError):
        path = home(model) / REFS / quote(model.revision or "main", safe="")
        commit = read_bounded(path, 64).decode("ascii").strip()
        return commit if is_commit(commit) else None
    return None


def find_complete(model: ModelId, commit: str) -> Path | None:
    """A whole download of that commit: the safetensors model, or the one GGUF that was named or is alone."""
    folder = home(model) / COMPLETE
    if model.file is not None:
        path = folder / key(commit, model.file)
        return path if (path / RECORD_NAME).is_file() else None
    if (folder / commit / RECORD_NAME).is_file():
        return folder / commit
    singles = sorted(folder.glob(f"{commit}+*"))
    return singles[0] if len(singles) == 1 and (singles[0] / RECORD_NAME).is_file() else None


@contextlib.contextmanager
def locked(model: ModelId, *, wait: bool = True) -> Iterator[Path]:
    """The folder of a repository, made if needed, held by one process at a time.

    Raises:
        OutputError: it cannot be made.  ResourceError: another process holds it, and `wait` is false.
    """
    try:
        from filelock import FileLock, Timeout
    except ImportError as err:
        raise BackendUnavailable("downloads need the Python package filelock", hint=INSTALL_HINT) from err
    folder = home(model)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK_NAME, timeout=-1 if wait else 0):
            yield folder
    except Timeout as err:
        raise ResourceError(
            f"{model.repo}: being downloaded by another process", hint="try again later"
        ) from err
    except OSError as err:
        raise write_error(folder, err) from err


def write_error(path: Path, err: OSError) -> OutputError:
    """An OSError from the store as ours."""
    return staging.write_error(path, err, in_cache=True)


def kept() -> list[Kept]:
    """All downloads, whole and partial, by name and date."""
    found = []
    for state in (COMPLETE, PARTIAL):
        for path in root().glob(f"*--*/{state}/*/{RECORD_NAME}"):
            folder = path.parent
            with contextlib.suppress(EdgeLLMError):  # a record of another version, or one being removed
                record = read_download(folder)
                model = ModelId(record.repo, record.file, record.revision)
                found.append(
                    Kept(
                        model,
                        record.revision,
                        record.commit,
                        state == COMPLETE,
                        size_of(folder),
                        record.created_at,
                        folder,
                    )
                )
    return sorted(found, key=lambda each: (str(each.model), each.created_at))


def size_of(folder: Path) -> int:
    """Bytes that the files in a folder take on the disk."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            total += (
                min(status.st_size, status.st_blocks * 512)
                if hasattr(status, "st_blocks")
                else status.st_size
            )
    return total


def matching(model: ModelId) -> list[Kept]:
    """Downloads that a name means: of the repository, its file if one is named, its revision or (start of a) commit."""
    wanted = model.revision
    return [
        each
        for each in kept()
        if each.model.repo == model.repo
        and (model.file is None or each.model.file == model.file)
        and (
            wanted is None or each.revision == wanted or (len(wanted) >= 7 and each.commit.startswith(wanted))
        )
    ]


def remove(model: ModelId) -> list[Kept]:
    """Remove what `matching` finds, and plans of the repository; returns what was removed.

    Raises:
        MissingInputError: nothing matches.  OutputError: it cannot be removed.
        ResourceError: it is being downloaded.
    """
    found = matching(model)
    if not found:
        raise MissingInputError(f"no download of {str(model)!r}", hint="list them: edgellm ls")
    with locked(model, wait=False) as folder:
        for each in found:
            shutil.rmtree(each.path)
        shutil.rmtree(folder / PLANS, ignore_errors=True)
        if not any(
            (folder / state).is_dir() and any((folder / state).iterdir()) for state in (COMPLETE, PARTIAL)
        ):
            shutil.rmtree(folder, ignore_errors=True)
    return found

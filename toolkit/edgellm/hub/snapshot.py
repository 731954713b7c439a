"""A model of the hub as a folder on the disk: first a plan with headers only, then the whole, checked."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from edgellm import artifact, staging
from edgellm.errors import BadInputError, MissingInputError, OutputError
from edgellm.formats import gguf
from edgellm.formats.paths import safe_join
from edgellm.formats.records import replace
from edgellm.formats.safetensors import MAX_HEADER_BYTES
from edgellm.hub import listing as listings
from edgellm.hub import store
from edgellm.hub.client import HubClient, is_offline
from edgellm.hub.listing import Download, HubFile, Listing
from edgellm.hub.names import ModelId, is_commit
from edgellm.units import KIB, MIB, format_bytes

FIRST_BYTES = 128 * KIB  # of a file of weights; the header of most shards is smaller
MAX_GGUF_HEADER_BYTES = 256 * MIB
Progress = Callable[[str, int, int], None]


class Snapshot(NamedTuple):
    """A model on the disk.

    Attributes:
        path: a Hugging Face directory, or a GGUF file.
        complete: False where the weights are holes behind a true header: good for planning, for nothing else.
    """

    path: Path
    name: str
    commit: str
    complete: bool


def plan(model: ModelId, *, client: HubClient | None = None) -> Snapshot:
    """The model without its weights: small files, and for each file of weights its header; or the whole, if kept.

    Raises:
        MissingInputError: not on the hub; or offline and not kept.  UnsafeInputError: only pickles, or unsafe names.
        BadInputError: malformed, or not what its hash says.  SpecError: several GGUFs.
        NetworkError, NetworkInterrupted: the hub refuses or does not answer.  OutputError: the disk.
    """
    whole, found, client = _locate(model, client)
    if whole is not None:
        return whole
    with store.locked(model) as home:
        return _planned(home, model, found, client)


def pull(model: ModelId, *, progress: Progress | None = None, client: HubClient | None = None) -> Snapshot:
    """The whole model, every file checked; what is kept already is not fetched again. Errors as in `plan`."""
    whole, found, client = _locate(model, client)
    if whole is not None:
        return whole
    file = listings.choose_file(found, model)
    with store.locked(model) as home:
        partial = home / store.PARTIAL / store.key(found.commit, file)
        partial.mkdir(parents=True, exist_ok=True)
        record = _record(model, found, file, [])
        store.write_download(partial, record)
        if file is not None:
            files = [found.file(file, listings.MAX_WEIGHTS_BYTES)]
        else:
            small = listings.small_files(found)
            for each in small:
                _fetch(client, record, each, partial, lambda _: None)
            files = [*small, *listings.shards(found, partial)]
        return _fill(client, partial, _record(model, found, file, files), progress)


def finish(planned: Path, *, progress: Progress | None = None, client: HubClient | None = None) -> Snapshot:
    """The whole model of the plan at that path, at the same commit; errors as in `plan`."""
    folder = next(
        (place for place in (planned, *planned.parents) if (place / store.RECORD_NAME).is_file()), None
    )
    if folder is None:
        raise MissingInputError(f"{planned}: the plan was removed meanwhile", hint="run it again")
    record = store.read_download(folder)
    model = ModelId(record.repo, record.file, record.revision)
    _refuse_offline(model)
    with store.locked(model) as home:
        done = home / store.COMPLETE / folder.name
        if (done / store.RECORD_NAME).is_file():
            return _snapshot(done, complete=True)
        partial = home / store.PARTIAL / folder.name
        partial.mkdir(parents=True, exist_ok=True)
        return _fill(client or HubClient(), partial, record, progress)


def _locate(model: ModelId, client: HubClient | None) -> tuple[Snapshot | None, Listing, HubClient]:
    """What is kept of the commit that the revision means, else the hub's listing of it."""
    nothing = Listing(model.repo, "", {})
    known = store.read_ref(model) if is_offline() or is_commit(model.revision) else None
    kept = store.find_complete(model, known) if known else None
    if kept:
        return _snapshot(kept, complete=True), nothing, None  # type: ignore[return-value]
    _refuse_offline(model)
    client = client or HubClient()
    found = listings.parse_listing(client.read_listing(model, listings.MAX_LISTING_BYTES), model)
    kept = store.find_complete(model, found.commit)
    if kept is None:
        listings.choose_file(found, model)  # refuses before anything is written
    store.write_ref(model, found.commit)
    return (_snapshot(kept, complete=True) if kept else None), found, client


def _planned(home: Path, model: ModelId, found: Listing, client: HubClient) -> Snapshot:
    file = listings.choose_file(found, model)
    final = home / store.PLANS / store.key(found.commit, file)
    if not (final / store.RECORD_NAME).is_file():
        shutil.rmtree(final, ignore_errors=True)
        with staging.staged_directory(final) as folder:
            record = _record(model, found, file, [])
            small = [] if file else listings.small_files(found)
            for each in small:
                _fetch(client, record, each, folder, lambda _: None)
            weights = (
                [found.file(file, listings.MAX_WEIGHTS_BYTES)] if file else listings.shards(found, folder)
            )
            for each in weights:
                _lay_header(client, record, each, folder)
            store.write_download(folder, _record(model, found, file, [*small, *weights]))
    return _snapshot(final, complete=False)


def _lay_header(client: HubClient, record: Download, file: HubFile, folder: Path) -> None:
    """A file of the right length with its true header, and holes for the rest."""
    model, path = ModelId(record.repo), safe_join(folder, file.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    head = client.read_start(model, record.commit, file, 0, FIRST_BYTES)
    if path.suffix == ".safetensors":
        needed = 8 + int.from_bytes(head[:8], "little")
        if len(head) < needed <= min(8 + MAX_HEADER_BYTES, file.n_bytes):
            head += client.read_start(model, record.commit, file, len(head), needed)
        _write_sparse(path, head[:needed], file.n_bytes)
        return
    while True:
        _write_sparse(path, head, file.n_bytes)
        if len(head) >= min(file.n_bytes, MAX_GGUF_HEADER_BYTES) or _header_ends_within(path, len(head)):
            return
        head += client.read_start(model, record.commit, file, len(head), 4 * len(head))


def _header_ends_within(path: Path, n_bytes: int) -> bool:
    """Whether a GGUF's header lies in the first bytes: then all of it was read from them, none from the holes."""
    try:
        tensors = gguf.read_gguf(path).tensors.values()
    except BadInputError:
        return False
    return bool(tensors) and min(tensor.offset for tensor in tensors) <= n_bytes


def _write_sparse(path: Path, head: bytes, n_bytes: int) -> None:
    with path.open("wb") as file:
        file.write(head)
        file.truncate(n_bytes)


def _fill(client: HubClient, partial: Path, record: Download, progress: Progress | None) -> Snapshot:
    """Fetch and check every file of the record, then give the folder its final name."""
    record = replace(record, created_at=artifact.now_utc())
    store.write_download(partial, record)
    total, done = sum(file.n_bytes for file in record.files), 0
    missing = total - sum(_present(safe_join(partial, file.name)) for file in record.files)
    free = shutil.disk_usage(partial).free
    if free < missing:
        raise OutputError(
            f"{partial}: {format_bytes(missing)} needed, {format_bytes(free)} free",
            hint="free some space (edgellm ls, edgellm rm), or set EDGELLM_CACHE to a place on another disk",
        )

    def advance(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        if progress:
            progress("download", done, total)

    for file in record.files:
        _fetch(client, record, file, partial, advance)
    final = partial.parent.parent / store.COMPLETE / partial.name
    final.parent.mkdir(exist_ok=True)
    if final.exists():  # a folder without a record: nothing that this version has made
        shutil.rmtree(final)
    partial.rename(final)
    return _snapshot(final, complete=True)


def _fetch(
    client: HubClient, record: Download, file: HubFile, folder: Path, advance: Callable[[int], None]
) -> None:
    """One file, under its name only when its hash is right; a part of it stays for the next run."""
    path = safe_join(folder, file.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() or _reuse(record, file, path):
        advance(file.n_bytes)
        return
    part = path.parent / f".{file.digest}.part"
    if _present(part) > file.n_bytes:
        part.unlink()
    try:
        with part.open("ab") as target:
            advance(target.tell())
            client.fetch(ModelId(record.repo, None, record.revision), record.commit, file, target, advance)
            target.flush()
            os.fsync(target.fileno())
    except OSError as err:
        if err.errno in {errno.ENOSPC, errno.EDQUOT}:
            part.unlink(missing_ok=True)
        raise store.write_error(part, err) from err
    seen = digest_of(part, file)
    if seen != file.digest:
        part.unlink()
        raise BadInputError(
            f"{record.repo}: {file.name}: its hash is {seen}, the hub says {file.digest}; the file was removed",
            hint="run it again; if that stays, the repository or a proxy is at fault",
        )
    part.rename(path)


def _reuse(record: Download, file: HubFile, path: Path) -> bool:
    """Take a file of equal hash that is on this machine: from another revision, a plan, or Hugging Face's own cache."""
    candidates = []
    is_weights = file.name.endswith((".safetensors", ".gguf"))  # which are holes in a plan
    for state in (store.COMPLETE,) if is_weights else (store.COMPLETE, store.PLANS):
        folders = store.home(ModelId(record.repo)) / state
        candidates += [safe_join(folder, file.name) for folder in folders.glob("*/")]
    candidates += _in_hugging_face_cache(record, file)
    for candidate in candidates:
        if (
            _present(candidate) != file.n_bytes
            or not candidate.is_file()
            or digest_of(candidate, file) != file.digest
        ):
            continue
        try:
            os.link(candidate.resolve(), path)
        except OSError:
            part = path.parent / f".{file.digest}.part"
            shutil.copyfile(candidate, part)
            part.rename(path)
        return True
    return False


def _in_hugging_face_cache(record: Download, file: HubFile) -> list[Path]:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(record.repo, file.name, revision=record.commit)
    return [Path(found)] if isinstance(found, str) else []


def digest_of(path: Path, file: HubFile) -> str:
    """The file's hash of the kind that is known of it: sha256, or git's of a blob."""
    if file.sha256:
        return artifact.sha256_file(path)
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as content:
        while block := content.read(MIB):
            digest.update(block)
    return digest.hexdigest()


def _present(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _record(model: ModelId, found: Listing, file: str | None, files: list[HubFile]) -> Download:
    return Download(
        schema=listings.RECORD_SCHEMA,
        repo=model.repo,
        file=file,
        revision=model.revision or "main",
        commit=found.commit,
        files=files,
        created_at=artifact.now_utc(),
    )


def _snapshot(folder: Path, *, complete: bool) -> Snapshot:
    record = store.read_download(folder)
    path = safe_join(folder, record.file) if record.file else folder
    name = ModelId(record.repo, record.file).name
    return Snapshot(path, name, record.commit, complete)


def _refuse_offline(model: ModelId) -> None:
    if is_offline():
        raise MissingInputError(
            f"{model}: not among the downloads, and HF_HUB_OFFLINE forbids to fetch it",
            hint="unset HF_HUB_OFFLINE, or fetch it where there is a network: edgellm pull",
        )

"""What the hub says of a repository at one commit, and which of its files a conversion needs.

Names that are not needed are never used. Those that are become paths by `safe_join`, and are fetched only with a size
and a hash to check them by.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from edgellm.checkpoint import PICKLES
from edgellm.errors import (
    BadInputError,
    MissingInputError,
    NetworkError,
    SpecError,
    UnsafeInputError,
    UnsupportedError,
)
from edgellm.formats import safetensors
from edgellm.formats.paths import safe_join
from edgellm.formats.plain_json import parse_json
from edgellm.formats.records import Record
from edgellm.hub.names import ODD_ANSWER_HINT, ModelId, is_commit, parse_id
from edgellm.units import GIB, MIB

RECORD_SCHEMA = "edgellm.download/1"
MAX_LISTING_BYTES = 64 * MIB
MAX_FILES = 200_000
MAX_SMALL_BYTES = 128 * MIB
MAX_WEIGHTS_BYTES = 1024 * GIB
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SMALL_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model", "vocab.json",
    "merges.txt", "vocab.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "README.md",
    "modules.json", "1_Pooling/config.json",
)  # fmt: skip
_OTHER = "the repository is not as it should be: choose another, or another revision"
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_SPLIT_GGUF = re.compile(r"-\d{5}-of-\d{5}\.gguf\Z", re.IGNORECASE)


class HubFile(Record):
    """A file of a repository: its size, and sha256 (large files) or git's hash of the blob (small ones)."""

    name: str
    n_bytes: int
    sha256: str | None
    git_sha1: str | None

    @property
    def digest(self) -> str:
        """The hash to check it by."""
        return self.sha256 or self.git_sha1 or ""


class Download(Record):
    """The record in a downloaded folder.

    Attributes:
        file: the one GGUF that was asked for; None for a whole model.
        revision: as asked for; `commit` is what it meant then.
    """

    schema: str
    repo: str
    file: str | None
    revision: str
    commit: str
    files: list[HubFile]
    created_at: str

    def __post_init__(self) -> None:
        if self.schema != RECORD_SCHEMA:
            raise ValueError(f"schema is {self.schema!r}, expected {RECORD_SCHEMA!r}")
        try:
            parse_id(str(ModelId(self.repo, self.file, self.revision)))
        except SpecError as err:
            raise ValueError(err.message) from err
        if not is_commit(self.commit):
            raise ValueError(f"commit is {self.commit!r:.60}, expected 40 hexadecimal digits")


class Listing(NamedTuple):
    """A repository at a commit: its siblings as the hub gave them, by name, not checked until they are used."""

    repo: str
    commit: str
    siblings: dict[str, Any]

    def file(self, name: str, max_bytes: int) -> HubFile:
        """One file that will be fetched.

        Raises:
            UnsafeInputError: the name leaves the folder.  BadInputError: too large.
            NetworkError: the hub does not say its size and hash.
        """
        where = f"{self.repo}: {name[:200]!a}"
        safe_join(Path("hub"), name)
        sibling = self.siblings[name]
        lfs = sibling.get("lfs")
        n_bytes, sha256 = (
            (lfs.get("size"), lfs.get("sha256")) if isinstance(lfs, dict) else (sibling.get("size"), None)
        )
        git_sha1 = sibling.get("blobId")
        git_sha1 = git_sha1 if isinstance(git_sha1, str) and is_commit(git_sha1) else None
        bad_sha256 = isinstance(lfs, dict) and not (isinstance(sha256, str) and _SHA256.match(sha256))
        if type(n_bytes) is not int or n_bytes < 0 or bad_sha256 or not (sha256 or git_sha1):
            raise NetworkError(f"{where}: the hub does not say its size and hash", hint="check HF_ENDPOINT")
        if n_bytes > max_bytes:
            raise BadInputError(
                f"{where}: {n_bytes} bytes, more than the {max_bytes} allowed for this kind of file",
                hint=_OTHER,
            )
        return HubFile(name=name, n_bytes=n_bytes, sha256=sha256, git_sha1=None if sha256 else git_sha1)


def parse_listing(data: bytes, model: ModelId) -> Listing:
    """The hub's JSON as a listing.

    Raises:
        NetworkError: not the description of a model at a commit.  UnsafeInputError: a file is listed twice.
    """
    try:
        fields = parse_json(data, f"{model.repo}: the hub's listing")
    except BadInputError as err:
        raise NetworkError(err.message, hint=ODD_ANSWER_HINT) from err
    commit, siblings = fields.get("sha"), fields.get("siblings")
    if not isinstance(commit, str) or not is_commit(commit) or not isinstance(siblings, list):
        raise NetworkError(
            f"{model.repo}: the hub's listing has no commit or no files", hint="check HF_ENDPOINT"
        )
    if is_commit(model.revision) and commit != model.revision:
        raise NetworkError(
            f"{model.repo}: the hub answers for commit {commit}, asked for {model.revision}",
            hint=ODD_ANSWER_HINT,
        )
    if len(siblings) > MAX_FILES:
        raise BadInputError(f"{model.repo}: {len(siblings)} files, more than {MAX_FILES}", hint=_OTHER)
    named: dict[str, Any] = {}
    for sibling in siblings:
        name = sibling.get("rfilename") if isinstance(sibling, dict) else None
        if not isinstance(name, str):
            raise NetworkError(
                f"{model.repo}: the hub's listing has a file without a name", hint=ODD_ANSWER_HINT
            )
        if name in named:
            raise UnsafeInputError(f"{model.repo}: {name[:200]!a} is listed twice", hint=_OTHER)
        named[name] = sibling
    return Listing(model.repo, commit, named)


def choose_file(listing: Listing, model: ModelId) -> str | None:
    """The one GGUF to fetch, or None for a model of safetensors.

    Raises:
        SpecError: several GGUFs and none was named.  UnsafeInputError: only pickles.
        MissingInputError: no weights, or no such file.  UnsupportedError: a part of a split GGUF.
    """
    ggufs = sorted(name for name in listing.siblings if name.lower().endswith(".gguf"))
    if model.file is not None:
        if model.file not in listing.siblings:
            raise MissingInputError(f"{model.repo}: no file {model.file!r}", hint=_list(model, ggufs))
        return _unsplit(model, model.file)
    if INDEX in listing.siblings or SINGLE in listing.siblings:
        if "config.json" not in listing.siblings:
            raise MissingInputError(
                f"{model.repo}: no config.json, so not a model that can be converted", hint=_OTHER
            )
        return None
    models = [name for name in ggufs if not Path(name).name.lower().startswith("mmproj")]
    if len(models) == 1:
        return _unsplit(model, models[0])
    if models:
        raise SpecError(f"{model.repo}: has {len(models)} GGUF files: name one", hint=_list(model, models))
    pickles = sorted(name for name in listing.siblings if any(fnmatch(name, pattern) for pattern in PICKLES))
    if pickles:
        shown = ", ".join(ascii(name)[1:-1][:100] for name in pickles[:3])
        raise UnsafeInputError(
            f"{model.repo}: its only weights are pickles ({shown}), which can run code when read",
            hint="look for a revision with safetensors (often @refs/pr/1), or convert it with its own tools first",
        )
    raise MissingInputError(f"{model.repo}: no {SINGLE}, no {INDEX} and no .gguf", hint=_OTHER)


def small_files(listing: Listing) -> list[HubFile]:
    """Everything but the weights that a conversion of safetensors can use."""
    names = SMALL_FILES if SINGLE in listing.siblings else [*SMALL_FILES, INDEX]
    return [listing.file(name, MAX_SMALL_BYTES) for name in names if name in listing.siblings]


def shards(listing: Listing, folder: Path) -> list[HubFile]:
    """The weights, as the index in `folder` names them.

    Raises:
        MissingInputError: a shard is not in the repository.  UnsafeInputError: a name leaves the folder, or two names
            differ only in case.
    """
    names: Sequence[str] = [SINGLE]
    if SINGLE not in listing.siblings:
        names = sorted(set(safetensors.read_index(folder / INDEX).values()))
    for name in names:
        if not name.endswith(".safetensors"):
            raise UnsafeInputError(
                f"{listing.repo}: {INDEX} names {name[:200]!a}, which is not a .safetensors file", hint=_OTHER
            )
        if name not in listing.siblings:
            raise MissingInputError(
                f"{listing.repo}: {name[:200]!a}: named in {INDEX} but not there", hint=_OTHER
            )
    if len({name.casefold() for name in names}) != len(names):
        raise UnsafeInputError(
            f"{listing.repo}: two shards of {INDEX} have names that differ only in case", hint=_OTHER
        )
    return [listing.file(name, MAX_WEIGHTS_BYTES) for name in names]


def _unsplit(model: ModelId, name: str) -> str:
    if _SPLIT_GGUF.search(name):
        raise UnsupportedError(
            f"{model.repo}: {name[:200]!a} is one part of a split GGUF, which is not supported",
            hint="take a file that is not split, or the safetensors model it was made from",
        )
    return name


def _list(model: ModelId, names: list[str]) -> str:
    shown = ", ".join(f"{model.repo}/{ascii(name)[1:-1][:150]}" for name in names[:12])
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"there are {shown}{more}" if names else "it has no .gguf"

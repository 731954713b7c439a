"""Names of models on the hub: `org/name`, `org/name@revision`, `org/name/file.gguf`, with or without `hf://`.

The rules are the hub's own for repositories and git's for revisions, narrowed to plain ASCII.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from edgellm.errors import SpecError

PREFIX = "hf://"
ODD_ANSWER_HINT = "check HF_ENDPOINT, or whether a proxy answers instead"
INSTALL_HINT = "pip install 'edgellm[hub]'"
MAX_REPO_CHARS = 96
MAX_REVISION_CHARS = 128
MAX_FILE_CHARS = 150

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_REPO = re.compile(rf"{_PART}/{_PART}\Z")
_REVISION = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._/-]*[A-Za-z0-9_])?\Z")
_FILE = re.compile(
    r"(?:[A-Za-z0-9_+=,()\[\]-][A-Za-z0-9._+=,()\[\]-]*/)*[A-Za-z0-9_+=,()\[\]-][A-Za-z0-9._+=,()\[\]-]*\Z"
)
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_LOCAL_SUFFIXES = (".gguf", ".safetensors", ".json", ".bin", ".onnx")


class ModelId(NamedTuple):
    """A model on the hub: repository, one GGUF file of it or None, and revision or None for the main branch."""

    repo: str
    file: str | None = None
    revision: str | None = None

    @property
    def name(self) -> str:
        """What the model is called: the file's stem, else the second part of the repository."""
        return Path(self.file).stem if self.file else self.repo.split("/")[1]

    def __str__(self) -> str:
        path = self.repo + (f"/{self.file}" if self.file else "")
        return path + (f"@{self.revision}" if self.revision else "")


def parse_id(text: str) -> ModelId:
    """A hub id as its parts.

    Raises:
        SpecError: not of that form.
    """
    path, at, revision = text.removeprefix(PREFIX).partition("@")
    parts = path.split("/", 2)
    repo = "/".join(parts[:2])
    if len(repo) > MAX_REPO_CHARS or not _REPO.match(repo) or "--" in repo or ".." in repo:
        raise _bad(
            text,
            f"{_short(repo)} is not a repository: two names of letters, digits, '.', '_', '-' with one '/'",
        )
    if repo.endswith(".git"):
        raise _bad(text, f"{_short(repo)} ends with .git")
    if at and (
        len(revision) > MAX_REVISION_CHARS
        or not _REVISION.match(revision)
        or ".." in revision
        or "//" in revision
    ):
        raise _bad(text, f"{_short(revision)} is not a revision: a branch, a tag or a commit")
    file = parts[2] if len(parts) == 3 else None
    if file is not None and (len(file) > MAX_FILE_CHARS or not _FILE.match(file) or ".." in file):
        raise _bad(text, f"{_short(file)} is not the name of a file")
    if file is not None and not file.lower().endswith(".gguf"):
        raise _bad(text, f"{_short(file)} is not a .gguf; of a safetensors model, name the repository alone")
    return ModelId(repo, file, revision or None)


def looks_like_id(text: str) -> bool:
    """Whether a MODEL argument that is no path here means a model on the hub.

    Only `org/name`, and `org/folder/file.gguf` where there is no folder `org` here: a mistyped path of one's own must
    not become a request.
    """
    if text.startswith(PREFIX):
        return True
    path = text.partition("@")[0]
    parts = path.split("/", 2)
    if len(parts) < 2 or not _REPO.match("/".join(parts[:2])) or "--" in path:
        return False
    if len(parts) == 2:
        return not path.lower().endswith(_LOCAL_SUFFIXES)
    return path.lower().endswith(".gguf") and not Path(parts[0]).exists()


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a full commit hash, which never moves."""
    return revision is not None and bool(_COMMIT.match(revision))


def _bad(text: str, problem: str) -> SpecError:
    return SpecError(
        f"{_short(text)} is not a hub id: {problem}",
        hint="for example org/name, org/name@v1.0 or org/name/model.gguf",
    )


def _short(text: str) -> str:
    return ascii(text) if len(text) <= 80 else f"{text[:77]!a}... ({len(text)} characters)"

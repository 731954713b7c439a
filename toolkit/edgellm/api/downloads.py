"""Models of the hub that are kept on this machine: fetch, list, remove."""

from __future__ import annotations

from collections.abc import Callable

from edgellm import hub
from edgellm.errors import SpecError
from edgellm.hub import Kept, Snapshot


def pull(
    model: str, *, revision: str | None = None, progress: Callable[[str, int, int], None] | None = None
) -> Snapshot:
    """Download a model of the hub and check every file; what is kept already is not fetched again.

    Args:
        model: org/name, org/name@revision or org/name/file.gguf.
        revision: a branch, a tag or a commit; by default the main branch.
        progress: called with ("download", done, total), in bytes.

    Raises:
        SpecError: not a hub id, or a repository of several GGUFs.  UnsafeInputError: only pickles.
        MissingInputError, NetworkError, BadInputError, OutputError: it did not arrive whole.
    """
    return hub.pull(_parse(model, revision), progress=progress)


def downloads() -> list[Kept]:
    """Whole and partial downloads, by name and date."""
    return hub.kept()


def find_downloads(name: str) -> list[Kept]:
    """The downloads that a name means: a repository, a file of it, a revision or the first digits of a commit."""
    return hub.matching(hub.parse_id(name))


def remove_downloads(name: str) -> list[Kept]:
    """Remove what `find_downloads` finds, and return it.

    Raises:
        SpecError: not a hub id.  MissingInputError: nothing of that name.  OutputError: it cannot be removed.
    """
    return hub.remove(hub.parse_id(name))


def _parse(model: str, revision: str | None) -> hub.ModelId:
    parsed = hub.parse_id(model)
    if revision is None:
        return parsed
    if parsed.revision is not None and parsed.revision != revision:
        raise SpecError(
            f"{model!r} names revision {parsed.revision!r}, --revision {revision!r}: give one",
            hint="leave --revision out",
        )
    return hub.parse_id(f"{parsed._replace(revision=None)}@{revision}")

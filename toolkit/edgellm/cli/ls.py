"""`edgellm ls`"""

from __future__ import annotations

import click

from edgellm.cli.common import json_option, print_json, show


@click.command("ls")
@json_option
def command(as_json: bool) -> None:
    """List the models downloaded from the hub.

    They lie in the cache directory, which EDGELLM_CACHE changes. A partial one is completed by `edgellm pull`.
    """
    from edgellm.api import downloads
    from edgellm.hub import Kept
    from edgellm.units import format_bytes

    rows = downloads.downloads()
    if as_json:
        print_json([as_plain(row) for row in rows])
        return
    if not rows:
        show("no downloads: edgellm pull org/name fetches one", err=True)
        return

    def name(row: Kept) -> str:
        return str(row.model._replace(revision=None))

    width = max(len(name(row)) for row in rows)
    for row in rows:
        state = "" if row.complete else "  partial"
        revision = "" if row.revision == row.commit else f"  {row.revision}"
        show(
            f"{name(row):<{width}}  {row.commit[:12]}  {format_bytes(row.n_bytes):>9}  {row.created_at}{revision}{state}"
        )


def as_plain(row: object) -> dict[str, object]:
    """One download as JSON."""
    from edgellm.hub import Kept

    assert isinstance(row, Kept)
    return {
        "name": str(row.model._replace(revision=None)),
        "revision": row.revision,
        "commit": row.commit,
        "complete": row.complete,
        "n_bytes": row.n_bytes,
        "created_at": row.created_at,
        "path": str(row.path),
    }

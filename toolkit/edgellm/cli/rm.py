"""`edgellm rm`"""

from __future__ import annotations

import sys

import click

from edgellm.cli.common import json_option, print_json, show


@click.command("rm")
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
def command(name: str, yes: bool, as_json: bool) -> None:
    """Remove downloads from the hub.

    NAME is org/name for all that is kept of a repository, org/name/file.gguf for one file, or org/name@revision, where
    the first digits of a commit do. Only the download store is touched: artifacts are plain directories of yours.
    """
    from edgellm.api import downloads
    from edgellm.cli.ls import as_plain
    from edgellm.errors import MissingInputError, SpecError
    from edgellm.units import format_bytes

    found = downloads.find_downloads(name)
    if not found:
        raise MissingInputError(f"no download of {name!r}", hint="list them: edgellm ls")
    size = format_bytes(sum(row.n_bytes for row in found))
    if not yes:
        if as_json or not sys.stdin.isatty():
            raise SpecError(f"{name}: {len(found)} downloads of {size} would be removed", hint="add --yes")
        for row in found:
            show(f"{row.model} ({row.commit[:12]})", err=True)
        click.confirm(f"Remove {size}?", abort=True, err=True)
    gone = downloads.remove_downloads(name)
    if as_json:
        print_json([as_plain(row) for row in gone])
        return
    show(f"removed {len(gone)} downloads of {name}, {size}")

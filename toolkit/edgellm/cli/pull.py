"""`edgellm pull`"""

from __future__ import annotations

import click

from edgellm.cli.common import json_option, print_json, progress_bars, show


@click.command("pull")
@click.argument("model")
@click.option("--revision", help="A branch, a tag or a commit.  [default: main]")
@json_option
def command(model: str, revision: str | None, as_json: bool) -> None:
    """Download MODEL from the hub.

    MODEL is org/name, org/name@revision, or org/name/file.gguf. Only the files that a conversion needs are fetched, and
    every one is checked by its hash. An interrupted download goes on where it stopped. Prints the folder or the file.
    """
    from edgellm.api import downloads

    with progress_bars() as progress:
        pulled = downloads.pull(model, revision=revision, progress=progress)
    if as_json:
        print_json({"name": pulled.name, "commit": pulled.commit, "path": str(pulled.path)})
        return
    show(str(pulled.path))

"""Hidden commands that edgellm starts for itself: one JSON object in, one out."""

from __future__ import annotations

import json
import sys

import click

from edgellm.errors import BadInputError

MAX_SPEC_BYTES = 16 * 1024**2


def command(name: str) -> click.Command:
    """The hidden command of that name."""

    @click.command(name, hidden=True)
    @click.argument("source", default="-")
    def child(source: str) -> None:
        from edgellm.api.children import CHILDREN

        data = sys.stdin.buffer.read(MAX_SPEC_BYTES + 1)
        try:
            spec = json.loads(data) if len(data) <= MAX_SPEC_BYTES else None
        except (ValueError, RecursionError):
            spec = None
        if not isinstance(spec, dict) or source != "-":
            raise BadInputError(f"{name} expects one JSON object on standard input")
        click.echo(json.dumps(CHILDREN[name](spec)))

    return child

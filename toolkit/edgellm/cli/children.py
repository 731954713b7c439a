"""Hidden commands that edgellm starts for itself: one JSON object in, one out; or an engine that stays."""

from __future__ import annotations

import json
import sys

import click

from edgellm.errors import BadInputError

MAX_SPEC_BYTES = 16 * 1024**2


def command(name: str) -> click.Command:
    """The hidden command of that name."""
    return _engine if name == "_engine" else _child(name)


@click.command("_engine", hidden=True)
def _engine() -> None:
    """Serve an engine on the standard streams, see `edgellm.runtime.wire`."""
    import os

    from edgellm.api.loading import serve_engine

    # What native code prints must not get between the messages.
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve_engine(sys.stdin.buffer, answers)


def _child(name: str) -> click.Command:
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

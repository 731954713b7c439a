"""Writes docs/reference from the code: the command line from its own help, report and manifest schemas from their types.

python scripts/lib/generate_docs.py            write
python scripts/lib/generate_docs.py --check    end with 1 if a page is not what would be written
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from edgellm.artifact import Manifest, Receipt
from edgellm.cli.main import group
from edgellm.cost import Ledger
from edgellm.errors import __doc__ as errors_text
from edgellm.formats.records import json_schema
from edgellm.report import Report

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"
WIDTH = 100


def pages() -> dict[str, str]:
    """File name -> content."""
    schemas = {"report": Report, "manifest": Manifest, "receipt": Receipt, "ledger": Ledger}
    found = {"cli.md": _command_line(), "exit-codes.md": _exit_codes()}
    for name, kind in schemas.items():
        found[f"{name}.schema.json"] = json.dumps(json_schema(kind), indent=2, sort_keys=True) + "\n"
    return found


def _command_line() -> str:
    parts = ["# Command line\n\nThis page is generated from the commands' own help.\n"]
    for path, text in _helps(group, ["edgellm"]):
        parts.append(f"## {' '.join(path)}\n\n```text\n{text.rstrip()}\n```\n")
    return "\n".join(parts)


def _helps(
    command: click.Command, path: list[str], parent: click.Context | None = None
) -> Iterator[tuple[list[str], str]]:
    context = click.Context(
        command, info_name=path[-1], parent=parent, terminal_width=WIDTH, max_content_width=WIDTH
    )
    yield path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child and not child.hidden:
                yield from _helps(child, [*path, name], context)


def _exit_codes() -> str:
    tree = (errors_text or "").split("\n\n")
    opening = "# Errors and exit codes\n\nThis page is generated from `edgellm.errors`."
    return f"{opening}\n\n```text\n{tree[1]}\n```\n\n{tree[2].strip()}\n"


def main() -> None:
    """Write the pages, or compare them with what is there."""
    stale = []
    for name, content in pages().items():
        path = REFERENCE / name
        if "--check" in sys.argv:
            if not path.is_file() or path.read_text() != content:
                stale.append(name)
        else:
            REFERENCE.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    if stale:
        sys.exit(
            f"docs/reference is out of date ({', '.join(stale)}): run .venv/bin/python scripts/lib/generate_docs.py"
        )


main()

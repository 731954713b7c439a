"""`edgellm targets`"""

from __future__ import annotations

import click

from edgellm.cli.common import json_option, print_json


@click.group("targets", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Devices that models can be converted for.

    Without a subcommand, lists them.
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_targets)


@command.command("list")
@json_option
def list_targets(as_json: bool = False) -> None:
    """List all targets, and `host`, this machine."""
    from edgellm import targets
    from edgellm.formats.records import to_builtins
    from edgellm.units import format_bytes

    rows = [targets.load(name) for name in targets.available()]
    if as_json:
        print_json([to_builtins(row) for row in rows])
        return
    for row in rows:
        click.echo(f"{row.id:<14} {row.name:<38} {format_bytes(row.ram_bytes):>9}  {row.defaults.quant}")
    click.echo(f"{'host':<14} this machine, detected: edgellm targets detect")


@command.command("show")
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show one target with the source of every value."""
    from edgellm.api.planning import find_target
    from edgellm.formats.records import to_builtins

    target = find_target(name)
    if as_json:
        print_json(target)
        return
    values = to_builtins(target)
    sources, why = values.pop("sources"), values.pop("why")
    defaults = values.pop("defaults")
    for key, value in values.items():
        shown = (
            ", ".join(map(str, value)) if isinstance(value, list) else "unknown" if value is None else value
        )
        note = f"[{sources[key]}]" if key in sources else why.get(key, "")
        click.echo(f"{key:<22} {shown}   {note}".rstrip())
    click.echo("\ndefaults, and why")
    for key, value in defaults.items():
        click.echo(f"  {key:<20} {value}   {why.get(key, '')}".rstrip())


@command.command("detect")
@json_option
@click.pass_context
def detect(ctx: click.Context, as_json: bool) -> None:
    """Show this machine as a target."""
    ctx.invoke(show, name="host", as_json=as_json)

"""`edgellm profile`"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgellm.cli.common import NewPath, gpu_option, json_option, print_json, show, status_line, threads_option


@click.command("profile")
@click.argument("artifact")
@click.option(
    "--workload",
    "workloads",
    multiple=True,
    metavar="NAME",
    help="What to measure; may be repeated.  [default: all five]",
)
@threads_option
@gpu_option
@click.option(
    "--reps", type=click.IntRange(1, 1000), help="Repetitions, instead of each workload's own number."
)
@click.option("--strict", is_flag=True, help="Refuse to measure on a busy machine instead of warning.")
@click.option(
    "-o", "--output", type=NewPath(path_type=Path), metavar="FILE.json", help="Write the report here."
)
@json_option
def command(
    artifact: str,
    workloads: tuple[str, ...],
    threads: int | None,
    gpu_layers: Any,
    reps: int | None,
    strict: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure tokens per second, memory and energy on this machine.

    Each workload runs in a fresh process. The report keeps every raw sample; what could not be measured is listed as
    missing, with the reason.
    """
    from edgellm import api
    from edgellm.api.profiling import DEFAULT_WORKLOADS, check_report_place, write_report
    from edgellm.profiler.render import render_text

    if output is not None:
        check_report_place(output)
    with status_line() as status:
        report = api.profile(
            artifact,
            workloads=workloads or DEFAULT_WORKLOADS,
            threads=threads,
            gpu_layers=gpu_layers,
            reps=reps,
            strict=strict,
            progress=lambda text: status(f"measuring {text}"),
        )
    if output is not None:
        write_report(report, output)
    if as_json:
        print_json(report)
        return
    show(render_text(report).rstrip("\n"))
    if output is not None:
        click.echo(f"report: {output}", err=True)

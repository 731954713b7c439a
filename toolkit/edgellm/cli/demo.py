"""`edgellm demo`"""

from __future__ import annotations

import time
from pathlib import Path

import click

from edgellm.cli.common import NewPath, json_option, print_json, progress_bars, show, status_line


@click.command("demo")
@click.option(
    "-o",
    "--output",
    type=NewPath(path_type=Path),
    default=Path("edgellm-demo"),
    show_default=True,
    help="Directory to make.",
)
@json_option
def command(output: Path, as_json: bool) -> None:
    """The whole story on this machine, offline, with the embedded model.

    Converts it for this machine and for a Raspberry Pi 5, compares both with the source, asks a question, measures
    speed, memory and energy, and says what a million tokens cost. Takes about a minute.
    """
    from edgellm import cost
    from edgellm.api import demo
    from edgellm.formats.records import to_builtins
    from edgellm.profiler.render import headline
    from edgellm.units import format_bytes, format_seconds

    started = time.monotonic()

    def say(step: str, text: str) -> None:
        if not as_json:
            show(f"{step:<9}{text}")

    demo.prepare(output)
    artifacts = []
    for target in demo.TARGETS:
        with progress_bars() as progress:
            made = demo.convert_and_verify(output, target, progress)
        artifacts.append(made)
        receipt = made.receipt
        assert receipt is not None
        manifest = made.manifest
        say(
            "convert", f"{manifest.model} for {target}: {manifest.quant}, {format_bytes(manifest.file_bytes)}"
        )
        say(
            "verify",
            f"{receipt.verdict}: KL {receipt.kl_mean:.4f} nats/token from the source ({receipt.reference}), "
            f"same top token {receipt.top1_agreement:.1%}",
        )
    answer = demo.ask(artifacts[0])
    say("run", f"{demo.QUESTION}")
    say("", answer.strip())
    with status_line() as status:
        report, path = demo.measure(output, artifacts[0], lambda text: status(f"measuring {text}"))
    for line in headline(report):
        say("profile", line)
    ledger = demo.price(report)
    if as_json:
        found = demo.Demo(
            artifacts=artifacts,
            question=demo.QUESTION,
            answer=answer,
            report=report,
            report_path=str(path),
            ledger=ledger,
        )
        print_json(to_builtins(found))
        return
    for line in cost.headline(ledger):
        say("cost", line)
    say("took", f"{format_seconds(time.monotonic() - started)}; next: edgellm chat {artifacts[0].path}")
    for place in [*(made.path for made in artifacts), str(path)]:
        say("made", place)

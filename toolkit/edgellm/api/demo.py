"""The whole story on one machine: convert, verify, run, profile, cost; offline, with the embedded model."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

from edgellm import cost
from edgellm.api import conversion, loading, profiling, receipts
from edgellm.artifact import Artifact
from edgellm.errors import OutputExistsError
from edgellm.formats.records import Record
from edgellm.report import Report

MODEL = "builtin:smollm2"
TARGETS = ("host", "rpi5")
QUESTION = "What is the capital of France? Answer in one word."
TARIFF = "world-2025q2"
AGAINST = "ministral-3b-latest"
MARKER = ".edgellm-demo"


class Demo(Record):
    """What the demo made and found."""

    artifacts: list[Artifact]
    question: str
    answer: str
    report: Report
    report_path: str
    ledger: cost.Ledger


def prepare(directory: Path) -> None:
    """Make the demo's directory; one that an earlier demo made may be used again.

    Raises:
        OutputExistsError: it holds something else.
    """
    if directory.is_file() or (
        directory.exists() and not (directory / MARKER).exists() and any(directory.iterdir())
    ):
        raise OutputExistsError(
            f"{directory}: exists and was not made by the demo",
            hint="choose another place: edgellm demo --output DIR",
        )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MARKER).touch()


def convert_and_verify(directory: Path, target: str, progress: receipts.Progress) -> Artifact:
    """The embedded model for a target, compared with its source."""
    return conversion.convert(
        MODEL,
        target=target,
        output=directory / f"smollm2-{target}",
        verify="quick",
        force=True,
        progress=progress,
    )


def ask(artifact: Artifact) -> str:
    """The model's greedy answer to the question."""
    with loading.load(artifact.path) as model:
        return model.generate([{"role": "user", "content": QUESTION}], max_tokens=32, temperature=0).text


def measure(directory: Path, artifact: Artifact, status: Callable[[str], None]) -> tuple[Report, Path]:
    """Profile the artifact and keep the report."""
    report = profiling.profile(artifact.path, progress=status)
    path = directory / "report.json"
    profiling.write_report(report, path)
    return report, path


def price(report: Report) -> cost.Ledger:
    """The report as money, at a world-average tariff, beside a small hosted model."""
    return cost.compute(
        report,
        cost.load_tariff(TARIFF),
        cost.load_prices().find(AGAINST),
        today=datetime.datetime.now(datetime.UTC).date(),
    )

"""Report: what a profiler run found, with every raw sample, and what is missing and why.

Format history
    edgellm.report/1   first version

Medians and intervals are computed when a report is shown; only raw samples are stored. A quantity that was
not measured stands under `missing` with its reason: never as zero, NaN or an absent key.
"""

from __future__ import annotations

import math
import statistics
from typing import Literal

from edgellm.artifact import Manifest
from edgellm.formats.records import Record, from_json
from edgellm.workload import Workload

SCHEMA = "edgellm.report/1"

Method = Literal["measured", "derived", "modelled"]


class Reading(Record):
    """One value of a meter at one moment of the monotonic clock."""

    t_ns: int
    value: float


class Measurement(Record):
    """Samples of one quantity.

    Attributes:
        quantity: for example `decode_tok_per_s`; its unit is also in `unit`.
        samples: raw values in the order they were taken, outliers included.
        method: `measured`, `derived` (arithmetic on measured values) or `modelled` (never mixed with those).
        source: what read it, for example `clock` or `/proc/self/smaps_rollup`.
        scope: what it covers, for example `process`, `package`, `wall`.
    """

    quantity: str
    unit: str
    samples: list[float]
    method: Method
    source: str
    scope: str

    def __post_init__(self) -> None:
        if not self.samples:
            raise ValueError(f"{self.quantity} has no samples; what was not measured stands under missing")
        if not all(math.isfinite(sample) for sample in self.samples):
            raise ValueError(f"{self.quantity} has a sample that is not a finite number: {self.samples}")

    @property
    def median(self) -> float:
        """Median of the samples."""
        return statistics.median(self.samples)


class Missing(Record):
    """A quantity that was not measured, and why."""

    quantity: str
    reason: str


class Device(Record):
    """The machine a report comes from; None is unknown."""

    target: str
    cpu: str
    arch: str
    isa: list[str]
    cores_logical: int
    cores_physical: int | None
    ram_bytes: int
    os: str
    kernel: str
    virtual: bool | None = None


class Conditions(Record):
    """What changes the meaning of the numbers beside it; None is unknown.

    Attributes:
        load_1min: load average before the run.
        cpu_busy_fraction: share of all cores that other work used during the half second before the run.
        throttled: the firmware or the counters say the clock was held down during the run.
    """

    started_at: str
    load_1min: float | None
    cpu_busy_fraction: float | None
    ram_available_bytes: int | None
    swap_used_bytes: int | None
    governor: str | None
    frequency_hz: int | None
    temperature_start_c: float | None
    temperature_end_c: float | None
    power_source: Literal["ac", "battery"] | None
    throttled: bool | None


class RuntimeInfo(Record):
    """The engine that ran: what was asked for and what was used."""

    engine: str
    engine_version: str
    binding: str
    backend_asked: str
    backend_actual: str
    build_features: str
    n_threads: int
    kv_type: str
    flash_attention: str
    mmap: bool
    n_batch: int


class Result(Record):
    """One workload and what came of it."""

    workload: Workload
    measurements: list[Measurement]
    missing: list[Missing]

    def find(self, quantity: str) -> Measurement | None:
        """The measurement of that quantity, or None."""
        return next((m for m in self.measurements if m.quantity == quantity), None)


class Report(Record):
    """Everything one `edgellm profile` found."""

    schema: str
    report_id: str
    created_at: str
    tool: dict[str, str]
    device: Device
    conditions: Conditions
    runtime: RuntimeInfo
    model: Manifest
    results: list[Result]
    missing: list[Missing]
    warnings: list[str]
    verdict: Literal["ok", "unstable"]

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(f"schema is {self.schema!r}, expected {SCHEMA!r}")

    def find(self, quantity: str) -> Measurement | None:
        """The first measurement of that quantity in any result, or None."""
        return next((m for result in self.results if (m := result.find(quantity))), None)


def read(data: bytes, where: str) -> Report:
    """Decode a report.

    Raises:
        BadInputError: not a report of a schema this version reads.
    """
    return from_json(Report, data, where)

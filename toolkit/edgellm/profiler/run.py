"""In the parent: children for every workload, their samples gathered into a report."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Literal

from edgellm import artifact
from edgellm.artifact import Manifest
from edgellm.errors import BadInputError, ResourceError
from edgellm.formats.records import from_builtins, replace, to_builtins
from edgellm.machine import ConditionsWatch
from edgellm.profiler.measure import Outcome, Spec
from edgellm.protocols import Launcher
from edgellm.report import SCHEMA, Conditions, Device, Measurement, Missing, Report, Result
from edgellm.workload import Workload

TIMEOUT_S = 1800.0
BUSY_FRACTION = 0.10
SPREAD_FRACTION = 0.10
Progress = Callable[[str], None]


def profile(
    launch: Launcher,
    spec_for: Callable[[Workload], Spec],
    manifest: Manifest,
    device: Device,
    workloads: Sequence[Workload],
    *,
    strict: bool,
    progress: Progress | None = None,
) -> Report:
    """Run every workload in fresh children and make the report.

    Raises:
        ResourceError: with `strict`, the machine is too busy to measure on.  NativeCrash: a child died.
    """
    watch = ConditionsWatch()
    if strict:
        _refuse_if_busy(watch.start)
    results: list[Result] = []
    partly_missing: list[str] = []
    runtime = None
    for workload in workloads:
        outcomes = []
        for invocation in range(_n_children(workload)):
            if progress:
                progress(f"{workload.id} {invocation + 1}/{_n_children(workload)}")
            if workload.cool_down_s:
                time.sleep(workload.cool_down_s)
            found = launch(to_builtins(spec_for(workload)), timeout_s=TIMEOUT_S)
            outcomes.append(from_builtins(Outcome, found, f"child measuring {workload.id}"))
        runtime = outcomes[0].runtime
        results.append(_gather(workload, outcomes))
        partly_missing += _partly_missing(workload, outcomes)
    if runtime is None:
        raise BadInputError("no workload was given")
    conditions = watch.finish()
    unstable = _instability(conditions, results)
    warnings = [*unstable, *_circumstances(conditions, device)]
    verdict: Literal["ok", "unstable"] = "unstable" if unstable else "ok"
    return Report(
        schema=SCHEMA,
        report_id=str(uuid.uuid4()),
        created_at=artifact.now_utc(),
        tool=_tool(),
        device=device,
        conditions=conditions,
        runtime=runtime,
        model=manifest,
        results=results,
        missing=[],
        warnings=warnings + partly_missing,
        verdict=verdict,
    )


def _n_children(workload: Workload) -> int:
    """Loading is measured once per process, so its repetitions are processes."""
    return workload.reps if workload.regime == "load" else workload.invocations


def _gather(workload: Workload, outcomes: list[Outcome]) -> Result:
    """Samples of all children under one name, in the order they were taken."""
    merged: dict[str, Measurement] = {}
    for outcome in outcomes:
        for m in outcome.measurements:
            earlier = merged.get(m.quantity)
            merged[m.quantity] = replace(m, samples=[*earlier.samples, *m.samples]) if earlier else m
    missing = {m.quantity: m for m in _all_missing(outcomes) if m.quantity not in merged}
    return Result(workload=workload, measurements=list(merged.values()), missing=list(missing.values()))


def _all_missing(outcomes: list[Outcome]) -> list[Missing]:
    return [m for outcome in outcomes for m in outcome.missing]


def _partly_missing(workload: Workload, outcomes: list[Outcome]) -> list[str]:
    """Warnings about what some children measured and others could not."""
    measured = {m.quantity for outcome in outcomes for m in outcome.measurements}
    return [
        f"{workload.id}: {m.quantity} is missing in part: {m.reason}"
        for m in _all_missing(outcomes)
        if m.quantity in measured
    ]


def _refuse_if_busy(conditions: Conditions) -> None:
    busy = conditions.cpu_busy_fraction
    if busy is not None and busy > BUSY_FRACTION:
        raise ResourceError(
            f"other programs use {busy:.0%} of the processors, more than {BUSY_FRACTION:.0%}",
            hint="close them, or leave out --strict to measure with a warning",
        )


def _instability(conditions: Conditions, results: list[Result]) -> list[str]:
    """What makes the timings themselves doubtful."""
    found = []
    busy = conditions.cpu_busy_fraction
    if busy is not None and busy > BUSY_FRACTION:
        found.append(f"busy machine: other programs used {busy:.0%} of the processors before the run")
    for result in results:
        if result.workload.regime != "engine":
            continue
        for m in result.measurements:
            if m.unit == "s" and len(m.samples) > 1:
                spread = (max(m.samples) - min(m.samples)) / m.median
                if spread > SPREAD_FRACTION:
                    found.append(f"{result.workload.id}: spread of {spread:.0%} between repetitions")
    return found


def _circumstances(conditions: Conditions, device: Device) -> list[str]:
    """What another machine would not have, and a reader must know."""
    found = []
    if conditions.throttled:
        found.append("the clock was held down during the run (throttling)")
    if conditions.swap_used_bytes:
        found.append("swap was in use")
    if conditions.power_source == "battery":
        found.append("on battery: the system may limit the clock")
    if device.virtual:
        found.append("a virtual machine: speeds depend on its host's other guests")
    return found


def _tool() -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return {"name": "edgellm", "version": version("edgellm")}
    except PackageNotFoundError:
        return {"name": "edgellm", "version": "unknown"}

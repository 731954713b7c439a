"""Inside the child: one workload, once, on a loaded model."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal, Protocol

from edgellm import meters
from edgellm.formats.records import Record
from edgellm.meters.energy import QUANTITY, Energy, EnergyWindow
from edgellm.profiler import engine, memory
from edgellm.protocols import Backend
from edgellm.report import Measurement, Method, Missing, RuntimeInfo
from edgellm.workload import Workload


class Spec(Record):
    """What a child is asked to measure; travels as JSON on its standard input."""

    model: str
    workload: Workload
    n_threads: int
    kv_type: str
    flash_attention: Literal["auto", "on", "off"]
    gpu_layers: str
    context: int


class Outcome(Record):
    """What a child found; travels as JSON on its standard output."""

    measurements: list[Measurement]
    missing: list[Missing]
    runtime: RuntimeInfo


class Timeline(Record):
    """Moments of one generation on the monotonic clock: the call, and each token."""

    start_s: float
    token_s: list[float]
    n_prompt: int


class Subject(Protocol):
    """A loaded model, as the child sees it."""

    backend: Backend
    load_s: float

    def generate(self, prompt: str, n_gen: int) -> Timeline:
        """Answer a user message greedily, n_gen tokens at most, without reusing a cached prompt."""
        ...


def run(spec: Spec, subject: Subject) -> Outcome:
    """Measure the workload."""
    regimes = {"engine": _engine, "text": _text, "load": _load, "memory": _memory}
    measurements, missing = regimes[spec.workload.regime](spec.workload, subject)
    return Outcome(measurements=measurements, missing=missing, runtime=subject.backend.info)


def _engine(workload: Workload, subject: Subject) -> tuple[list[Measurement], list[Missing]]:
    meter = next((m for m, availability in meters.discover() if availability.available), None)
    energy: list[Energy | Missing] = []

    def around(timed: Callable[[], None]) -> None:
        if meter is None:
            timed()
            return
        if workload.n_depth and workload.reps > 1 and not subject.backend.capabilities.can_truncate:
            timed()
            reason = "this model's cache cannot be cut, so the energy of filling it cannot be told apart"
            energy.append(Missing(quantity=QUANTITY, reason=reason))
            return
        with EnergyWindow(meter) as window:
            timed()
        energy.append(window.outcome())

    timed = engine.run(subject.backend, workload, around)
    phase = "pg" if workload.n_prompt and workload.n_gen else "pp" if workload.n_prompt else "tg"
    measurements = [
        _clock(f"{phase}_s", "s", timed.seconds),
        _clock(f"{phase}_tok_per_s", "tok/s", [timed.n_tokens / s for s in timed.seconds], "derived"),
    ]
    missing: list[Missing] = []
    name = {"pp": "prefill_j_per_token", "tg": "decode_j_per_token", "pg": "pg_j_per_token"}[phase]
    for found in energy or [Missing(quantity=name, reason=meters.missing_reason())]:
        if isinstance(found, Missing):
            missing.append(Missing(quantity=name, reason=found.reason))
        else:
            per_token = found.joules / (timed.n_tokens * len(timed.seconds))
            measurements.append(
                Measurement(
                    quantity=name, unit="J/token", samples=[per_token], method="measured",
                    source=found.source, scope=found.scope,
                )
            )  # fmt: skip
    return measurements, missing


def _text(workload: Workload, subject: Subject) -> tuple[list[Measurement], list[Missing]]:
    for _ in range(workload.warmup_reps):
        subject.generate(workload.prompts[0], 2)
    ttft, gaps, tpot = [], [], []
    for _ in range(workload.reps):
        for prompt in workload.prompts:
            timeline = subject.generate(prompt, workload.n_gen)
            ttft.append(timeline.token_s[0] - timeline.start_s)
            between = [after - before for before, after in pairwise(timeline.token_s)]
            gaps += between
            if between:
                tpot.append(sum(between) / len(between))
    measurements = [_clock("ttft_s", "s", ttft)]
    missing = []
    if gaps:
        measurements += [
            _clock("itl_s", "s", gaps),
            _clock("tpot_s", "s", tpot, "derived"),
            _clock("decode_tok_per_s", "tok/s", [1 / s for s in tpot], "derived"),
        ]
    else:
        missing = [
            Missing(quantity=name, reason="no answer had more than one token")
            for name in ("itl_s", "tpot_s", "decode_tok_per_s")
        ]
    return measurements, missing


def _load(_: Workload, subject: Subject) -> tuple[list[Measurement], list[Missing]]:
    return [_clock("load_s", "s", [subject.load_s])], []


def _memory(workload: Workload, subject: Subject) -> tuple[list[Measurement], list[Missing]]:
    engine.run(subject.backend, workload, lambda work: work())
    return memory.read()


def _clock(quantity: str, unit: str, samples: list[float], method: Method = "measured") -> Measurement:
    return Measurement(
        quantity=quantity,
        unit=unit,
        samples=samples,
        method=method,
        source="monotonic clock",
        scope="process",
    )

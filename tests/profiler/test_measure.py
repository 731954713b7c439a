"""Inside the child: raw samples in order, units and methods named, energy measured or missing with a reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from edgellm import meters
from edgellm.formats.records import from_builtins, from_json, to_builtins, to_json
from edgellm.meters import ReplayMeter
from edgellm.profiler import measure
from edgellm.profiler.measure import Outcome, Spec, Timeline
from edgellm.protocols import Availability
from edgellm.report import Measurement, Reading
from edgellm.workload import Workload
from tests.support.fake_backend import FakeBackend


class Subject:
    """A loaded model whose generations have moments given in advance."""

    def __init__(self, timelines: Sequence[tuple[float, list[float]]] = ()) -> None:
        self.backend = FakeBackend()
        self.load_s = 0.25
        self.asked: list[tuple[str, int]] = []
        self._timelines = list(timelines)

    def generate(self, prompt: str, n_gen: int) -> Timeline:
        self.asked.append((prompt, n_gen))
        start_s, token_s = self._timelines[(len(self.asked) - 1) % len(self._timelines)]
        return Timeline(start_s=start_s, token_s=token_s, n_prompt=5)


def spec(regime: Any, **fields: Any) -> Spec:
    workload = Workload(id="w", about="a workload", regime=regime, **fields)
    return Spec(
        model="m",
        workload=workload,
        n_threads=1,
        kv_type="F16",
        flash_attention="auto",
        gpu_layers="auto",
        context=64,
    )


def found(outcome: Outcome) -> dict[str, Measurement]:
    return {m.quantity: m for m in outcome.measurements}


def no_meters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "discover", list)
    monkeypatch.setattr(
        meters, "missing_reason", lambda: "no rapl: not an x86 machine; no battery: none found"
    )


def replay(monkeypatch: pytest.MonkeyPatch, readings: list[Reading | None], **options: Any) -> ReplayMeter:
    meter = ReplayMeter(readings, **{"kind": "joules", "name": "pmic", "scope": "package", **options})
    absent = ReplayMeter([], kind="joules", name="absent")
    state = Availability(available=True)
    monkeypatch.setattr(meters, "discover", lambda: [(absent, absent.probe()), (meter, state)])
    return meter


def test_a_spec_and_an_outcome_survive_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    no_meters(monkeypatch)
    asked = spec("engine", n_prompt=4, reps=2)
    assert from_builtins(Spec, to_builtins(asked), "spec") == asked
    outcome = measure.run(asked, Subject())
    assert from_json(Outcome, to_json(outcome), "outcome") == outcome


@pytest.mark.parametrize(
    ("fields", "phase"), [({"n_prompt": 4}, "pp"), ({"n_gen": 4}, "tg"), ({"n_prompt": 2, "n_gen": 2}, "pg")]
)
def test_an_engine_phase_has_seconds_and_rates_sample_by_sample(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, int], phase: str
) -> None:
    no_meters(monkeypatch)
    outcome = measure.run(spec("engine", reps=4, **fields), Subject())
    seconds, rate = found(outcome)[f"{phase}_s"], found(outcome)[f"{phase}_tok_per_s"]
    assert (seconds.unit, seconds.method) == ("s", "measured")
    assert (rate.unit, rate.method) == ("tok/s", "derived")
    assert len(seconds.samples) == 4
    assert rate.samples == [4 / s for s in seconds.samples]
    assert outcome.runtime == FakeBackend().info


@pytest.mark.parametrize(
    ("fields", "quantity"),
    [
        ({"n_prompt": 4}, "prefill_j_per_token"),
        ({"n_gen": 4}, "decode_j_per_token"),
        ({"n_prompt": 2, "n_gen": 2}, "pg_j_per_token"),
    ],
)
def test_energy_without_a_meter_is_missing_with_its_reason_and_never_zero(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, int], quantity: str
) -> None:
    no_meters(monkeypatch)
    outcome = measure.run(spec("engine", **fields), Subject())
    assert quantity not in found(outcome)
    assert [(m.quantity, m.reason) for m in outcome.missing] == [
        (quantity, "no rapl: not an x86 machine; no battery: none found")
    ]


def test_a_meter_gives_joules_per_token_over_all_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    second = 1_000_000_000
    meter = replay(
        monkeypatch, [Reading(t_ns=0, value=100.0), Reading(t_ns=60 * second, value=148.0)], update_s=1.0
    )
    outcome = measure.run(spec("engine", n_gen=8, reps=3), Subject())
    energy = found(outcome)["decode_j_per_token"]
    assert energy.samples == [48.0 / (8 * 3)]
    assert (energy.unit, energy.method, energy.source, energy.scope) == (
        "J/token",
        "measured",
        "replay:pmic",
        "package",
    )
    assert outcome.missing == []
    assert meter.remaining == 0


@pytest.mark.parametrize(
    ("readings", "reason"),
    [
        ([Reading(t_ns=0, value=1.0), Reading(t_ns=10**9, value=2.0)], "insufficient"),
        ([Reading(t_ns=0, value=5.0), Reading(t_ns=60 * 10**9, value=5.0)], "insufficient"),
        ([None, Reading(t_ns=0, value=5.0)], "edge failed"),
        ([Reading(t_ns=0, value=5.0), None], "edge failed"),
    ],
    ids=["short", "no change", "lost at the start", "lost at the end"],
)
def test_a_meter_that_says_too_little_is_missing_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, readings: list[Reading | None], reason: str
) -> None:
    replay(monkeypatch, readings, update_s=1.0)
    outcome = measure.run(spec("engine", n_gen=8), Subject())
    assert "decode_j_per_token" not in found(outcome)
    (missing,) = outcome.missing
    assert missing.quantity == "decode_j_per_token"
    assert reason in missing.reason


def test_energy_that_would_include_filling_the_cache_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    replay(monkeypatch, [Reading(t_ns=0, value=0.0), Reading(t_ns=60 * 10**9, value=48.0)], update_s=1.0)
    subject = Subject()
    subject.backend = FakeBackend(can_truncate=False)
    outcome = measure.run(spec("engine", n_gen=8, n_depth=16), subject)
    assert "decode_j_per_token" not in found(outcome)
    assert "cache" in outcome.missing[0].reason


def test_text_keeps_first_tokens_and_gaps_in_order() -> None:
    subject = Subject([(10.0, [10.5, 10.75, 11.25]), (20.0, [20.25, 20.5])])
    outcome = measure.run(spec("text", n_gen=9, prompts=["one", "two"], reps=2, warmup_reps=0), subject)
    m = found(outcome)
    assert m["ttft_s"].samples == [0.5, 0.25] * 2
    assert m["itl_s"].samples == [0.25, 0.5, 0.25] * 2
    assert m["tpot_s"].samples == [0.375, 0.25] * 2
    assert m["decode_tok_per_s"].samples == [1 / 0.375, 4.0] * 2
    assert [m[name].method for name in ("ttft_s", "itl_s", "tpot_s", "decode_tok_per_s")] == [
        "measured", "measured", "derived", "derived",
    ]  # fmt: skip
    assert subject.asked == [("one", 9), ("two", 9)] * 2


def test_warm_up_generations_are_not_counted() -> None:
    subject = Subject([(0.0, [99.0]), (10.0, [10.5, 10.75])])
    outcome = measure.run(spec("text", n_gen=9, prompts=["one"], reps=1, warmup_reps=1), subject)
    assert found(outcome)["ttft_s"].samples == [0.5]


def test_answers_of_one_token_have_no_gaps_and_say_so() -> None:
    outcome = measure.run(spec("text", n_gen=9, prompts=["one"], warmup_reps=0), Subject([(1.0, [1.5])]))
    assert set(found(outcome)) == {"ttft_s"}
    assert {m.quantity for m in outcome.missing} == {"itl_s", "tpot_s", "decode_tok_per_s"}
    assert all("one token" in m.reason for m in outcome.missing)


def test_load_is_what_the_child_clocked() -> None:
    outcome = measure.run(spec("load"), Subject())
    assert found(outcome)["load_s"].samples == [0.25]


def test_memory_is_read_after_the_work() -> None:
    subject = Subject()
    outcome = measure.run(spec("memory", n_prompt=8, n_gen=2, reps=1), subject)
    assert found(outcome)["peak_rss_bytes"].samples[0] > 1_000_000
    assert "pp_s" not in found(outcome)
    assert len(subject.backend.batchers[0].feeds) >= 3

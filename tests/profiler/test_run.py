"""In the parent: children per workload and invocation, samples merged in order, conditions beside the numbers."""

from __future__ import annotations

from typing import Any

import pytest

from edgellm.errors import BadInputError, NativeCrash, ResourceError
from edgellm.formats.records import replace, to_builtins, to_json
from edgellm.profiler import run as running
from edgellm.profiler.measure import Outcome, Spec
from edgellm.report import Conditions, Measurement, Missing, Report, read
from edgellm.workload import Workload
from tests.samples import make_conditions, make_device, make_manifest, make_measurement, make_runtime

TG = Workload(id="tg", about="x", regime="engine", n_gen=4, reps=2)


class Children:
    """A launcher that answers with prepared outcomes and keeps what it was asked."""

    def __init__(self, *outcomes: tuple[list[Measurement], list[Missing]]) -> None:
        self.outcomes = list(outcomes)
        self.specs: list[dict[str, Any]] = []

    def __call__(self, spec: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        assert timeout_s > 0
        measurements, missing = self.outcomes[len(self.specs) % len(self.outcomes)]
        self.specs.append(spec)
        outcome = Outcome(measurements=measurements, missing=missing, runtime=make_runtime())
        answer: dict[str, Any] = to_builtins(outcome)
        return answer


class Watch:
    """Conditions as they are told."""

    conditions = make_conditions()

    def __init__(self) -> None:
        self.start = self.conditions

    def finish(self) -> Conditions:
        return self.conditions


@pytest.fixture(autouse=True)
def watch(monkeypatch: pytest.MonkeyPatch) -> type[Watch]:
    chosen = type("OneWatch", (Watch,), {})
    monkeypatch.setattr(running, "ConditionsWatch", chosen)
    return chosen


def profile(children: Any, *workloads: Workload, strict: bool = False, **changes: Any) -> Report:
    def spec_for(workload: Workload) -> Spec:
        return Spec(
            model="m", workload=workload, n_threads=1, kv_type="F16", flash_attention="auto", gpu_layers="auto",
            context=64,
        )  # fmt: skip

    device = replace(make_device(), **changes)
    return running.profile(children, spec_for, make_manifest(), device, workloads or (TG,), strict=strict)


def seconds(*samples: float, quantity: str = "tg_s") -> Measurement:
    return make_measurement(quantity, samples, unit="s")


def test_a_report_holds_what_the_children_said_and_loads_back() -> None:
    report = profile(
        Children(([seconds(1.0, 1.01)], [Missing(quantity="decode_j_per_token", reason="no meter")]))
    )
    (result,) = report.results
    assert result.workload == TG
    assert result.measurements == [seconds(1.0, 1.01)]
    assert [m.reason for m in result.missing] == ["no meter"]
    assert (report.verdict, report.warnings) == ("ok", [])
    assert read(to_json(report), "report") == report
    assert (report.runtime, report.device, report.model) == (make_runtime(), make_device(), make_manifest())


def test_invocations_are_children_and_their_samples_stay_in_order() -> None:
    children = Children(([seconds(3.0, 2.9)], []), ([seconds(2.95)], []), ([seconds(3.1, 3.05)], []))
    report = profile(children, replace(TG, invocations=3))
    found = report.find("tg_s")
    assert found is not None
    assert found.samples == [3.0, 2.9, 2.95, 3.1, 3.05]
    assert len(children.specs) == 3


def test_loading_is_one_child_per_repetition() -> None:
    children = Children(([seconds(0.5, quantity="load_s")], []), ([seconds(0.4, quantity="load_s")], []))
    report = profile(children, Workload(id="load", about="x", regime="load", reps=4))
    found = report.find("load_s")
    assert found is not None
    assert found.samples == [0.5, 0.4, 0.5, 0.4]


def test_workloads_run_in_the_order_given_each_with_its_own_spec() -> None:
    children = Children(([seconds(1.0)], []))
    report = profile(children, TG, replace(TG, id="other"))
    assert [r.workload.id for r in report.results] == ["tg", "other"]
    assert [s["workload"]["id"] for s in children.specs] == ["tg", "other"]


def test_what_some_children_could_not_measure_is_said_beside_what_others_did() -> None:
    lost = [Missing(quantity="decode_j_per_token", reason="the meter went away")]
    energy = make_measurement("decode_j_per_token", [2.0], unit="J/token")
    report = profile(
        Children(([seconds(1.0), energy], []), ([seconds(1.0)], lost)), replace(TG, invocations=2)
    )
    (result,) = report.results
    assert result.find("decode_j_per_token") == energy
    assert any("decode_j_per_token" in w and "the meter went away" in w for w in report.warnings)


def test_a_wide_spread_is_a_warning_and_unstable() -> None:
    report = profile(Children(([seconds(1.0, 1.2)], [])))
    assert report.verdict == "unstable"
    assert any("tg: spread of" in w for w in report.warnings)


def test_a_spread_of_gaps_in_real_text_is_not_judged() -> None:
    text = Workload(id="chat", about="x", regime="text", n_gen=4, prompts=["a"])
    report = profile(Children(([seconds(0.01, 0.9, quantity="itl_s")], [])), text)
    assert (report.verdict, report.warnings) == ("ok", [])


def test_a_busy_machine_is_a_warning_and_unstable(watch: type[Watch]) -> None:
    watch.conditions = replace(make_conditions(), cpu_busy_fraction=0.5)
    report = profile(Children(([seconds(1.0)], [])))
    assert report.verdict == "unstable"
    assert any("busy machine" in w and "50%" in w for w in report.warnings)


def test_strict_refuses_a_busy_machine_before_any_child(watch: type[Watch]) -> None:
    watch.conditions = replace(make_conditions(), cpu_busy_fraction=0.5)
    children = Children(([seconds(1.0)], []))
    with pytest.raises(ResourceError, match="50%") as caught:
        profile(children, strict=True)
    assert "--strict" in (caught.value.hint or "")
    assert children.specs == []


@pytest.mark.parametrize("busy", [0.0, 0.1, None])
def test_strict_measures_on_a_quiet_or_unknown_machine(watch: type[Watch], busy: float | None) -> None:
    watch.conditions = replace(make_conditions(), cpu_busy_fraction=busy)
    assert profile(Children(([seconds(1.0)], [])), strict=True).verdict == "ok"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"throttled": True}, "throttling"),
        ({"swap_used_bytes": 4096}, "swap"),
        ({"power_source": "battery"}, "battery"),
    ],
)
def test_what_changes_the_meaning_of_the_numbers_is_a_warning(
    watch: type[Watch], change: dict[str, Any], words: str
) -> None:
    watch.conditions = replace(make_conditions(), **change)
    assert any(words in w for w in profile(Children(([seconds(1.0)], []))).warnings)


def test_a_virtual_machine_is_a_warning() -> None:
    assert any("virtual" in w for w in profile(Children(([seconds(1.0)], [])), virtual=True).warnings)


def test_a_child_that_dies_ends_the_run_as_a_crash() -> None:
    def die(spec: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        raise NativeCrash("decode died", signal_name="SIGILL")

    with pytest.raises(NativeCrash):
        profile(die)


def test_a_child_that_talks_nonsense_is_bad_input() -> None:
    def answer(spec: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        return {"measurements": "many"}

    with pytest.raises(BadInputError, match="child measuring tg"):
        profile(answer)


def test_no_workload_is_refused() -> None:
    def spec_for(workload: Workload) -> Spec:
        raise AssertionError

    with pytest.raises(BadInputError, match="no workload"):
        running.profile(Children(), spec_for, make_manifest(), make_device(), [], strict=False)

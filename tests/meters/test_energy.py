"""Energy of known curves within 1 %, or a reason: never a number from too little."""

import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.meters import Energy, EnergyWindow, RaplMeter, ReplayMeter, integrate
from edgellm.report import Missing, Reading


def curve(power_w: Callable[[float], float], seconds: float, step_s: float = 0.1) -> list[Reading]:
    n = round(seconds / step_s)
    return [Reading(t_ns=round(i * step_s * 1e9), value=power_w(i * step_s)) for i in range(n + 1)]


def outcome(readings: Sequence[Reading], **options: float) -> Energy | Missing:
    return integrate(readings, ReplayMeter(readings, kind="watts", **options))  # type: ignore[arg-type]


def counter(
    joules: Sequence[float], step_s: float = 0.1, resolution_j: float | None = None
) -> Energy | Missing:
    readings = [Reading(t_ns=round(i * step_s * 1e9), value=value) for i, value in enumerate(joules)]
    return integrate(readings, ReplayMeter(readings, kind="joules", resolution_j=resolution_j))


def joules(found: Energy | Missing) -> float:
    assert isinstance(found, Energy), found
    return found.joules


@pytest.mark.parametrize(
    ("power_w", "expected_j"),
    [
        (lambda t: 5.0, 100.0),
        (lambda t: 2.0 + 0.5 * t, 140.0),
        (lambda t: 10.0 if t < 10 else 2.0, 120.0),
        (lambda t: 5 + 2 * math.sin(2 * math.pi * t / 4), 100.0),
    ],
    ids=["constant", "ramp", "step", "wave"],
)
def test_known_curves(power_w: Callable[[float], float], expected_j: float) -> None:
    found = outcome(curve(power_w, 20.0))
    assert joules(found) == pytest.approx(expected_j, rel=0.01)
    assert isinstance(found, Energy)
    assert (found.n_readings, found.method) == (201, "integrated")
    assert found.seconds == pytest.approx(20.0)
    assert found.source.startswith("replay:")


def test_missing_samples_of_a_ramp_cost_less_than_one_percent() -> None:
    readings = curve(lambda t: 2.0 + 0.5 * t, 20.0)
    holes = [r for i, r in enumerate(readings) if i % 7 and not 50 < i < 80]
    assert joules(outcome(holes)) == pytest.approx(140.0, rel=0.01)


def test_a_long_silence_gives_no_number() -> None:
    readings = curve(lambda t: 5.0, 20.0)
    found = outcome([r for i, r in enumerate(readings) if not 50 < i < 120])
    assert isinstance(found, Missing)
    assert found.quantity == "energy_j"
    assert found.reason.startswith("insufficient: ")
    assert "7.00 s of 20.0 s" in found.reason


def test_fewer_than_ten_updates_give_no_number() -> None:
    found = outcome(curve(lambda t: 5.0 + t, 0.8))
    assert isinstance(found, Missing)
    assert "9 times" in found.reason
    assert isinstance(outcome(curve(lambda t: 5.0 + t, 0.9)), Energy)


def test_a_slow_gauge_polled_fast_is_not_many_updates() -> None:
    slow = curve(lambda t: float(5 + int(t / 5)), 20.0)  # renewed every 5 s, read ten times a second
    found = outcome(slow, update_s=5.0)
    assert isinstance(found, Missing)
    assert "5 times" in found.reason


def test_without_a_known_period_changes_are_counted() -> None:
    slow = curve(lambda t: float(5 + int(t / 5)), 20.0)
    gauge = ReplayMeter(slow, kind="watts")
    gauge.update_s = None
    found = integrate(slow, gauge)
    assert isinstance(found, Missing)
    assert "4 times" in found.reason


def test_a_counter_is_the_difference_of_its_ends() -> None:
    found = counter([7.0 + 0.3 * i for i in range(101)])
    assert joules(found) == pytest.approx(30.0)
    assert isinstance(found, Energy)
    assert (found.method, found.n_updates) == ("counter", 100)


def test_a_counter_with_gaps_loses_nothing() -> None:
    readings = [Reading(t_ns=i * 10**9, value=2.0 * i) for i in (0, 1, 40, 60)]
    assert joules(integrate(readings, ReplayMeter(readings, kind="joules"))) == 120.0


def test_a_counter_that_wraps_every_few_readings(tmp_path: Path) -> None:
    directory = tmp_path / "sys/class/powercap/intel-rapl:0"
    directory.mkdir(parents=True)
    (directory / "name").write_text("package-0\n")
    (directory / "max_energy_range_uj").write_text("10000000\n")
    meter = RaplMeter(tmp_path)
    readings = []
    for i in range(41):
        (directory / "energy_uj").write_text(f"{i * 2_500_000 % 10_000_000}\n")
        readings.append(Reading(t_ns=i * 10**9, value=meter.read().value))
    assert joules(integrate(readings, meter)) == pytest.approx(100.0, rel=0.01)


def test_below_twenty_steps_of_the_counter_there_is_no_number() -> None:
    found = counter([0.01 * i for i in range(16)], resolution_j=0.01)
    assert isinstance(found, Missing)
    assert "20 times its resolution of 0.01 J" in found.reason
    assert isinstance(counter([0.01 * i for i in range(32)], resolution_j=0.01), Energy)


def test_a_counter_that_stands_still_is_missing_and_not_zero() -> None:
    assert isinstance(counter([4.0] * 50), Missing)


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_readings(n: int) -> None:
    found = outcome(curve(lambda t: 5.0, 1.0)[:n])
    assert isinstance(found, Missing)
    assert f"{n} readings" in found.reason


@given(st.floats(0.1, 500), st.floats(1.0, 3600), st.integers(11, 200))
def test_constant_power_is_power_times_time(watts: float, seconds: float, n: int) -> None:
    readings = curve(lambda t: watts, seconds, seconds / n)
    assert joules(outcome(readings)) == pytest.approx(watts * seconds, rel=0.01)


class Endless(ReplayMeter):
    """After its recording every reading is the last one again; `played` tells that it has come so far."""

    def __init__(self, readings: Sequence[Reading | None], kind: Literal["joules", "watts"]) -> None:
        super().__init__(readings, kind=kind)
        self.played = threading.Event()
        self.last = readings[-1]

    def read(self) -> Reading:
        if self.remaining:
            return super().read()
        self.played.set()
        assert self.last is not None
        return self.last


def window_over(readings: Sequence[Reading | None], kind: Literal["joules", "watts"]) -> Energy | Missing:
    meter = Endless(readings, kind)
    with EnergyWindow(meter, interval_s=0.0) as window:
        assert meter.played.wait(60)
    assert len(window.readings) > 2
    return window.outcome()


def test_a_window_samples_watts_in_a_thread() -> None:
    assert joules(window_over(curve(lambda t: 5.0 + t, 10.0), "watts")) == pytest.approx(100.0, rel=0.01)


def test_a_window_over_a_counter_with_failing_readings() -> None:
    steps: list[Reading | None] = [Reading(t_ns=i * 10**9, value=3.0 * i) for i in range(61)]
    steps[20:40] = [None] * 20
    assert joules(window_over(steps, "joules")) == 180.0


def test_a_window_whose_edge_cannot_be_read_has_a_reason() -> None:
    with EnergyWindow(ReplayMeter([], kind="watts", name="gone")) as window:
        pass
    found = window.outcome()
    assert isinstance(found, Missing)
    assert "replay:gone: the recording has ended" in found.reason


def test_a_window_closes_when_the_work_fails() -> None:
    window = EnergyWindow(Endless(curve(lambda t: 5.0, 1.0), "watts"), interval_s=0.0)
    with pytest.raises(KeyError), window:
        raise KeyError("work")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("meter-replay")]

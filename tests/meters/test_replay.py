"""The replay meter gives back what was recorded, once, and says that it is a recording."""

import pytest

from edgellm.errors import MeterError
from edgellm.meters import ReplayMeter
from edgellm.report import Reading

READINGS = [Reading(t_ns=n * 500_000_000, value=float(n)) for n in range(4)]


def test_readings_come_in_order_and_end() -> None:
    meter = ReplayMeter(READINGS, kind="watts", name="pi5-pmic")
    assert meter.probe().available
    assert [meter.read() for _ in range(4)] == READINGS
    found = meter.probe()
    assert not found.available
    assert "ended" in found.reason
    with pytest.raises(MeterError, match="ended"):
        meter.read()


def test_it_is_labelled_as_a_recording() -> None:
    meter = ReplayMeter(READINGS, kind="joules", name="pi5-pmic")
    assert meter.name == "replay:pi5-pmic"
    assert meter.scope == "recorded"


def test_a_recorded_failure_fails_again() -> None:
    meter = ReplayMeter([READINGS[0], None, READINGS[1]], kind="watts")
    meter.read()
    with pytest.raises(MeterError, match="reading 2 failed"):
        meter.read()
    assert meter.read() == READINGS[1]


def test_the_update_period_is_the_smallest_step() -> None:
    assert ReplayMeter(READINGS, kind="watts").update_s == 0.5
    assert ReplayMeter(READINGS[:1], kind="watts").update_s is None
    assert ReplayMeter(READINGS, kind="watts", update_s=2.0).update_s == 2.0


def test_time_running_backwards_is_refused() -> None:
    with pytest.raises(ValueError, match="order"):
        ReplayMeter(READINGS[::-1], kind="watts")

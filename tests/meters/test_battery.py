"""The battery gauge on recorded trees: units, sign, and why there is no reading."""

import shutil
from pathlib import Path

import pytest

from edgellm.errors import MeterError
from edgellm.meters import BatteryMeter

MACHINES = Path(__file__).parents[1] / "data" / "machines"
SUPPLY = "sys/class/power_supply"


@pytest.fixture
def laptop(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MACHINES / "intel-laptop", tmp_path / "laptop"))


def battery(root: Path, name: str, **files: str) -> None:
    directory = root / SUPPLY / name
    directory.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (directory / file).write_text(f"{text}\n")


def test_power_now_is_microwatts() -> None:
    meter = BatteryMeter(MACHINES / "intel-laptop")
    assert meter.probe().available
    assert (meter.kind, meter.scope) == ("watts", "machine")
    assert meter.read().value == pytest.approx(11.34)


@pytest.mark.parametrize("current", ["1520000", "-1520000"])
def test_current_times_voltage_whatever_the_sign(tmp_path: Path, current: str) -> None:
    battery(
        tmp_path, "BAT1", type="Battery", status="Discharging", current_now=current, voltage_now="16200000"
    )
    assert BatteryMeter(tmp_path).read().value == pytest.approx(1.52 * 16.2)


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging", "Unknown"])
def test_only_discharging_counts(laptop: Path, status: str) -> None:
    battery(laptop, "BAT0", status=status)
    meter = BatteryMeter(laptop)
    found = meter.probe()
    assert not found.available
    assert status in found.reason
    assert "unplug" in found.remedy
    with pytest.raises(MeterError, match=status):
        meter.read()


def test_a_mouse_is_not_the_machine() -> None:
    found = BatteryMeter(MACHINES / "amd-laptop").probe()
    assert not found.available
    assert "BAT1 is 'Charging'" in found.reason
    assert "hidpp" not in found.reason


def test_two_batteries_of_which_one_discharges(laptop: Path) -> None:
    battery(laptop, "BAT1", type="Battery", status="Unknown", power_now="0")
    assert BatteryMeter(laptop).read().value == pytest.approx(11.34)
    battery(laptop, "BAT1", status="Discharging", power_now="2000000")
    assert BatteryMeter(laptop).read().value == pytest.approx(13.34)
    battery(laptop, "BAT1", status="Charging")
    assert not BatteryMeter(laptop).probe().available


def test_zero_watts_while_discharging_is_an_error(laptop: Path) -> None:
    battery(laptop, "BAT0", power_now="0")
    assert "0 W" in BatteryMeter(laptop).probe().reason
    with pytest.raises(MeterError, match="0 W"):
        BatteryMeter(laptop).read()


def test_a_gauge_without_power_or_current(laptop: Path) -> None:
    (laptop / SUPPLY / "BAT0/power_now").unlink()
    assert "neither power nor current" in BatteryMeter(laptop).probe().reason


def test_a_gauge_that_gives_no_number(laptop: Path) -> None:
    battery(laptop, "BAT0", power_now="n/a")
    with pytest.raises(MeterError, match="n/a"):
        BatteryMeter(laptop).read()


def test_without_a_battery() -> None:
    assert "no battery" in BatteryMeter(MACHINES / "rpi5").probe().reason

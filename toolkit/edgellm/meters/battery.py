"""The batteries' own gauges: watts of the whole machine, screen included, while it runs on battery.

The sign of current_now differs between drivers, so the direction is taken from `status`; only `Discharging`
counts. A gauge renews its value every 1 to 30 s; windows need to be longer than ten times that.

Source: Linux Documentation/ABI/testing/sysfs-class-power.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

from edgellm.errors import MeterError
from edgellm.meters.files import number, read_text
from edgellm.protocols import Availability
from edgellm.report import Reading


class BatteryMeter:
    """Power drawn from all discharging batteries, in watts. Batteries of mice and headsets are left out."""

    name = "battery"
    scope = "machine"
    kind: Literal["joules", "watts"] = "watts"

    def __init__(self, root: Path = Path("/")) -> None:
        self._directory = root / "sys/class/power_supply"

    def probe(self) -> Availability:
        """Whether the machine runs on battery and its gauge gives power, or current and voltage."""
        states = self._states()
        if not states:
            return Availability(available=False, reason="/sys/class/power_supply has no battery")
        if refusal := _refusal(states):
            return Availability(available=False, reason=refusal, remedy="unplug the power supply")
        try:
            self.read()
        except MeterError as err:
            return Availability(available=False, reason=str(err))
        return Availability(available=True)

    def read(self) -> Reading:
        """Watts now.

        Raises:
            MeterError: no battery is discharging, or a gauge cannot be read or says 0 W.
        """
        states = self._states()
        if refusal := _refusal(states):
            raise MeterError(f"battery: {refusal}")
        discharging = [battery for battery, state in states.items() if state == "Discharging"]
        watts = sum(_watts(battery) for battery in discharging)
        if watts == 0:
            raise MeterError("battery: the gauge says 0 W while discharging")
        return Reading(t_ns=time.monotonic_ns(), value=watts)

    def _states(self) -> dict[Path, str]:
        """Status of every battery that feeds the machine; one that cannot be read is absent."""
        states = {}
        for supply in sorted(self._directory.glob("*")):
            try:
                if read_text(supply / "type") == "Battery" and not _feeds_device(supply):
                    states[supply] = read_text(supply / "status")
            except OSError:  # unplugged between the listing and the reading
                continue
        return states


def _feeds_device(supply: Path) -> bool:
    scope = supply / "scope"
    return scope.exists() and read_text(scope) == "Device"


def _refusal(states: dict[Path, str]) -> str:
    """Why these batteries do not show what the machine draws; empty if they do."""
    if "Discharging" in states.values() and "Charging" not in states.values():
        return ""
    shown = ", ".join(f"{battery.name} is {state!r}" for battery, state in states.items())
    return f"only a discharging battery shows what the machine draws; {shown or 'there is no battery'}"


def _watts(battery: Path) -> float:
    try:
        power = battery / "power_now"
        if power.exists():
            return abs(number(read_text(power), power)) / 1e6
        current, voltage = battery / "current_now", battery / "voltage_now"
        return abs(number(read_text(current), current)) * number(read_text(voltage), voltage) / 1e12
    except OSError as err:
        raise MeterError(
            f"battery: {battery.name} gives neither power nor current and voltage: {err}"
        ) from err

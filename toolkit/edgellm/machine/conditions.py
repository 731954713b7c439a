"""What changes the meaning of a measurement: load, memory, clock, temperature, power source, throttling.

watch = ConditionsWatch()     # before the run
...                           # the run
conditions = watch.finish()   # with the final temperature, and whether the clock was held down
"""

from __future__ import annotations

import datetime
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from edgellm.machine import cpu
from edgellm.machine.files import ROOT, is_live, list_paths, read_int, read_text
from edgellm.machine.memory import available_memory_bytes, swap_used_bytes
from edgellm.machine.system import command_output, psutil
from edgellm.report import Conditions

BUSY_WINDOW_S = 0.5
_CPU_ZONES = (
    "x86_pkg_temp",
    "cpu-thermal",
    "cpu_thermal",
    "soc_thermal",
    "soc-thermal",
    "TCPU",
    "cpu0-thermal",
)
_CPU_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal")
_THROTTLED_NOW = 0xF
_THROTTLED_SINCE_BOOT = 0xF0000


class ThrottleState(NamedTuple):
    """What tells of a clock held down, at one moment; None where the machine does not tell.

    Attributes:
        firmware_bits: Raspberry Pi, `vcgencmd get_throttled`: bits 0-3 now, 16-19 since boot.
        event_count: x86, thermal throttle events of all cores and packages since boot.
    """

    firmware_bits: int | None
    event_count: int | None


def conditions(
    root: Path = ROOT, cpu_busy: Callable[[Path], float | None] | None = None, started_at: str | None = None
) -> Conditions:
    """The conditions now; `temperature_end_c` and `throttled` are None until `ConditionsWatch.finish`.

    Args:
        cpu_busy: gives the busy share of all cores; by default it is measured for half a second.
        started_at: ISO 8601; by default the time now in UTC.
    """
    return Conditions(
        started_at=started_at or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        load_1min=load_1min(root),
        cpu_busy_fraction=(cpu_busy or cpu_busy_fraction)(root),
        ram_available_bytes=available_memory_bytes(root),
        swap_used_bytes=swap_used_bytes(root),
        governor=governor(root),
        frequency_hz=frequency_hz(root),
        temperature_start_c=temperature_c(root),
        temperature_end_c=None,
        power_source=power_source(root),
        throttled=None,
    )


class ConditionsWatch:
    """Conditions over a run: taken when made, completed by `finish`.

    Args:
        cpu_busy: as in `conditions`.  throttle: reads the throttle state; `throttle_state` by default.
    """

    def __init__(
        self,
        root: Path = ROOT,
        cpu_busy: Callable[[Path], float | None] | None = None,
        throttle: Callable[[Path], ThrottleState] | None = None,
    ) -> None:
        self._root = root
        self._throttle = throttle or throttle_state
        self.start = conditions(root, cpu_busy)
        self._before = self._throttle(root)

    def finish(self) -> Conditions:
        """The conditions at the start, with the final temperature and whether the run was throttled."""
        return msgspec.structs.replace(
            self.start,
            temperature_end_c=temperature_c(self._root),
            throttled=was_throttled(self._before, self._throttle(self._root)),
        )


def cpu_busy_fraction(root: Path = ROOT, window_s: float = BUSY_WINDOW_S) -> float | None:
    """Share of all cores that is busy during a window starting now, 0 to 1; the caller sleeps meanwhile."""
    before = _cpu_ticks(root)
    if before is None:
        if not is_live(root):
            return None
        return float(psutil().cpu_percent(interval=window_s)) / 100
    time.sleep(window_s)
    after = _cpu_ticks(root)
    if after is None or after[1] <= before[1]:
        return None
    return min(1.0, max(0.0, (after[0] - before[0]) / (after[1] - before[1])))


def load_1min(root: Path = ROOT) -> float | None:
    """Load average of the last minute."""
    first = re.match(r"\d+(\.\d+)?(?=\s)", read_text(root / "proc/loadavg") or "")
    if first or not is_live(root) or not hasattr(os, "getloadavg"):
        return float(first[0]) if first else None
    return float(os.getloadavg()[0])


def governor(root: Path = ROOT) -> str | None:
    """The frequency governor, or all in use joined by commas."""
    names = {read_text(path) for path in _cpufreq(root, "scaling_governor")} - {None, ""}
    return ",".join(sorted(name for name in names if name)) or None


def frequency_hz(root: Path = ROOT) -> int | None:
    """Clock of the fastest core now."""
    khz = [value for path in _cpufreq(root, "scaling_cur_freq") if (value := read_int(path))]
    if khz:
        return max(khz) * 1000
    mhz = [
        float(text)
        for table in cpu.processors(root)
        if re.fullmatch(r"\d+(\.\d+)?", text := table.get("cpu mhz", ""))
    ]
    return round(max(mhz) * 1e6) if mhz else None


def temperature_c(root: Path = ROOT) -> float | None:
    """Temperature of the CPU (package) in Celsius; board and battery sensors are not asked."""
    zones = {
        read_text(zone / "type"): zone for zone in list_paths(root / "sys/class/thermal", "thermal_zone*")
    }
    for name in _CPU_ZONES:
        if name in zones and (value := read_int(zones[name] / "temp")) is not None:
            return value / 1000
    for chip in list_paths(root / "sys/class/hwmon", "hwmon*"):
        if read_text(chip / "name") in _CPU_CHIPS and (value := read_int(chip / "temp1_input")) is not None:
            return value / 1000
    return None


def power_source(root: Path = ROOT) -> Literal["ac", "battery"] | None:
    """What feeds the machine; None where nothing tells, as on boards and desktops."""
    supplies = list_paths(root / "sys/class/power_supply", "*")
    own = [supply for supply in supplies if read_text(supply / "scope") != "Device"]
    kinds = [(read_text(supply / "type"), supply) for supply in own]
    if any(
        kind in ("Mains", "USB", "Wireless") and read_int(supply / "online") == 1 for kind, supply in kinds
    ):
        return "ac"
    states = [read_text(supply / "status") for kind, supply in kinds if kind == "Battery"]
    if "Discharging" in states:
        return "battery"
    if any(state in ("Charging", "Full", "Not charging") for state in states):
        return "ac"
    if supplies or not is_live(root):
        return None
    battery = getattr(psutil(), "sensors_battery", lambda: None)()
    if battery is None or battery.power_plugged is None:
        return None
    return "ac" if battery.power_plugged else "battery"


def throttle_state(root: Path = ROOT) -> ThrottleState:
    """What the machine says of throttling now; the firmware is asked only on the running system."""
    text = command_output("vcgencmd", "get_throttled") if is_live(root) else None
    bits = re.fullmatch(r"throttled=(0x[0-9a-fA-F]+)", text or "")
    files = list_paths(root / "sys/devices/system/cpu", "cpu[0-9]*/thermal_throttle/*_throttle_count")
    counts = [value for path in files if (value := read_int(path)) is not None]
    return ThrottleState(int(bits[1], 16) if bits else None, sum(counts) if counts else None)


def was_throttled(before: ThrottleState, after: ThrottleState) -> bool | None:
    """Whether the clock was held down (or power too low) between two states; None where nothing tells."""
    if before.firmware_bits is not None and after.firmware_bits is not None:
        now = (before.firmware_bits | after.firmware_bits) & _THROTTLED_NOW
        newly = after.firmware_bits & ~before.firmware_bits & _THROTTLED_SINCE_BOOT
        return bool(now or newly)
    if before.event_count is not None and after.event_count is not None:
        return after.event_count > before.event_count
    return None


def _cpufreq(root: Path, name: str) -> list[Path]:
    return list_paths(root / "sys/devices/system/cpu", f"cpu[0-9]*/cpufreq/{name}")


def _cpu_ticks(root: Path) -> tuple[int, int] | None:
    """Busy and total clock ticks of all processors since boot; idle and waiting for disks are not busy."""
    words = (read_text(root / "proc/stat") or "").partition("\n")[0].split()
    ticks = [int(word) for word in words[1:9] if word.isdecimal()]
    if words[:1] != ["cpu"] or len(ticks) < 5:
        return None
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)

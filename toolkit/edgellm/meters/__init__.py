"""Energy meters of this machine: one small file per source, found here by name.

A meter satisfies `protocols.Meter` and may also have
    resolution_j   smallest step of a joules meter
    update_s       period at which the source renews its value
where it knows them; both serve to refuse a window too short to mean anything (see `energy`). Nothing here
models energy: what no meter can read is missing, and `missing_reason` says why.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgellm.meters.battery import BatteryMeter
from edgellm.meters.energy import Energy, EnergyWindow, integrate
from edgellm.meters.rapl import RaplMeter
from edgellm.meters.replay import ReplayMeter
from edgellm.protocols import Availability, Meter

__all__ = [
    "METERS",
    "BatteryMeter",
    "Energy",
    "EnergyWindow",
    "RaplMeter",
    "ReplayMeter",
    "discover",
    "integrate",
    "missing_reason",
]

METERS: dict[str, Callable[[Path], Meter]] = {"rapl": RaplMeter, "battery": BatteryMeter}


def discover(root: Path = Path("/")) -> list[tuple[Meter, Availability]]:
    """Every meter with its availability; the order of preference is the order of `METERS`."""
    meters = [make(root) for make in METERS.values()]
    return [(meter, meter.probe()) for meter in meters]


def missing_reason(root: Path = Path("/")) -> str:
    """Why no energy can be read here, in one line; empty where a meter is available."""
    found = discover(root)
    if any(availability.available for _, availability in found):
        return ""
    return "; ".join(f"no {meter.name}: {availability.reason}" for meter, availability in found)

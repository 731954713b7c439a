"""Energy over a window of time, or the reason why the window gives none.

    with EnergyWindow(meter) as window:
        ...                      # the work
    energy = window.outcome()    # Energy or Missing

A joules meter gives the difference of its first and last reading; a watts meter is sampled by a thread and
integrated by the trapezoid rule. A number is refused, as `insufficient`, if the source renewed its value
fewer than 10 times, if the energy is below 20 times the meter's resolution, or if a watts meter was silent
for more than a fifth of the window. Idle power is not subtracted here.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import pairwise
from types import TracebackType
from typing import Literal, Self

from edgellm.errors import MeterError
from edgellm.formats.records import Record
from edgellm.protocols import Meter
from edgellm.report import Missing, Reading
from edgellm.units import format_seconds

MIN_UPDATES = 10
MIN_RESOLUTIONS = 20
MAX_GAP_FRACTION = 0.2
QUANTITY = "energy_j"
_WATTS_INTERVAL_S = 0.2
_JOULES_INTERVAL_S = 5.0  # far below the shortest wrap of a counter


class Energy(Record):
    """Energy that a meter saw between its first and last reading in a window, gross.

    Attributes:
        n_updates: how often the source renewed its value, as far as it can be told.
        method: `counter` or `integrated`.
    """

    joules: float
    seconds: float
    n_updates: int
    n_readings: int
    source: str
    scope: str
    method: Literal["counter", "integrated"]


class EnergyWindow:
    """Reads a meter from entry to exit, in a thread of its own in between.

    Args:
        interval_s: between readings; by default 0.2 s for watts and 5 s for joules.
    """

    def __init__(self, meter: Meter, interval_s: float | None = None) -> None:
        default_s = _WATTS_INTERVAL_S if meter.kind == "watts" else _JOULES_INTERVAL_S
        self._meter = meter
        self._interval_s = default_s if interval_s is None else interval_s
        self._readings: list[Reading] = []
        self._ends: list[MeterError] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"meter-{meter.name}", daemon=True)

    def __enter__(self) -> Self:
        self._read_end()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._read_end()

    @property
    def readings(self) -> list[Reading]:
        """What was read so far."""
        return list(self._readings)

    def outcome(self) -> Energy | Missing:
        """The energy of the window; call it after the window has closed."""
        if self._ends:
            return Missing(
                quantity=QUANTITY, reason=f"a reading at the window's edge failed: {self._ends[0]}"
            )
        return integrate(self._readings, self._meter)

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            try:
                self._readings.append(self._meter.read())
            except MeterError:  # a gap: `integrate` judges its length
                continue

    def _read_end(self) -> None:
        try:
            self._readings.append(self._meter.read())
        except MeterError as err:
            self._ends.append(err)


def integrate(readings: Sequence[Reading], meter: Meter) -> Energy | Missing:
    """Energy from the first to the last reading of `meter`; gaps between readings are allowed.

    Definition: joules meters E = last - first; watts meters E = sum (P_i + P_i+1) / 2 * (t_i+1 - t_i).
    """
    if len(readings) < 2:
        return _insufficient(f"{len(readings)} readings of {meter.name}")
    times_s = [reading.t_ns / 1e9 for reading in readings]
    values = [reading.value for reading in readings]
    seconds = times_s[-1] - times_s[0]
    steps_s = [after - before for before, after in pairwise(times_s)]
    update_s = getattr(meter, "update_s", None)
    if meter.kind == "joules":
        joules = values[-1] - values[0]
        n_updates = int(seconds / update_s + 1e-6) if update_s else _changes(values)
    else:
        means = ((before + after) / 2 for before, after in pairwise(values))
        joules = sum(mean * step for mean, step in zip(means, steps_s, strict=True))
        n_updates = min(len(values), int(seconds / update_s + 1e-6) + 1) if update_s else _changes(values)
        if max(steps_s) > MAX_GAP_FRACTION * seconds and n_updates >= MIN_UPDATES:
            gap = f"no reading for {format_seconds(max(steps_s))} of {format_seconds(seconds)}"
            return _insufficient(f"{meter.name} gave {gap}")
    if n_updates < MIN_UPDATES:
        return _insufficient(
            f"{meter.name} renewed its value {n_updates} times in {format_seconds(seconds)}, "
            f"at least {MIN_UPDATES} are needed"
        )
    resolution_j = getattr(meter, "resolution_j", None)
    if joules <= 0 or (resolution_j and joules < MIN_RESOLUTIONS * resolution_j):
        floor = (
            f", below {MIN_RESOLUTIONS} times its resolution of {resolution_j:g} J" if resolution_j else ""
        )
        return _insufficient(f"{meter.name} saw {joules:g} J{floor}")
    return Energy(
        joules=joules,
        seconds=seconds,
        n_updates=n_updates,
        n_readings=len(readings),
        source=meter.name,
        scope=meter.scope,
        method="counter" if meter.kind == "joules" else "integrated",
    )


def _changes(values: Sequence[float]) -> int:
    return sum(before != after for before, after in pairwise(values))


def _insufficient(why: str) -> Missing:
    return Missing(quantity=QUANTITY, reason=f"insufficient: {why}")

"""A meter that plays back recorded readings, for tests and simulations; its name says so."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from edgellm.errors import MeterError
from edgellm.protocols import Availability
from edgellm.report import Reading


class ReplayMeter:
    """Gives the recorded readings one by one, with the times at which they were taken.

    Args:
        readings: in order of time;  None stands for a reading that failed.
        kind: what the values are.  name: of the recording; `replay:` is put before it.
        resolution_j: smallest step of a joules meter, if known.
        update_s: period at which the source renewed its value; by default the smallest step of time recorded.
    """

    def __init__(
        self,
        readings: Sequence[Reading | None],
        *,
        kind: Literal["joules", "watts"],
        name: str = "recording",
        scope: str = "recorded",
        resolution_j: float | None = None,
        update_s: float | None = None,
    ) -> None:
        times = [reading.t_ns for reading in readings if reading is not None]
        steps = [after - before for before, after in pairwise(times)]
        if any(step <= 0 for step in steps):
            raise ValueError("readings are not in order of time")
        self.name = f"replay:{name}"
        self.scope = scope
        self.kind: Literal["joules", "watts"] = kind
        self.resolution_j = resolution_j
        self.update_s = update_s if update_s is not None else min(steps, default=0) / 1e9 or None
        self._readings = list(readings)
        self._next = 0
        self._lock = threading.Lock()

    @property
    def remaining(self) -> int:
        """Readings not yet given."""
        return len(self._readings) - self._next

    def probe(self) -> Availability:
        """Available while readings are left."""
        if self.remaining:
            return Availability(available=True)
        return Availability(available=False, reason="the recording has ended")

    def read(self) -> Reading:
        """The next recorded reading.

        Raises:
            MeterError: the recording has ended, or the reading failed when it was recorded.
        """
        with self._lock:
            if not self.remaining:
                raise MeterError(f"{self.name}: the recording has ended")
            reading = self._readings[self._next]
            self._next += 1
        if reading is None:
            raise MeterError(f"{self.name}: reading {self._next} failed when it was recorded")
        return reading

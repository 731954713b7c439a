"""RAPL through Linux powercap: cumulative joules of the processor packages, on Intel and AMD Zen.

Only the domains called `package-*` are read and added up. Their children (core, uncore, dram) are parts of
them, `psys` contains them, and `intel-rapl-mmio` is the same counter again. No package counter sees voltage
regulators, most memory, disk, screen and power supply.

Source: Linux Documentation/power/powercap/powercap.rst.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from edgellm.errors import MeterError
from edgellm.meters.files import number, read_text
from edgellm.protocols import Availability
from edgellm.report import Reading

_TOP_DOMAIN = re.compile(r"intel-rapl:\d+\Z")
_REMEDY = (
    "sudo chmod -R a+r /sys/class/powercap/intel-rapl (until the next boot). This reopens a side channel "
    "(CVE-2020-8694): every local user can then observe what the processor draws"
)


class _Domain(NamedTuple):
    directory: Path
    range_uj: int


class RaplMeter:
    """Energy of all processor packages since the meter was made, in joules.

    `read` must be called at least once per wrap of a counter (235 s at 280 W for the smallest range in use);
    `EnergyWindow` does. Safe to call from several threads.

    Args:
        root: of the file system.  read_file: gives a file's text or raises OSError.
    """

    name = "rapl"
    scope = "package"
    kind: Literal["joules", "watts"] = "joules"
    resolution_j = 2.0**-14  # the coarsest energy unit of current parts (Intel SDM, MSR_RAPL_POWER_UNIT)
    update_s = 1e-3  # hardware renews the counter about each millisecond

    def __init__(self, root: Path = Path("/"), read_file: Callable[[Path], str] = read_text) -> None:
        self._directory = root / "sys/class/powercap"
        self._read_file = read_file
        self._lock = threading.Lock()
        self._domains: list[_Domain] | None = None
        self._last_uj: dict[Path, int] = {}
        self._total_uj = 0

    def probe(self) -> Availability:
        """Whether every package counter can be read now."""
        if not self._directory.is_dir():
            return Availability(
                available=False,
                reason="/sys/class/powercap is absent (a virtual machine, a container, or an ARM processor)",
            )
        try:
            domains = self._find()
            for domain in domains:
                self._counter(domain)
        except PermissionError:
            return Availability(available=False, reason="energy_uj is readable by root only", remedy=_REMEDY)
        except (OSError, MeterError) as err:
            return Availability(available=False, reason=f"a package counter cannot be read: {err}")
        if not domains:
            return Availability(available=False, reason="/sys/class/powercap has no package domain")
        return Availability(available=True)

    def read(self) -> Reading:
        """Joules since the first reading, which is 0.

        Raises:
            MeterError: a counter cannot be read.
        """
        with self._lock:
            try:
                if self._domains is None:
                    self._domains = self._find()
                # All are read before any is booked, so that a failure loses nothing.
                now_uj = {domain: self._counter(domain) for domain in self._domains}
            except PermissionError as err:
                raise MeterError("RAPL: energy_uj is readable by root only", hint=_REMEDY) from err
            except OSError as err:
                raise MeterError(f"RAPL: a package counter cannot be read: {err}") from err
            if not now_uj:
                raise MeterError(f"RAPL: no package domain in {self._directory}")
            t_ns = time.monotonic_ns()
            for domain, value in now_uj.items():
                delta = value - self._last_uj.get(domain.directory, value)
                self._total_uj += delta if delta >= 0 else delta + domain.range_uj
                self._last_uj[domain.directory] = value
            return Reading(t_ns=t_ns, value=self._total_uj / 1e6)

    def _counter(self, domain: _Domain) -> int:
        path = domain.directory / "energy_uj"
        return number(self._read_file(path), path)

    def _find(self) -> list[_Domain]:
        found = []
        for directory in sorted(self._directory.glob("intel-rapl:*")):
            if _TOP_DOMAIN.match(directory.name) and self._read_file(directory / "name").startswith(
                "package"
            ):
                path = directory / "max_energy_range_uj"
                found.append(_Domain(directory, number(self._read_file(path), path)))
        return found

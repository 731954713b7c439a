"""Memory of this machine in bytes, as far as this process may use it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

from edgellm.errors import MissingInputError
from edgellm.machine import cgroup
from edgellm.machine.files import ROOT, is_live, read_text
from edgellm.machine.system import psutil


class Headroom(NamedTuple):
    """What bounds the memory of this process most tightly.

    Attributes:
        taken_bytes: what it has of `limit_bytes` already.
        name: what sets the limit.
        counts_mapped: what is mapped counts, whether it is used or not.
    """

    limit_bytes: int
    taken_bytes: int
    name: str
    counts_mapped: bool = False

    @property
    def left_bytes(self) -> int:
        """Bytes until the limit; 0 beyond it."""
        return max(0, self.limit_bytes - self.taken_bytes)


def headroom(root: Path = ROOT) -> Headroom:
    """The bound that leaves this process least: the machine's memory, a cgroup's limit, or one on its address space.

    What other processes and the page cache take is not counted: the kernel gives that back, or not, as it likes.
    """
    resident, mapped = _own_bytes(root)
    by_group = memory_limit_bytes(root)
    bounds = [
        Headroom(ram_bytes(root), resident, "limit of the cgroup" if by_group else "memory of the machine")
    ]
    if is_live(root) and sys.platform != "win32":
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            bounds.append(
                Headroom(limit, mapped, "limit of the address space, ulimit -v", counts_mapped=True)
            )
    return min(bounds, key=lambda bound: bound.left_bytes)


def address_space_left_bytes() -> int | None:
    """What this process may still map under its limit (ulimit -v); None without one."""
    if sys.platform == "win32":
        return None
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    return max(0, limit - _own_bytes(ROOT)[1])


def _own_bytes(root: Path) -> tuple[int, int]:
    """Resident and mapped bytes of this process; none in a recorded tree."""
    if not is_live(root):
        return 0, 0
    taken = psutil().Process().memory_info()
    return int(taken.rss), int(taken.vms)


def meminfo(root: Path) -> dict[str, int]:
    """/proc/meminfo in bytes; empty where there is none."""
    table = {}
    for line in (read_text(root / "proc/meminfo") or "").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdecimal():
            table[name] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    return table


def memory_limit_bytes(root: Path = ROOT) -> int | None:
    """The smallest cgroup limit on this process; None without one."""
    return min((level.limit_bytes for level in cgroup.memory_levels(root)), default=None)


def ram_bytes(root: Path = ROOT) -> int:
    """Memory the system has, or the cgroup limit if that is smaller.

    Raises:
        MissingInputError: a recorded tree without /proc/meminfo.
    """
    total = meminfo(root).get("MemTotal")
    if total is None:
        if not is_live(root):
            raise MissingInputError(f"no MemTotal in {root / 'proc/meminfo'}")
        total = int(psutil().virtual_memory().total)
    limit = memory_limit_bytes(root)
    return total if limit is None else min(total, limit)


def available_memory_bytes(root: Path = ROOT) -> int | None:
    """Memory this process can take without swapping: what the system, or a cgroup's limit, leaves free."""
    free = meminfo(root).get("MemAvailable")
    if free is None and is_live(root):
        free = int(psutil().virtual_memory().available)
    rests = [
        max(0, level.limit_bytes - level.used_bytes + level.reclaimable_bytes)
        for level in cgroup.memory_levels(root)
        if level.used_bytes is not None
    ]
    return min([*rests, *([] if free is None else [free])], default=None)


def swap_used_bytes(root: Path = ROOT) -> int | None:
    """Bytes swapped out now."""
    table = meminfo(root)
    if "SwapTotal" in table and "SwapFree" in table:
        return table["SwapTotal"] - table["SwapFree"]
    if table or not is_live(root):
        return None
    return int(psutil().swap_memory().used)

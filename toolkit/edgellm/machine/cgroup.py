"""Limits that a container or service manager puts on this process: cgroup v2, v1, and both at once.

A limit of any parent binds too, so the smallest on the way up counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from edgellm.machine.files import read_int, read_text

_NO_LIMIT = 1 << 60
_MOUNT = "sys/fs/cgroup"


class MemoryLevel(NamedTuple):
    """One group with a limit; `reclaimable_bytes` is page cache that the kernel drops first."""

    limit_bytes: int
    used_bytes: int | None
    reclaimable_bytes: int


def memory_levels(root: Path) -> list[MemoryLevel]:
    """Every memory limit that binds this process."""
    levels = []
    for directory in _directories(root, "memory"):
        v2 = (directory / "memory.max").exists()
        limit = read_int(directory / ("memory.max" if v2 else "memory.limit_in_bytes"))
        if limit is None or not 0 < limit < _NO_LIMIT:
            continue
        used = read_int(directory / ("memory.current" if v2 else "memory.usage_in_bytes"))
        wanted = "inactive_file" if v2 else "total_inactive_file"
        found = re.search(rf"^{wanted} (\d+)$", read_text(directory / "memory.stat") or "", re.MULTILINE)
        levels.append(MemoryLevel(limit, used, int(found[1]) if found else 0))
    return levels


def cpu_quota(root: Path) -> float | None:
    """CPUs' worth of time this process may use, for example 1.5; None without a quota."""
    quotas = []
    for directory in _directories(root, "cpu"):
        both = (read_text(directory / "cpu.max") or "").split()
        if len(both) == 2 and both[0].isdecimal() and both[1].isdecimal():
            quota, period = int(both[0]), int(both[1])
        else:
            quota = read_int(directory / "cpu.cfs_quota_us") or 0
            period = read_int(directory / "cpu.cfs_period_us") or 0
        if quota > 0 and period > 0:
            quotas.append(quota / period)
    return min(quotas, default=None)


def _directories(root: Path, controller: str) -> Iterator[Path]:
    """Directories of this process's groups for a controller, innermost first, up to the mount."""
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            mounts = [root / _MOUNT, root / _MOUNT / "unified"]
        elif controller in controllers.split(","):
            mounts = [root / _MOUNT / controller, root / _MOUNT / controllers]
        else:
            continue
        for mount in dict.fromkeys(mounts):
            if mount.is_dir():
                yield from _upwards(mount, path)


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    parts = [part for part in path.split("/") if part]
    if ".." in parts:  # the group lies outside this namespace: only the mount itself is ours to read
        parts = []
    while parts:
        yield mount.joinpath(*parts)
        parts.pop()
    yield mount

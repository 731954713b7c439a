"""The CPU: name, architecture, instruction sets in one spelling, and how many cores there are to use."""

from __future__ import annotations

import math
import os
import platform
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from edgellm.errors import MissingInputError
from edgellm.machine import cgroup
from edgellm.machine.files import ROOT, is_live, list_paths, read_text
from edgellm.machine.system import psutil, sysctl, sysctl_int, windows_features
from edgellm.targets import ARM_ISA, X86_ISA

# Linux spells its flags as we do, in lower case, except for these.
_LINUX_NAMES = {"AVX512_VBMI": "avx512vbmi", "NEON": "asimd", "DOTPROD": "asimddp", "FP16": "asimdhp"}
_MACOS_NAMES = {
    "NEON": "AdvSIMD", "DOTPROD": "arm.FEAT_DotProd", "FP16": "arm.FEAT_FP16", "BF16": "arm.FEAT_BF16",
    "I8MM": "arm.FEAT_I8MM", "SME": "arm.FEAT_SME", "AES": "arm.FEAT_AES", "SSE4_2": "sse4_2",
    "AVX": "avx1_0", "AVX2": "avx2_0", "F16C": "f16c", "FMA": "fma", "BMI2": "bmi2", "AVX512F": "avx512f",
}  # fmt: skip
# Implementer and part number of Arm cores, as Linux prints them (arch/arm64/include/asm/cputype.h).
_ARM_CORES = {
    "0x41": {
        "0xd03": "Cortex-A53", "0xd05": "Cortex-A55", "0xd07": "Cortex-A57", "0xd08": "Cortex-A72",
        "0xd09": "Cortex-A73", "0xd0a": "Cortex-A75", "0xd0b": "Cortex-A76", "0xd0c": "Neoverse-N1",
        "0xd0d": "Cortex-A77", "0xd40": "Neoverse-V1", "0xd41": "Cortex-A78", "0xd44": "Cortex-X1",
        "0xd46": "Cortex-A510", "0xd47": "Cortex-A710", "0xd48": "Cortex-X2", "0xd49": "Neoverse-N2",
        "0xd4d": "Cortex-A715", "0xd4e": "Cortex-X3", "0xd4f": "Neoverse-V2", "0xd80": "Cortex-A520",
        "0xd81": "Cortex-A720", "0xd82": "Cortex-X4",
    },
    "0x61": {"0x022": "Apple M1 Icestorm", "0x023": "Apple M1 Firestorm"},
}  # fmt: skip


def processors(root: Path) -> list[dict[str, str]]:
    """One table per processor of /proc/cpuinfo; keys in lower case, the last block of a Pi left out."""
    blocks = []
    for text in (read_text(root / "proc/cpuinfo") or "").split("\n\n"):
        pairs = (line.partition(":") for line in text.splitlines())
        table = {key.strip().lower(): value.strip() for key, separator, value in pairs if separator}
        if "processor" in table:
            blocks.append(table)
    return blocks


def architecture(root: Path = ROOT) -> str:
    """`x86_64`, `aarch64`, or what the system calls it otherwise."""
    first = next(iter(processors(root)), {})
    if "lm" in first.get("flags", "").split():
        return "x86_64"
    if "asimd" in first.get("features", "").split():
        return "aarch64"
    if not is_live(root):
        return "unknown"
    machine = platform.machine().lower()
    return {"arm64": "aarch64", "amd64": "x86_64"}.get(machine, machine or "unknown")


def isa(root: Path = ROOT) -> list[str]:
    """Instruction sets that every core has, named as in `targets.X86_ISA` and `ARM_ISA`; empty if unknown."""
    names = {"x86_64": X86_ISA, "aarch64": ARM_ISA}.get(architecture(root), ())
    key = "features" if names is ARM_ISA else "flags"
    flags = [set(table[key].split()) for table in processors(root) if key in table]
    if flags:
        return isa_of_flags(set.intersection(*flags), names)
    if not is_live(root):
        return []
    apple = [n for n in names if n in _MACOS_NAMES and sysctl_int(f"hw.optional.{_MACOS_NAMES[n]}") == 1]
    return apple or [name for name in names if name in windows_features()]


def isa_of_flags(flags: Collection[str], names: Sequence[str] | None = None) -> list[str]:
    """Those of `names` (by default all) that are among the flags of a processor as Linux prints them."""
    names = list(dict.fromkeys(X86_ISA + ARM_ISA)) if names is None else names
    return [name for name in names if _LINUX_NAMES.get(name, name.lower()) in flags]


def cpu_name(root: Path = ROOT) -> str:
    """The CPU in words: its model name, or its Arm cores such as `4x Cortex-A76`; else `unknown`."""
    tables = processors(root)
    model = next((table["model name"] for table in tables if table.get("model name")), None)
    if model:
        return model
    parts = Counter(
        _ARM_CORES.get(table["cpu implementer"].lower(), {}).get(
            table["cpu part"].lower(), _unnamed_core(table)
        )
        for table in tables
        if "cpu implementer" in table and "cpu part" in table
    )
    if parts:
        return " + ".join(f"{n}x {name}" for name, n in parts.items())
    if not is_live(root):
        return "unknown"
    return sysctl("machdep.cpu.brand_string") or platform.processor() or "unknown"


def logical_cores(root: Path = ROOT) -> int:
    """Processors that are online.

    Raises:
        MissingInputError: a recorded tree without /proc/cpuinfo.
    """
    n = len(processors(root)) or (os.cpu_count() or 1 if is_live(root) else 0)
    if not n:
        raise MissingInputError(f"no processors in {root / 'proc/cpuinfo'}")
    return n


def physical_cores(root: Path = ROOT) -> int | None:
    """Cores that are online, hyper-threads counted once; None if unknown."""
    cpus = list_paths(root / "sys/devices/system/cpu", "cpu[0-9]*")
    siblings = [
        read_text(cpu / "topology/core_cpus_list") or read_text(cpu / "topology/thread_siblings_list")
        for cpu in cpus
    ]
    if any(siblings):
        return len({group for group in siblings if group})
    tables = processors(root)
    pairs = {(table.get("physical id"), table.get("core id")) for table in tables if "core id" in table}
    if pairs or not is_live(root):
        return len(pairs) or None
    return sysctl_int("hw.physicalcpu") or psutil().cpu_count(logical=False)


def usable_cores(root: Path = ROOT) -> int:
    """Processors this process may run on: its affinity and its cgroup's quota (rounded down), at least 1."""
    n = logical_cores(root)
    if is_live(root) and hasattr(os, "sched_getaffinity"):
        n = min(n, len(os.sched_getaffinity(0)))
    quota = cgroup.cpu_quota(root)
    return n if quota is None else max(1, min(n, math.floor(quota)))


def default_threads(root: Path = ROOT) -> int:
    """Threads for decode and prefill: physical (on Apple silicon performance) cores, as far as usable."""
    performance = sysctl_int("hw.perflevel0.physicalcpu") if is_live(root) else None
    return min(performance or physical_cores(root) or usable_cores(root), usable_cores(root))


def _unnamed_core(table: dict[str, str]) -> str:
    return f"Arm core {table['cpu implementer']}:{table['cpu part']}"

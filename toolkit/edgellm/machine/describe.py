"""The machine as a report states it."""

from __future__ import annotations

import platform
from pathlib import Path

from edgellm.machine import cpu
from edgellm.machine.files import ROOT, is_live, read_text
from edgellm.machine.memory import ram_bytes
from edgellm.machine.system import board, sysctl_int
from edgellm.report import Device

_VIRTUAL_VENDORS = (
    "qemu", "kvm", "vmware", "virtualbox", "innotek", "xen", "bochs", "parallels", "amazon ec2",
    "google compute engine", "virtual machine", "bhyve", "openstack",
)  # fmt: skip


def describe(root: Path = ROOT, target: str = "host") -> Device:
    """This machine as a `Device`; the CPU's name is preceded by the board's where there is one.

    Raises:
        MissingInputError: a recorded tree that lacks /proc/cpuinfo or /proc/meminfo.
    """
    name = board(root)
    return Device(
        target=target,
        cpu=f"{name}, {cpu.cpu_name(root)}" if name else cpu.cpu_name(root),
        arch=cpu.architecture(root),
        isa=cpu.isa(root),
        cores_logical=cpu.logical_cores(root),
        cores_physical=cpu.physical_cores(root),
        ram_bytes=ram_bytes(root),
        os=_os_name(root),
        kernel=read_text(root / "proc/sys/kernel/osrelease")
        or (platform.release() if is_live(root) else "")
        or "unknown",
        virtual=is_virtual(root),
    )


def is_virtual(root: Path = ROOT) -> bool | None:
    """Whether this is a virtual machine; None where nothing tells.

    On x86 the hypervisor flag of the CPU answers both ways; elsewhere firmware may name a known vendor.
    """
    tables = cpu.processors(root)
    flags = tables[0].get("flags", "").split() if tables else []
    if flags:
        return "hypervisor" in flags
    names = [read_text(root / "sys/class/dmi/id" / file) for file in ("sys_vendor", "product_name")]
    names += [read_text(root / "proc/device-tree/compatible"), read_text(root / "sys/hypervisor/type")]
    text = " ".join(name for name in names if name).lower()
    if "dummy-virt" in text or any(vendor in text for vendor in _VIRTUAL_VENDORS):
        return True
    if "raspberrypi," in text:
        return False
    present = sysctl_int("kern.hv_vmm_present") if is_live(root) else None
    return None if present is None else present == 1


def _os_name(root: Path) -> str:
    for file in ("etc/os-release", "usr/lib/os-release"):
        for line in (read_text(root / file) or "").splitlines():
            if line.startswith("PRETTY_NAME="):
                return line.partition("=")[2].strip("\"'")
    return platform.platform(terse=True) if is_live(root) else "unknown"

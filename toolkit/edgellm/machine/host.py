"""The machine in use as the target `host`: what was detected, and defaults that follow from it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from edgellm import targets
from edgellm.machine import cpu
from edgellm.machine.describe import describe
from edgellm.machine.files import ROOT, is_live, list_paths, read_text
from edgellm.machine.system import board
from edgellm.report import Device
from edgellm.targets import HOST, Kind, Offload, Quant, Target, TargetDefaults
from edgellm.units import GIB, format_bytes

_BOARDS = (
    (r"Raspberry Pi (5|500|Compute Module 5)\b", "rpi5"),
    (r"Raspberry Pi (4|400|Compute Module 4)\b", "rpi4"),
    (r"Raspberry Pi (3|Compute Module 3)\b", "rpi3"),
    (r"Raspberry Pi Zero 2\b", "rpi-zero2w"),
)
_LAPTOP_CHASSIS = ("8", "9", "10", "14", "30", "31", "32")
_KLD = "KLD to the source 0.031 against 0.072 for Q4_0 on Llama 3 8B (ik_llama.cpp's perplexity README)"


def detect_target(root: Path = ROOT) -> Target:
    """This machine as a target with the id `host`.

    Numbers are read here and now; defaults follow from instruction sets and memory, with reasons in `why`.
    The nearest target file is named under `sources["nearest"]` for orientation: none of its numbers are used.

    Raises:
        MissingInputError: a recorded tree that lacks /proc/cpuinfo or /proc/meminfo.
    """
    device = describe(root)
    cores = device.cores_physical
    near = nearest(device, board(root))
    quant, because = choose_quant(device, _has_metal(root, device))
    context, context_because = _choose_context(device.ram_bytes)
    threads = cpu.default_threads(root)
    sources = {
        "soc": "method: /proc/cpuinfo and the device tree, or the system's own call",
        "isa": "method: flags of /proc/cpuinfo that every core has, or the system's own call",
        "cores": "method: core_cpus_list in /sys"
        if cores
        else "method: logical processors; cores are unknown",
        "ram_bytes": "method: MemTotal, or a smaller cgroup limit",
        "energy_sources": "method: what /sys shows; readable or not is another question (edgellm doctor)",
    }
    if near:
        sources["nearest"] = f"targets/{near}.toml"
    return Target(
        id=HOST,
        name=board(root) or device.cpu,
        kind=_kind(root),
        soc=device.cpu,
        arch=device.arch,
        isa=device.isa,
        cores=cores or device.cores_logical,
        ram_bytes=device.ram_bytes,
        formats=["gguf", "onnx"],
        defaults=TargetDefaults(
            quant=quant, kv_type="F16", context=context, threads=threads, offload=_offload(root, device)
        ),
        energy_sources=_energy_sources(root),
        sources=sources,
        why={
            "quant": because,
            "kv_type": "llama.cpp's default; quantized KV costs CPU time when the context is short",
            "context": context_because,
            "threads": f"{cores or 'unknown'} physical cores, {cpu.usable_cores(root)} processors usable",
            "offload": "Metal is part of the library on Apple silicon"
            if _has_metal(root, device)
            else "no GPU is looked for; ask with --gpu-layers",
            "bandwidth_bytes_per_s": "not measured on this machine yet, and not assumed from its kind",
        },
        source_id="detected",
    )


def nearest(device: Device, board_name: str | None) -> str | None:
    """Id of the target file most like a machine: its board's, else one of its architecture; None if none is.

    A file is like it if the machine has every instruction set the file lists; the longest list wins, then
    the nearest size of memory.
    """
    known = targets.available()
    for pattern, name in _BOARDS:
        if board_name and name in known and re.search(pattern, board_name):
            return name
    fits = [
        target
        for target in map(targets.load, known)
        if target.arch == device.arch and target.isa and set(target.isa) <= set(device.isa)
    ]
    best = max(fits, key=lambda t: (len(t.isa), -abs(t.ram_bytes - device.ram_bytes)), default=None)
    return best.id if best else None


def choose_quant(device: Device, metal: bool) -> tuple[Quant, str]:
    """The default 4-bit type for a machine and why, after ggml's repacking kernels and published errors.

    Source: ggml src/ggml-cpu/repack.cpp; KLD and speed as named in the reason.
    """
    if metal:
        return "Q4_K_M", f"Metal does the work, where repacking for the CPU counts for nothing; {_KLD}"
    if device.arch == "aarch64" and ("DOTPROD" in device.isa or "I8MM" in device.isa):
        return "Q4_0", (
            "ggml repacks Q4_0 for dotprod and i8mm: fastest prefill on such cores (103.9 against 79.6 tok/s "
            "for Q4_K_M on a Galaxy S23 CPU, equal decode). It costs quality: KLD 0.072 against 0.031; ask "
            "for Q4_K_M where that matters more"
        )
    if device.arch == "aarch64":
        return "Q4_K_M", f"no dotprod: ggml repacks no type, so Q4_0 has no advantage; {_KLD}"
    if "AVX2" in device.isa:
        return "Q4_K_M", f"ggml repacks Q4_K for AVX2, Q5_K and Q6_K not; {_KLD}"
    return "Q4_K_M", f"no instruction set known here makes another 4-bit type faster; {_KLD}"


def _choose_context(ram_bytes: int) -> tuple[int, str]:
    context = 1024 if ram_bytes < 0.75 * GIB else 2048 if ram_bytes < 1.5 * GIB else 4096
    return context, (
        f"method: {format_bytes(ram_bytes)} of memory; at 112 KiB per token (3B, F16 KV) {context} tokens "
        f"take {format_bytes(context * 112 * 1024)}, smaller models less"
    )


def _has_metal(root: Path, device: Device) -> bool:
    return is_live(root) and sys.platform == "darwin" and device.arch == "aarch64"


def _offload(root: Path, device: Device) -> Offload:
    return "auto" if _has_metal(root, device) else "none"


def _kind(root: Path) -> Kind:
    if "Raspberry Pi" in (board(root) or ""):
        return "sbc"
    if (root / "system/build.prop").exists():
        return "phone"
    laptop = read_text(root / "sys/class/dmi/id/chassis_type") in _LAPTOP_CHASSIS or _batteries(root)
    return "laptop" if laptop else "desktop"


def _batteries(root: Path) -> list[Path]:
    supplies = list_paths(root / "sys/class/power_supply", "*")
    own = [supply for supply in supplies if read_text(supply / "scope") != "Device"]
    return [supply for supply in own if read_text(supply / "type") == "Battery"]


def _energy_sources(root: Path) -> list[str]:
    found = ["rapl"] if list_paths(root / "sys/class/powercap", "intel-rapl:*") else []
    return found + (["battery"] if _batteries(root) else [])

"""What works on this machine, what does not, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from edgellm import machine, meters
from edgellm.errors import EdgeLLMError, NativeCrash
from edgellm.formats.records import Record
from edgellm.native import library
from edgellm.units import format_bytes

REBUILD = "build it for this machine: scripts/setup in a checkout of edgellm"


class Finding(Record):
    """One line of the doctor's page."""

    subject: str
    state: Literal["ok", "note", "broken"]
    found: str
    remedy: str = ""


def check_decode(prove: Callable[[], dict[str, Any]]) -> Finding:
    """Whether a decode in a child process works; where it dies, the likely cause and the repair."""
    try:
        answer = prove()
    except NativeCrash as err:
        return Finding(
            subject="decode", state="broken", found=f"{err.message}{_likely_cause(err)}", remedy=REBUILD
        )
    except EdgeLLMError as err:
        return Finding(subject="decode", state="broken", found=err.message, remedy=err.hint or "")
    runtime = answer["runtime"]
    said = str(answer["text"]).strip()
    return Finding(
        subject="decode",
        state="ok",
        found=f"{runtime['engine']} {runtime['engine_version']} on {runtime['backend_actual']} answered {said!r}",
    )


def check_machine() -> list[Finding]:
    """The machine, the native build, memory and meters."""
    device = machine.describe()
    available = machine.available_memory_bytes()
    findings = [
        Finding(
            subject="machine",
            state="ok",
            found=f"{device.cpu}, {device.cores_logical} cores, {format_bytes(device.ram_bytes)}",
        ),
        Finding(subject="instruction sets", state="ok", found=", ".join(device.isa) or "none detected"),
        _build(),
    ]
    if available is not None:
        findings.append(Finding(subject="free memory", state="ok", found=format_bytes(available)))
    for meter, availability in meters.discover():
        findings.append(
            Finding(
                subject=f"meter {meter.name}",
                state="ok" if availability.available else "note",
                found=f"reads {meter.kind} of {meter.scope}"
                if availability.available
                else availability.reason,
                remedy=availability.remedy,
            )
        )
    return findings


def check_crashes(crashes: Mapping[str, tuple[int, str]]) -> list[Finding]:
    """Model files that have crashed native code here.

    Args:
        crashes: sha256 -> how often, and the last time in words.
    """
    return [
        Finding(
            subject=f"model {sha256[:12]}", state="note", found=f"crashed {n_crashes} times, the last was {last}",
            remedy=f"to forget them: edgellm doctor --unquarantine {sha256[:12]}",
        )
        for sha256, (n_crashes, last) in crashes.items()
    ]  # fmt: skip


def _build() -> Finding:
    record = library.build_record()
    if record is None:
        return Finding(
            subject="native build", state="note", found="not built by scripts/setup: flags unknown"
        )
    flags = " ".join(record.get("flags") or []) or "none"
    return Finding(
        subject="native build",
        state="ok",
        found=f"llama-cpp-python {record.get('llama_cpp_python')}, extra flags {flags} ({record.get('reason')})",
    )


def _likely_cause(err: NativeCrash) -> str:
    if err.signal_name not in {"SIGILL", "SIGSEGV"}:
        return ""
    if "AMX_TILE" in machine.isa() or "AMX_INT8" in machine.isa():
        return "; this CPU has AMX, whose tile configuration gcc 12 and older compile wrongly"
    return "; the library may have been built for another CPU"

"""Records that tests start from: small, valid, and made without reading anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgellm import report
from edgellm.artifact import MANIFEST_SCHEMA, FileEntry, Manifest
from edgellm.workload import Workload


def make_manifest(**changes: Any) -> Manifest:
    """A manifest of a GGUF of 4 bytes."""
    fields: dict[str, Any] = {
        "schema": MANIFEST_SCHEMA,
        "model": "tiny",
        "revision": None,
        "architecture": "llama",
        "format": "gguf",
        "quant": "Q4_K_M",
        "n_params": 1000,
        "file_bytes": 4,
        "bpw": 4.5,
        "context_train": 2048,
        "target": "host",
        "recipe": None,
        "files": [FileEntry(name="model.gguf", n_bytes=4, sha256="0" * 64)],
        "parents": [],
        "tool_versions": {"edgellm": "0.1.0"},
        "argv": ["edgellm", "convert", "tiny"],
        "licence": None,
        "created_at": None,
    }
    return Manifest(**{**fields, **changes})


def make_measurement(quantity: str, samples: Sequence[float], **changes: Any) -> report.Measurement:
    """Measured by a clock unless told otherwise."""
    fields: dict[str, Any] = {
        "quantity": quantity,
        "unit": "tok/s",
        "samples": list(samples),
        "method": "measured",
        "source": "clock",
        "scope": "process",
    }
    return report.Measurement(**{**fields, **changes})


def make_energy(
    quantity: str, samples: Sequence[float], *, method: report.Method = "measured"
) -> report.Measurement:
    """Joules per token at a wall meter."""
    return make_measurement(
        quantity, samples, unit="J/token", method=method, source="wall meter", scope="wall, gross"
    )


def make_report(
    measurements: Sequence[report.Measurement] = (),
    missing: Sequence[report.Missing] = (),
    **changes: Any,
) -> report.Report:
    """A report of one engine workload, tg128."""
    workload = Workload(id="tg128", about="tokens generated one at a time", regime="engine", n_gen=128)
    fields: dict[str, Any] = {
        "schema": report.SCHEMA,
        "report_id": "r1",
        "created_at": "2026-11-01T12:00:00Z",
        "tool": {"edgellm": "0.1.0"},
        "device": make_device(),
        "conditions": make_conditions(),
        "runtime": make_runtime(),
        "model": make_manifest(),
        "results": [report.Result(workload=workload, measurements=list(measurements), missing=list(missing))],
        "missing": [],
        "warnings": [],
        "verdict": "ok",
    }
    return report.Report(**{**fields, **changes})


def make_device() -> report.Device:
    """A small board."""
    return report.Device(
        target="rpi5",
        cpu="Cortex-A76",
        arch="aarch64",
        isa=["neon", "dotprod"],
        cores_logical=4,
        cores_physical=4,
        ram_bytes=8 * 1024**3,
        os="Linux",
        kernel="6.6",
    )


def make_conditions() -> report.Conditions:
    """A machine of which little is known."""
    return report.Conditions(
        started_at="2026-11-01T12:00:00Z",
        load_1min=0.1,
        cpu_busy_fraction=0.01,
        ram_available_bytes=4 * 1024**3,
        swap_used_bytes=0,
        governor="performance",
        frequency_hz=2_400_000_000,
        temperature_start_c=45.0,
        temperature_end_c=None,
        power_source="ac",
        throttled=None,
    )


def make_runtime() -> report.RuntimeInfo:
    """llama.cpp on the CPU."""
    return report.RuntimeInfo(
        engine="llama.cpp",
        engine_version="b1",
        binding="llama-cpp-python 0.3.36",
        backend_asked="cpu",
        backend_actual="cpu",
        build_features="NEON",
        n_threads=4,
        kv_type="F16",
        flash_attention="auto",
        mmap=True,
        n_batch=2048,
    )

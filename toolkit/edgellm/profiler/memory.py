"""Memory of this process, from the kernel's own books: peak RSS, PSS, anonymous and file-backed pages.

Mapped weights count as resident once touched; PSS divides pages that processes share.
"""

from __future__ import annotations

from pathlib import Path

from edgellm.report import Measurement, Missing

_STATUS = {
    "VmHWM": "peak_rss_bytes",
    "RssAnon": "rss_anonymous_bytes",
    "RssFile": "rss_file_bytes",
    "VmSwap": "swap_bytes",
}


def read(root: Path = Path("/")) -> tuple[list[Measurement], list[Missing]]:
    """What this process holds now and held at most; what the system does not tell is missing with its reason."""
    process = root / "proc" / "self"
    found = _kilobytes(process / "status", _STATUS) | _kilobytes(
        process / "smaps_rollup", {"Pss": "pss_bytes"}
    )
    wanted = [*_STATUS.values(), "pss_bytes"]
    measurements = [
        Measurement(
            quantity=name,
            unit="B",
            samples=[float(found[name])],
            method="measured",
            source=source,
            scope="process",
        )
        for name in wanted
        if name in found
        for source in ["/proc/self/smaps_rollup" if name == "pss_bytes" else "/proc/self/status"]
    ]
    missing = [
        Missing(quantity=name, reason="this system has no such entry in /proc/self")
        for name in wanted
        if name not in found
    ]
    return measurements, missing


def _kilobytes(path: Path, names: dict[str, str]) -> dict[str, int]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        key, _, rest = line.partition(":")
        parts = rest.split()
        if key in names and len(parts) == 2 and parts[1] == "kB" and parts[0].isdigit():
            found[names[key]] = int(parts[0]) * 1024
    return found

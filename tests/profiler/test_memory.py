"""Memory from the kernel's books; what a system does not tell is missing with its reason."""

from __future__ import annotations

from pathlib import Path

from edgellm.profiler import memory
from edgellm.report import Missing

STATUS = (
    "Name:\tpython\nVmHWM:\t  2048 kB\nVmRSS:\t 9 kB\nRssAnon:\t 1024 kB\nRssFile:\t 512 kB\nVmSwap:\t 0 kB\n"
)


def tree(root: Path, **files: str) -> Path:
    folder = root / "proc" / "self"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return root


def test_kilobytes_become_bytes_with_their_source(tmp_path: Path) -> None:
    rollup = "55d0-7ffd ---p 00000000 00:00 0  [rollup]\nRss:  3 kB\nPss:   700 kB\nPss_Dirty: 1 kB\n"
    measurements, missing = memory.read(tree(tmp_path, status=STATUS, smaps_rollup=rollup))
    assert {m.quantity: m.samples for m in measurements} == {
        "peak_rss_bytes": [2048 * 1024.0],
        "rss_anonymous_bytes": [1024 * 1024.0],
        "rss_file_bytes": [512 * 1024.0],
        "swap_bytes": [0.0],
        "pss_bytes": [700 * 1024.0],
    }
    assert {m.quantity: m.source for m in measurements}["pss_bytes"] == "/proc/self/smaps_rollup"
    assert {(m.unit, m.method, m.scope) for m in measurements} == {("B", "measured", "process")}
    assert missing == []


def test_an_old_kernel_without_rollup_has_no_pss_and_says_so(tmp_path: Path) -> None:
    measurements, missing = memory.read(tree(tmp_path, status=STATUS))
    assert "pss_bytes" not in {m.quantity for m in measurements}
    assert [m.quantity for m in missing] == ["pss_bytes"]
    assert missing[0].reason


def test_a_system_without_proc_has_nothing_and_says_so(tmp_path: Path) -> None:
    measurements, missing = memory.read(tmp_path)
    assert measurements == []
    assert len(missing) == 5
    assert all(isinstance(m, Missing) and m.reason for m in missing)


def test_nonsense_is_missing_not_zero(tmp_path: Path) -> None:
    text = "VmHWM: many kB\nRssAnon: -5 kB\nRssFile: 12 MB\nVmSwap:\nnothing\n"
    measurements, missing = memory.read(tree(tmp_path, status=text, smaps_rollup=""))
    assert measurements == []
    assert len(missing) == 5


def test_this_process_is_not_empty() -> None:
    measurements, _ = memory.read()
    values = {m.quantity: m.samples[0] for m in measurements}
    assert values["peak_rss_bytes"] >= values["rss_anonymous_bytes"] > 0

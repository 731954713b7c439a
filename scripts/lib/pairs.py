"""Pairs of runs: what is timed, in which order, and how the ratios are shown."""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

EDGELLM = Path(sys.executable).with_name("edgellm")
MIB = 1024**2
T = TypeVar("T")


class Sample(NamedTuple):
    """One run of one side."""

    seconds: float
    peak_rss_bytes: int


def run_commands(*commands: Sequence[str | Path]) -> Sample:
    """Run commands one after the other; total wall time and the largest process's peak RSS."""
    started = time.perf_counter()
    peak = 0
    for command in commands:
        child = subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            sys.exit(f"error: {command[0]} ended with {child.returncode}: {' '.join(map(str, command))}")
        peak = max(peak, usage.ru_maxrss * 1024)
    return Sample(time.perf_counter() - started, peak)


def pairs_of(ours: Callable[[], T], theirs: Callable[[], T], n: int) -> list[tuple[T, T]]:
    """n pairs in turn, the order within a pair drawn at random; one pair before is not counted."""
    ours(), theirs()
    found = []
    for _ in range(n):
        if random.random() < 0.5:
            a = ours()
            found.append((a, theirs()))
        else:
            b = theirs()
            found.append((ours(), b))
    return found


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Median of the ratios and its 95 % bootstrap interval."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(4000))
    return statistics.median(ratios), medians[100], medians[-101]


def show(what: str, ratios: Sequence[float], bound: str) -> None:
    """One row: the median ratio, its interval, and the figure it is held against."""
    median, low, high = interval(ratios)
    print(f"{what:<58} {median:6.3f}  ({low:.3f} to {high:.3f}, {len(ratios)} pairs)  wanted {bound}")


def show_medians(found: Sequence[tuple[Sample, Sample]], wanted_mib: str) -> None:
    """Median seconds and the largest peak RSS of both sides."""
    seconds = [
        statistics.median(side) for side in zip(*((a.seconds, b.seconds) for a, b in found), strict=True)
    ]
    peak = [
        max(side) / MIB
        for side in zip(*((a.peak_rss_bytes, b.peak_rss_bytes) for a, b in found), strict=True)
    ]
    print(f"{'  median seconds, ours and theirs':<58} {seconds[0]:.2f} and {seconds[1]:.2f}")
    print(f"{'  peak RSS in MiB, ours and theirs':<58} {peak[0]:.0f} and {peak[1]:.0f}  wanted {wanted_mib}")

"""The benchmarks behind scripts/bench: they report figures beside what is wanted, and judge nothing."""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from lib.bench_convert import bench_convert
from lib.bench_quality import bench_quality
from lib.bench_run import bench_run
from lib.bench_run_memory import bench_run_memory
from lib.pairs import EDGELLM, pairs_of, run_commands


def bench_start(n: int) -> None:
    """Start-up of the command line."""
    found = pairs_of(
        lambda: run_commands([EDGELLM, "--help"]),
        lambda: run_commands([sys.executable, "-c", "pass"]),
        max(n, 10),
    )
    seconds = sorted(a.seconds for a, _ in found)
    empty = statistics.median(b.seconds for _, b in found)
    print(
        f"{'edgellm --help, median ms (and an empty Python)':<58} {1e3 * statistics.median(seconds):6.0f}  "
        f"({1e3 * seconds[0]:.0f} to {1e3 * seconds[-1]:.0f}; {1e3 * empty:.0f})  wanted < 150"
    )


BENCHES = {"convert": bench_convert, "run": bench_run, "memory": bench_run_memory, "start": bench_start}


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Compare edgellm with its peers on this machine."
    )
    parser.add_argument("what", choices=[*BENCHES, "quality", "all"])
    parser.add_argument("--pairs", type=int, default=7, help="pairs per comparison (default 7)")
    parser.add_argument(
        "--text", type=Path, help="quality: a text; its first half calibrates, its second measures"
    )
    parser.add_argument(
        "--chunks", type=int, default=24, help="quality: chunks of 512 tokens to measure on (default 24)"
    )
    parser.add_argument(
        "--calibration-chunks", type=int, default=20, help="quality: chunks that our side sees (default 20)"
    )
    parser.add_argument(
        "--imatrix", type=Path, help="quality: llama-imatrix's file of the text's first half, if it is there"
    )
    options = parser.parse_args()
    if options.what == "quality":
        if options.text is None:
            parser.error("quality needs --text FILE")
        bench_quality(options.text, options.chunks, options.calibration_chunks, options.imatrix)
    for name, bench in BENCHES.items():
        if options.what == name or (
            options.what == "all" and name != "memory"
        ):  # which is a row of `run` too
            bench(options.pairs)


main()

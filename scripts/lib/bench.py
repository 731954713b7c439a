"""The benchmarks behind scripts/bench: they report figures beside what is wanted, and judge nothing."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.conftest import USER_CACHE
from tests.support import smollm2
from tests.support.oracle import ORACLE_PYTHON, native_build

from edgellm import api
from edgellm.machine import default_threads

EDGELLM = Path(sys.executable).with_name("edgellm")
MIB = 1024**2


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


def pairs(ours: Callable[[], Sample], theirs: Callable[[], Sample], n: int) -> list[tuple[Sample, Sample]]:
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


def bench_convert(n: int) -> None:
    """HF -> Q4_K_M of SmolLM2-135M."""
    source = smollm2.cached_checkpoint(api.resolve("builtin:smollm2").path, USER_CACHE)
    tools = native_build()
    with tempfile.TemporaryDirectory() as folder:
        out, middle, last = Path(folder) / "artifact", Path(folder) / "bf16.gguf", Path(folder) / "q4.gguf"
        threads = str(os.cpu_count() or 1)

        def ours() -> Sample:
            shutil.rmtree(out, ignore_errors=True)
            return run_commands(
                [EDGELLM, "convert", source, "--target", "x86-avx2", "--quant", "Q4_K_M", "-o", out]
            )

        def theirs() -> Sample:
            convert = [
                ORACLE_PYTHON,
                tools / "llama.cpp" / "convert_hf_to_gguf.py",
                source,
                "--outtype",
                "bf16",
                "--outfile",
                middle,
            ]
            return run_commands(convert, [tools / "bin" / "llama-quantize", middle, last, "Q4_K_M", threads])

        found = pairs(ours, theirs, n)
    show(
        "convert HF -> Q4_K_M: time / llama.cpp's two tools",
        [a.seconds / b.seconds for a, b in found],
        "<= 0.5",
    )
    median_s = [
        statistics.median(side) for side in zip(*((a.seconds, b.seconds) for a, b in found), strict=True)
    ]
    peak = [
        max(side) / MIB
        for side in zip(*((a.peak_rss_bytes, b.peak_rss_bytes) for a, b in found), strict=True)
    ]
    print(f"{'  median seconds, ours and theirs':<58} {median_s[0]:.2f} and {median_s[1]:.2f}")
    print(f"{'  peak RSS in MiB, ours and theirs':<58} {peak[0]:.0f} and {peak[1]:.0f}  wanted <= 300")


def bench_decode(n: int) -> None:
    """Greedy text from Model.stream, against llama_decode alone with the same model, threads and depth."""
    import ctypes

    from llama_cpp import llama_cpp as lib

    n_tokens, threads = 128, default_threads()
    prompt = [{"role": "user", "content": "Write a long story about a lighthouse keeper and the sea."}]
    with api.load("builtin:smollm2", context=1024, threads=threads) as model:
        ids = list(range(1000, 1000 + model.count_tokens(prompt)))
        batcher = model._batcher
        context = batcher._ctx  # type: ignore[attr-defined]

        def ours() -> Sample:
            stream = model.stream(prompt, max_tokens=n_tokens, temperature=0, cache_prompt=False)
            moments = [time.perf_counter() for _ in stream]
            return Sample((moments[-1] - moments[0]) / (len(moments) - 1), 0)

        def theirs() -> Sample:
            memory = lib.llama_get_memory(context)
            lib.llama_memory_seq_rm(memory, 0, -1, -1)
            tokens = (ctypes.c_int32 * len(ids))(*ids)
            lib.llama_decode(context, lib.llama_batch_get_one(tokens, len(ids)))
            one = (ctypes.c_int32 * 1)(ids[0])
            started = time.perf_counter()
            for _ in range(n_tokens - 1):
                lib.llama_decode(context, lib.llama_batch_get_one(one, 1))
                lib.llama_synchronize(context)
            return Sample((time.perf_counter() - started) / (n_tokens - 1), 0)

        found = pairs(ours, theirs, n)
    show(
        "decode: speed of Model.stream / bare llama_decode loop",
        [b.seconds / a.seconds for a, b in found],
        ">= 0.97",
    )
    ours_ms, theirs_ms = (1e3 * statistics.median(p[i].seconds for p in found) for i in (0, 1))
    print(f"{'  median ms per token, ours and theirs':<58} {ours_ms:.2f} and {theirs_ms:.2f}")


def bench_start(n: int) -> None:
    """Start-up of the command line."""
    found = pairs(
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


BENCHES = {"convert": bench_convert, "decode": bench_decode, "start": bench_start}


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Compare edgellm with its peers on this machine."
    )
    parser.add_argument("what", choices=[*BENCHES, "all"])
    parser.add_argument("--pairs", type=int, default=7, help="pairs per comparison (default 7)")
    options = parser.parse_args()
    for name, bench in BENCHES.items():
        if options.what in (name, "all"):
            bench(options.pairs)


main()

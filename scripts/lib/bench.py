"""The benchmarks behind scripts/bench: they report figures beside what is wanted, and judge nothing."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

from edgellm import api
from edgellm.machine import default_threads
from lib.bench_convert import bench_convert
from lib.bench_quality import bench_quality
from lib.pairs import EDGELLM, Sample, pairs, run_commands, show


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
        if options.what in (name, "all"):
            bench(options.pairs)


main()

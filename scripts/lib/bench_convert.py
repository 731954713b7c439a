"""Conversion against llama.cpp's two tools: time, peak memory, and how busy ggml's quantizer is."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path

from tests.conftest import USER_CACHE
from tests.support import smollm2
from tests.support.oracle import ORACLE_PYTHON, native_build
from tests.support.random_llama import CONFIGS, write_random_llama

from edgellm import api
from edgellm.native import ggml
from lib.pairs import EDGELLM, MIB, Sample, pairs_of, run_commands, show, show_medians

# (model, type, largest share of their time that is wanted)
ROWS = (("smollm2", "Q4_K_M", 0.5), ("0.45B", "Q8_0", 0.4), ("0.45B", "Q4_K_M", 0.7), ("1B", "Q4_K_M", 0.78))


def bench_convert(n: int) -> None:
    """Every row of `ROWS`, then memory by depth and the quantizer's share of the time."""
    small = smollm2.cached_checkpoint(api.resolve("builtin:smollm2").path, USER_CACHE)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        sources = {"smollm2": small}
        for name, quant, bound in ROWS:
            if name not in sources:
                sources[name] = write_random_llama(root / name, small, **CONFIGS[name])
            _against_tools(sources[name], name, quant, bound, root, n if name != "1B" else max(3, n // 2))
        _memory_by_depth(small, root)
        _busy_share(sources["1B"], root)


def _against_tools(source: Path, name: str, quant: str, bound: float, root: Path, n: int) -> None:
    out, middle, last = root / "artifact", root / "middle.gguf", root / "last.gguf"
    tools, threads = native_build(), str(os.cpu_count() or 1)

    def ours() -> Sample:
        shutil.rmtree(out, ignore_errors=True)
        return run_commands([*_convert(source, out), "--quant", quant])

    def theirs() -> Sample:
        script = tools / "llama.cpp" / "convert_hf_to_gguf.py"
        convert = [ORACLE_PYTHON, script, source, "--outtype", "bf16", "--outfile", middle]
        return run_commands(convert, [tools / "bin" / "llama-quantize", middle, last, quant, threads])

    found = pairs_of(ours, theirs, n)
    ratios = [a.seconds / b.seconds for a, b in found]
    show(f"convert {name} BF16 -> {quant}: time / llama.cpp's two tools", ratios, f"<= {bound}")
    show_medians(found, "<= 1024")


def _convert(source: Path, out: Path) -> list[str | Path]:
    return [
        EDGELLM,
        "convert",
        source,
        "--target",
        "x86-avx2",
        "-o",
        out,
        "--verify",
        "none",
        "--imatrix",
        "none",
    ]


def _memory_by_depth(small: Path, root: Path) -> None:
    """Peak RSS at 6 and at 24 layers: it should not grow with them."""
    peaks = []
    for n_layers in (6, 24):
        source = root / f"layers-{n_layers}"
        write_random_llama(source, small, **{**CONFIGS["0.45B"], "num_hidden_layers": n_layers})
        sample = run_commands([*_convert(source, root / f"out-{n_layers}"), "--quant", "Q4_K_M"])
        peaks.append(sample.peak_rss_bytes / MIB)
        shutil.rmtree(source)
    print(
        f"{'peak RSS in MiB at 6 and 24 layers of 1024':<58} {peaks[0]:.0f} and {peaks[1]:.0f}  wanted equal"
    )


def _busy_share(source: Path, root: Path) -> None:
    """CPU time inside ggml's quantizers, of all CPU time and of what the cores could give in that time."""
    inside: list[float] = []
    lock = threading.Lock()
    library = ggml._base()
    plain = library.ggml_quantize_chunk

    def timed(*arguments: object) -> int:
        started = time.thread_time()
        done: int = plain(*arguments)
        with lock:
            inside.append(time.thread_time() - started)
        return done

    library.ggml_quantize_chunk = timed  # type: ignore[assignment]
    try:
        shares = []
        for i in range(3):
            inside.clear()
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            api.convert(source, target="x86-avx2", quant="Q4_K_M", output=root / f"busy-{i}")
            wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
            shares.append((sum(inside) / cpu_s, sum(inside) / (wall_s * (os.cpu_count() or 1))))
            shutil.rmtree(root / f"busy-{i}")
    finally:
        library.ggml_quantize_chunk = plain
    of_cpu, of_cores = (statistics.median(side) for side in zip(*shares, strict=True))
    print(
        f"{'ggml quantizer: share of CPU time, of the cores':<58} {of_cpu:.1%} and {of_cores:.1%}  wanted >= 90%"
    )

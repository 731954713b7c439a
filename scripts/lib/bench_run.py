"""The runtime against llama.cpp's own programs, built from the same tree, with the same file and threads.

Every row is a ratio of pairs in one run; a ratio of speeds is ours over theirs. `texts` are those of `run_texts`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.conftest import USER_CACHE
from tests.support import oracle, smollm2

from edgellm import api
from edgellm.api import launch
from edgellm.formats.records import to_builtins
from edgellm.machine import default_threads
from edgellm.profiler.measure import Spec
from edgellm.runtime.model import Model
from edgellm.workload import Workload
from lib import run_texts
from lib.bench_run_memory import compare_run_memory
from lib.llama_server import LlamaServer, free_port
from lib.pairs import EDGELLM, interval, pairs_of

N_GEN = 128
N_STREAMS = 8
STREAM_CONTEXT = 1024


class Row(NamedTuple):
    """One line of the table: the ratio of each pair, and what is wanted of their median."""

    what: str
    ratios: list[float]
    wanted: str
    note: str


def bench_run(n: int) -> None:
    """All rows, then the table."""
    checkpoint = smollm2.cached_checkpoint(api.resolve("builtin:smollm2").path, USER_CACHE)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        api.convert(checkpoint, quant="Q4_0", output=Path(folder) / "q4_0")
        model = Path(folder) / "q4_0"
        for bench in (_engine, _stream, _together, _prefix, _lookup, _first_token, _memory):
            for row in bench(model, n):
                _print(row)
                rows.append(row)
    print("\n".join(["", "in one table, SmolLM2-135M Q4_0, " + f"{default_threads()} threads:"]))
    for row in rows:
        _print(row)


def _print(row: Row) -> None:
    median, low, high = interval(row.ratios)
    note = f"  {row.note}" if row.note else ""
    print(
        f"{row.what:<62} {median:7.3f}  ({low:.3f} to {high:.3f}, {len(row.ratios)} pairs)  wanted {row.wanted}{note}",
        flush=True,
    )


def _gguf(model: Path) -> Path:
    return model / "model.gguf"


def _llama_bench(model: Path, reps: int, *, n_prompt: int = 0, n_gen: int = 0) -> float:
    """Tokens per second, the median of its repetitions."""
    done = oracle.tool(
        "llama-bench", "-m", _gguf(model), "-p", str(n_prompt), "-n", str(n_gen), "-r", str(reps),
        "-t", str(default_threads()), "-o", "json",
    )  # fmt: skip
    (found,) = json.loads(done.stdout)
    return statistics.median(found["samples_ts"])


def _our_engine(model: Path, reps: int, *, n_prompt: int = 0, n_gen: int = 0) -> float:
    """The same by our profiler's engine regime, in a process of its own."""
    spec = Spec(
        model=str(model),
        workload=Workload(
            id="bench", about="", regime="engine", n_prompt=n_prompt, n_gen=n_gen, reps=reps
        ),
        n_threads=default_threads(), kv_type="F16", flash_attention="auto", gpu_layers="auto", context=1024,
    )  # fmt: skip
    outcome = launch.launch_measure(to_builtins(spec), timeout_s=600)
    found = next(m for m in outcome["measurements"] if m["unit"] == "tok/s")
    return statistics.median(found["samples"])


def _engine(model: Path, n: int) -> Iterator[Row]:
    found = pairs_of(
        lambda: _our_engine(model, 3, n_gen=N_GEN), lambda: _llama_bench(model, 3, n_gen=N_GEN), n
    )
    yield _speeds("engine decode / llama-bench tg128", found, ">= 0.98")
    found = pairs_of(
        lambda: _our_engine(model, 3, n_prompt=512), lambda: _llama_bench(model, 3, n_prompt=512), n
    )
    yield _speeds("engine prefill / llama-bench pp512", found, ">= 0.97")


def _speeds(what: str, found: Sequence[tuple[float, float]], wanted: str) -> Row:
    ours, theirs = (statistics.median(side) for side in zip(*found, strict=True))
    note = f"[{ours:.1f} and {theirs:.1f} tok/s]"
    return Row(what, [a / b for a, b in found], wanted, note)


def _decode_speed(model: Model) -> float:
    """Tokens per second between the first piece of a stream and its last, greedy, text out."""
    stream = model.stream(
        run_texts.STORY, max_tokens=N_GEN, temperature=0, cache_prompt=False, speculate=False
    )
    moments = [time.perf_counter() for _ in stream]
    if len(moments) != N_GEN:
        raise RuntimeError(f"the answer has {len(moments)} tokens, {N_GEN} were expected")
    return (N_GEN - 1) / (moments[-1] - moments[0])


def _stream(model: Path, n: int) -> Iterator[Row]:
    for isolate, what, wanted in (
        (False, "Model.stream, one request / llama-bench tg128", ">= 0.95"),
        (True, "the same with isolate=True / llama-bench tg128", ">= 0.93"),
    ):
        with api.load(model, context=STREAM_CONTEXT, isolate=isolate) as loaded:
            found = pairs_of(
                lambda: statistics.median(_decode_speed(loaded) for _ in range(3)),
                lambda: _llama_bench(model, 3, n_gen=N_GEN),
                n,
            )
        yield _speeds(what, found, wanted)


class _Round(NamedTuple):
    """Several streams at once: tokens per second of all together, and the wait of each for its first token."""

    tok_per_s: float
    ttft_s: list[float]


def _at_once(stream: Callable[[str, Callable[[], None]], int]) -> _Round:
    """Run one stream per text of `run_texts.QUESTIONS`, each in a thread; it calls back with each token."""
    ttft_s, n_tokens, failed = [], [], []
    barrier = threading.Barrier(N_STREAMS + 1)

    def client(text: str) -> None:
        first: list[float] = []

        def token() -> None:
            if not first:
                first.append(time.perf_counter())

        try:
            barrier.wait()
            asked = time.perf_counter()
            n_tokens.append(stream(text, token))
            ttft_s.append(first[0] - asked)
        except Exception as err:
            failed.append(err)

    threads = [threading.Thread(target=client, args=(text,)) for text in run_texts.QUESTIONS[:N_STREAMS]]
    for thread in threads:
        thread.start()
    barrier.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    if failed:
        raise failed[0]
    return _Round(sum(n_tokens) / seconds, sorted(ttft_s))


def _together(model: Path, n: int) -> Iterator[Row]:
    with (
        api.load(model, context=STREAM_CONTEXT, parallel=N_STREAMS, cache_bytes=0) as loaded,
        LlamaServer(_gguf(model), free_port(), n_slots=N_STREAMS, context=STREAM_CONTEXT) as server,
    ):

        def ours(text: str, token: Callable[[], None]) -> int:
            n_tokens = 0
            for piece in loaded.stream(
                text, max_tokens=N_GEN, temperature=0, cache_prompt=False, speculate=False
            ):
                token()
                n_tokens += len(piece.token_ids)
            return n_tokens

        def theirs(text: str, token: Callable[[], None]) -> int:
            return server.complete(text, N_GEN, token)

        found = pairs_of(lambda: _at_once(ours), lambda: _at_once(theirs), n)
    yield _speeds(
        f"{N_STREAMS} streams at once, tokens/s / llama-server",
        [(a.tok_per_s, b.tok_per_s) for a, b in found],
        ">= 1",
    )
    late = [(_p95(a.ttft_s), _p95(b.ttft_s)) for a, b in found]
    medians = [statistics.median(side) for side in zip(*late, strict=True)]
    yield Row(
        f"{N_STREAMS} streams at once, TTFT p95 / llama-server", [a / b for a, b in late], "<= 1",
        f"[{medians[0]:.3f} and {medians[1]:.3f} s]",
    )  # fmt: skip


def _p95(values: Sequence[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.95 * len(values)))]


def _ttft_s(model: Model, prompt: str) -> float:
    return model.generate(prompt, max_tokens=1, temperature=0).usage.ttft_s


def _prefix(model: Path, n: int) -> Iterator[Row]:
    ratios, seconds = [], []
    with api.load(model, context=4096, cache_bytes=0) as loaded:
        for i in range(n + 1):
            shared = run_texts.long_text(2000, seed=i, count=lambda text: len(loaded.tokenize(text)))
            first = _ttft_s(loaded, shared + "\nQuestion: who was first? Answer:")
            second = _ttft_s(loaded, shared + "\nQuestion: what was seen at noon? Answer:")
            if i:  # one before is not counted
                ratios.append(first / second)
                seconds.append((first, second))
    a, b = (statistics.median(side) for side in zip(*seconds, strict=True))
    yield Row(
        "first of two with a prefix of 2,000 tokens / second, TTFT",
        ratios,
        ">= 10",
        f"[{a:.3f} and {b:.3f} s]",
    )


def _generation_s(model: Model, prompt: object, *, speculate: bool) -> float:
    done = model.generate(
        prompt,  # type: ignore[arg-type]
        max_tokens=160, temperature=0, speculate=speculate, cache_prompt=False,
    )  # fmt: skip
    return done.usage.decode_s / done.usage.completion_tokens


def _lookup(model: Path, n: int) -> Iterator[Row]:
    # The embedded model can copy; at Q4_0, made of its dithered weights, it cannot.
    tasks = [("builtin:smollm2", "rewriting with one change (Q4_1)", run_texts.COPY, ">= 1.6")]
    tasks += [(str(model), name, text, ">= 0.97") for name, text in run_texts.ORDINARY]
    for path, name, text, wanted in tasks:
        with api.load(path, context=2048) as loaded:
            runs = [
                functools.partial(_generation_s, loaded, text, speculate=speculate)
                for speculate in (True, False)
            ]
            found = pairs_of(runs[0], runs[1], n)
        yield Row(
            f"prompt lookup / none, {name}", [b / a for a, b in found], wanted,
            f"[{1 / statistics.median(a for a, _ in found):.1f} tok/s]",
        )  # fmt: skip


def _until_first_word(command: Sequence[str | Path], word: bytes) -> float:
    """Seconds from the start of a process until its standard output has this word."""
    started = time.perf_counter()
    child = subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    )
    assert child.stdout is not None
    seen, first = b"", None
    with contextlib.closing(child.stdout):
        while piece := child.stdout.read(4096):
            seen += piece
            if first is None and word in seen:
                first = time.perf_counter() - started
    child.wait()
    if first is None:
        raise RuntimeError(f"{command[0]} never said {word!r}: {seen[-500:]!r}")
    return first


def _first_token(model: Path, n: int) -> Iterator[Row]:
    """With a prompt that neither shows again on standard output before its answer."""
    threads = str(default_threads())
    ours = [EDGELLM, "run", model, run_texts.CAPITAL, "--temperature", "0", "--threads", threads]
    ours += ["--context", "4096", "--max-tokens", "8", "--quiet"]
    theirs = [
        oracle.native_build() / "bin" / "llama-cli", "-m", _gguf(model), "-p", run_texts.CAPITAL, "--temp", "0",
        "-t", threads, "-c", "4096", "-n", "8", "--single-turn", "--no-display-prompt", "--simple-io",
    ]  # fmt: skip
    found = pairs_of(
        lambda: _until_first_word(ours, run_texts.CAPITAL_BEGINS),
        lambda: _until_first_word(theirs, run_texts.CAPITAL_BEGINS),
        max(n, 11),
    )
    a, b = (statistics.median(side) for side in zip(*found, strict=True))
    yield Row(
        "edgellm run to the first token / llama-cli, second load", [x / y for x, y in found], "<= 1.5",
        f"[{a:.3f} and {b:.3f} s]",
    )  # fmt: skip


def _memory(model: Path, n: int) -> Iterator[Row]:
    found = [compare_run_memory(1, str(model)) for _ in range(min(n, 3))]
    yield Row("memory beyond weights and KV cache / a bare loop", [one.ratio for one in found], "<= 1.3", "")

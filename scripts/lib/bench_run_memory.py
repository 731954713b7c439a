"""Memory of a process that runs a model, beyond the model's file and its KV cache, against a bare llama_decode loop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from edgellm import api
from edgellm.formats.gguf import read_gguf
from edgellm.machine import default_threads
from edgellm.shape import shape_of_gguf
from lib.pairs import MIB

CONTEXT, N_TOKENS = 1024, 32
WORDS = "Write a long story about a lighthouse keeper and the sea."


class Memory(NamedTuple):
    """Resident memory of one process after it has generated some text.

    Attributes:
        anonymous_bytes: heap, KV cache and buffers.  file_bytes: mapped files (code and data) without the model.
        model_bytes: of the model's file.  by_file: file_bytes of the files that take most.
    """

    anonymous_bytes: int
    file_bytes: int
    model_bytes: int
    by_file: dict[str, int]


class Compared(NamedTuple):
    """Medians of both sides, the KV cache that both have, and the ratio of what is beyond weights and KV."""

    ours: Memory
    theirs: Memory
    kv_bytes: int
    ratio: float


def compare_run_memory(n: int = 3, model: str = "builtin:smollm2") -> Compared:
    """Ours is `edgellm.load` and one answer; theirs the same model, context, batch, threads and KV type."""
    opened = api.open_artifact(model)
    path = opened.model_path
    sides = []
    for role in ("ours", "theirs"):
        found = [_run(role, path, model) for _ in range(n)]
        sides.append(sorted(found, key=lambda m: m.anonymous_bytes + m.file_bytes)[n // 2])
    kv_bytes = shape_of_gguf(read_gguf(Path(path))).kv_bytes(CONTEXT, "F16")
    ours, theirs = (side.anonymous_bytes + side.file_bytes - kv_bytes for side in sides)
    return Compared(sides[0], sides[1], kv_bytes, ours / theirs)


def bench_run_memory(n: int) -> None:
    """One row with the ratio, and where the memory is."""
    found = compare_run_memory(n)
    print(
        f"{'memory of a run beyond weights and KV / bare loop':<58} {found.ratio:6.3f}  "
        f"(medians of {n} runs)  wanted <= 1.3"
    )
    for name, side in (("ours", found.ours), ("bare loop", found.theirs)):
        anonymous = side.anonymous_bytes - found.kv_bytes
        print(
            f"{f'  {name}: MiB anonymous without KV, mapped files':<58} {anonymous / MIB:.1f} and {side.file_bytes / MIB:.1f}"
        )
    print(
        f"{'  MiB of the KV cache, of the model file (both sides)':<58} {found.kv_bytes / MIB:.1f} and ",
        end="",
    )
    print(f"{found.ours.model_bytes / MIB:.1f}, {found.theirs.model_bytes / MIB:.1f}")
    more = {
        name: n_bytes - found.theirs.by_file.get(name, 0)
        for name, n_bytes in found.ours.by_file.items()
        if n_bytes - found.theirs.by_file.get(name, 0) > MIB // 4
    }
    for name, n_bytes in sorted(more.items(), key=lambda item: -item[1]):
        print(f"{f'  more here, MiB: {name}':<58} {n_bytes / MIB:.1f}")


def _run(role: str, path: str, model: str) -> Memory:
    """In a fresh process."""
    argv = [sys.executable, "-m", "lib.bench_run_memory", role, path, model]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def _ours(model: str) -> None:
    import edgellm

    with edgellm.load(model, context=CONTEXT, threads=default_threads()) as loaded:
        loaded.generate(WORDS, max_tokens=N_TOKENS, temperature=0)
        _report()


def _theirs(path: str) -> None:
    import ctypes

    from llama_cpp import llama_cpp as lib

    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(os.fsencode(path), lib.llama_model_default_params())
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = CONTEXT, 2048, 512
    params.n_threads = params.n_threads_batch = default_threads()
    params.no_perf = True
    context = lib.llama_init_from_model(model, params)
    vocab = lib.llama_model_get_vocab(model)
    tokens = (ctypes.c_int32 * 64)()
    words = WORDS.encode()
    n = lib.llama_tokenize(vocab, words, len(words), tokens, len(tokens), True, False)
    sampler = lib.llama_sampler_init_greedy()
    lib.llama_decode(context, lib.llama_batch_get_one(tokens, n))
    one = (ctypes.c_int32 * 1)()
    for _ in range(N_TOKENS):
        one[0] = lib.llama_sampler_sample(sampler, context, -1)
        lib.llama_decode(context, lib.llama_batch_get_one(one, 1))
    _report()


def _report() -> None:
    """Print what this process holds, by /proc/self/smaps."""
    model_file = os.path.realpath(sys.argv[2])
    anonymous = file = model = 0
    by_file: dict[str, int] = {}
    name = ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, _, rest = line.partition(":")
        if " " in key or not rest.endswith("kB"):
            parts = line.split(maxsplit=5)
            if "-" in parts[0]:
                name = parts[5] if len(parts) > 5 and parts[5].startswith("/") else ""
            continue
        n_bytes = int(rest.split()[0]) * 1024
        if key == "Rss" and name:
            by_file[name] = by_file.get(name, 0) + n_bytes
        elif key == "Anonymous":
            anonymous += n_bytes
            if name:
                by_file[name] -= n_bytes
    for name, n_bytes in by_file.items():
        if os.path.realpath(name) == model_file:
            model += n_bytes
        else:
            file += n_bytes
    largest = dict(sorted(by_file.items(), key=lambda item: -item[1])[:40])
    short = {
        Path(name).name: n_bytes for name, n_bytes in largest.items() if os.path.realpath(name) != model_file
    }
    print(
        json.dumps({"anonymous_bytes": anonymous, "file_bytes": file, "model_bytes": model, "by_file": short})
    )


if __name__ == "__main__":
    if sys.argv[1] == "ours":
        _ours(sys.argv[3])
    else:
        _theirs(sys.argv[2])

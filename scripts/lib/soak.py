"""Behind scripts/soak."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.conftest import USER_CACHE
from tests.support import flips, hazards, smollm2

from edgellm import api
from edgellm.formats.gguf import read_gguf

FLIPPED_BYTES = 64 * 1024  # most of what a parser branches on
REPORT_EVERY = 1000


def main() -> int:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(
        prog="scripts/soak", description="What the tests do a few times, many times."
    )
    parser.add_argument(
        "what", choices=["kills", "flips", "all"], help="kill conversions; damage model files; or both"
    )
    parser.add_argument(
        "--kills", type=int, default=200, help="conversions to kill at random moments (default 200)"
    )
    parser.add_argument("--flips", type=int, default=10_000, help="files to damage (default 10,000)")
    parser.add_argument(
        "--native-every",
        type=int,
        default=10,
        metavar="N",
        help="of the damaged files that Python does not refuse, every Nth is loaded by llama.cpp in a child (default 10)",
    )
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), help="of all draws; by default the time"
    )
    options = parser.parse_args()
    parts = {"kills": kills, "flips": damage}
    chosen = list(parts) if options.what == "all" else [options.what]
    return max(parts[name](options) for name in chosen)


def kills(options: argparse.Namespace) -> int:
    """Kill conversions; 1 where once neither the old artifact nor the new one was there."""
    like = smollm2.cached_checkpoint(api.resolve("builtin:smollm2").path, USER_CACHE)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model = hazards.small_model(root / "model", like)
        (root / "outputs").mkdir()
        try:
            found = hazards.kill_at_random_moments(model, root / "outputs", options.kills, options.seed)
        except AssertionError as err:
            print(f"soak: seed {options.seed}: {err}", file=sys.stderr)
            return 1
    print(
        f"soak: {options.kills} kills, seed {options.seed}: the old artifact {found['old']} times, the new {found['new']}"
    )
    return 0


def damage(options: argparse.Namespace) -> int:
    """Flip bits of the embedded model; 1 where Python answered with anything but a short line, or a child died."""
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder, flips.Loader() as loader:
        path = Path(shutil.copyfile(api.resolve("builtin:smollm2").path, Path(folder) / "model.gguf"))
        n_header = read_gguf(path).data_offset
        for number in range(options.flips):
            # Every fourth in the whole header: the tail of the vocabulary, and the tensors behind it.
            n_bytes = n_header if number % 4 == 3 else min(FLIPPED_BYTES, n_header)
            seed = options.seed * 1_000_003 + number
            try:
                verdict = _verdict(
                    path, seed, n_bytes, loader if number % options.native_every == 0 else None
                )
            except AssertionError as err:
                verdict = "wrong answer of the parser"
                wrong.append(f"seed {seed}: {err}")
            if verdict == "crash":
                wrong.append(f"seed {seed}: {loader.crashes[-1].message}")
            counts[verdict] += 1
            if (number + 1) % REPORT_EVERY == 0:
                print(f"soak: {number + 1} of {options.flips}: {_said(counts)}", flush=True)
    print(f"soak: {options.flips} damaged headers, seed {options.seed}: {_said(counts)}")
    for line in wrong:
        print(f"soak: {line}", file=sys.stderr)
    return 1 if wrong else 0


def _verdict(path: Path, seed: int, n_bytes: int, loader: flips.Loader | None) -> str:
    """What becomes of the file with some bits flipped; they are put back."""
    places = flips.flips(seed, n_bytes)
    _flip(path, places)
    try:
        if flips.is_refused(path):
            return "refused by the parser"
        return loader.verdict(path) if loader else "read, not loaded"
    finally:
        _flip(path, places)


def _flip(path: Path, places: list[tuple[int, int]]) -> None:
    with path.open("r+b") as file:
        for place, mask in places:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ mask]))


def _said(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {n}" for name, n in sorted(counts.items()))


sys.exit(main())

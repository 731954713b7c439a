"""Behind scripts/soak."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.conftest import USER_CACHE
from tests.support import hazards, smollm2

from edgellm import api


def main() -> int:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(
        prog="scripts/soak", description="Kill conversions at random moments, many times."
    )
    parser.add_argument("--kills", type=int, default=200, help="how many (default 200)")
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), help="of the moments; by default the time"
    )
    options = parser.parse_args()
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


sys.exit(main())

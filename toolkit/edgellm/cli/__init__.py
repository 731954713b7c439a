"""The command line: flags and words over `edgellm.api`; no logic.

stdout is the result, stderr is words and progress. Commands are imported when they are called, so `--help` is fast.
"""

from __future__ import annotations

import sys


def main() -> None:
    """The command `edgellm`; ends the process with an exit code of `edgellm.errors`."""
    from edgellm.cli.main import run

    sys.exit(run(sys.argv[1:]))

"""The command line: flags and words over `edgellm.api`; no logic.

stdout is the result, stderr is words and progress. Commands are imported when they are called, so `--help` is fast.
"""

from __future__ import annotations

import sys


def main() -> None:
    """The command `edgellm`; ends the process with an exit code of `edgellm.errors`."""
    try:
        from edgellm.cli.main import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # while importing, or while an error is being said
        code = 130
    sys.exit(code)

"""The command as users start it: a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

EDGELLM = [sys.executable, "-P", "-m", "edgellm"]
CAPITAL = "What is the capital of France? Answer in one word."


def edgellm(
    *arguments: str | Path,
    stdin: str | bytes = b"",
    cwd: Path | None = None,
    timeout_s: float = 300,
    **env: str,
) -> subprocess.CompletedProcess[str]:
    """Run `edgellm ARGUMENTS`; its output is text, its exit code is not judged."""
    done = subprocess.run(
        [*EDGELLM, *map(str, arguments)],
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True, cwd=cwd, env=os.environ | env, timeout=timeout_s, check=False,
    )  # fmt: skip
    out, err = (data.decode("utf-8", errors="surrogateescape") for data in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


def succeed(*arguments: str | Path, **options: Any) -> str:
    """What a command that must succeed printed."""
    done = edgellm(*arguments, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(code: int, *arguments: str | Path, **options: Any) -> list[str]:
    """The lines on stderr of a command that must fail with that exit code: an error, perhaps a table and a hint."""
    done = edgellm(*arguments, **options)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    lines = done.stderr.splitlines()
    assert lines[0].startswith("error: "), done.stderr
    assert len(lines) == 1 or lines[-1].startswith("hint: "), done.stderr
    assert all(line.startswith("  ") for line in lines[1:-1]), done.stderr
    assert "Traceback" not in done.stderr
    return lines


def refused_json(code: int, *arguments: str | Path, **options: Any) -> dict[str, Any]:
    """The error object on stderr of a command that must fail with `--json`."""
    done = edgellm(*arguments, "--json", **options)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    error: dict[str, Any] = json.loads(done.stderr)["error"]
    assert set(error) == {"type", "message", "hint", "exit_code"}
    assert error["exit_code"] == code
    return error

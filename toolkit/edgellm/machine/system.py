"""What the operating system answers when asked by a command or a library: macOS, Windows, boards.

A command that is absent, fails or takes longer than two seconds is None.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from edgellm.machine.files import read_text

_TIMEOUT_S = 2.0


def command_output(*argv: str) -> str | None:
    """What a short command prints, stripped; None if it fails or prints nothing."""
    program = shutil.which(argv[0])
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *argv[1:]],
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace").strip() or None


def sysctl(name: str) -> str | None:
    """A value of macOS' sysctl; None on other systems."""
    return command_output("sysctl", "-n", name) if sys.platform == "darwin" else None


def sysctl_int(name: str) -> int | None:
    """A number of macOS' sysctl."""
    text = sysctl(name)
    return int(text) if text and text.isdecimal() else None


def psutil() -> Any:
    """The library psutil, imported when first asked: it answers where there are no files to read."""
    import psutil as library  # type: ignore[import-untyped,unused-ignore]

    return library


def board(root: Path) -> str | None:
    """The board's own name from its device tree, for example `Raspberry Pi 5 Model B Rev 1.0`."""
    return (
        read_text(root / "proc/device-tree/model")
        or read_text(root / "sys/firmware/devicetree/base/model")
        or None
    )


def windows_features() -> list[str]:
    """Instruction sets that Windows reports; empty elsewhere.

    Source: IsProcessorFeaturePresent, constants of winnt.h.
    """
    if sys.platform != "win32":
        return []
    import ctypes

    present = ctypes.windll.kernel32.IsProcessorFeaturePresent
    numbers = {"SSE4_2": 38, "AVX": 39, "AVX2": 40, "AVX512F": 41, "NEON": 19, "DOTPROD": 43}
    return [name for name, number in numbers.items() if present(number)]

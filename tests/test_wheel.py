"""The wheel carries its data: targets and workloads are found without a checkout."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
from edgellm import resources, targets, workload
print(resources.data_directory("targets"))
print(",".join(targets.available()))
print(",".join(workload.available()))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from this checkout, without reaching for the network."""
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", out, ROOT],
        check=True, capture_output=True,
    )  # fmt: skip
    return next(out.glob("edgellm-*.whl"))


def test_data_is_found_in_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    """An unpacked wheel, with no checkout on the path, lists the same targets and workloads as the checkout."""
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(site)!r})\n{PROGRAM}"],
        check=True, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    place, targets, workloads = done.stdout.splitlines()
    assert Path(place).is_relative_to(site)
    assert targets.split(",") == sorted(path.stem for path in (ROOT / "targets").glob("*.toml"))
    assert workloads.split(",") == sorted(path.stem for path in (ROOT / "profiles/workloads").glob("*.toml"))


def test_the_wheel_holds_nothing_but_the_package(wheel: Path) -> None:
    """No tests, scripts or build leftovers are shipped."""
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert tops == {"edgellm", f"edgellm-{wheel.name.split('-')[1]}.dist-info"}

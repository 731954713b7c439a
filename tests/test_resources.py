"""Where shipped data is found: a checkout, a wheel, a PyInstaller bundle, or nowhere."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgellm import resources
from edgellm.errors import EdgeLLMError

REPOSITORY = Path(__file__).resolve().parent.parent


def test_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "toolkit" / "edgellm"
    (tmp_path / "profiles").mkdir(parents=True)
    monkeypatch.setattr(resources, "_PACKAGE", package)
    assert resources.data_directory("profiles") == tmp_path / "profiles"


def test_this_checkout_has_workloads() -> None:
    assert (resources.data_directory("profiles") / "workloads" / "tg128.toml").is_file()


def test_wheel_wins_over_what_lies_beside_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "toolkit" / "edgellm"
    for folder in (package / "_data" / "targets", tmp_path / "targets"):
        folder.mkdir(parents=True)
    monkeypatch.setattr(resources, "_PACKAGE", package)
    assert resources.data_directory("targets") == package / "_data" / "targets"


def test_bundle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "bundle" / "edgellm" / "_data" / "targets"
    folder.mkdir(parents=True)
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "site-packages" / "edgellm")
    monkeypatch.setattr(sys, "_MEIPASS", str(tmp_path / "bundle"), raising=False)
    assert resources.data_directory("targets") == folder


def test_folders_beside_site_packages_are_not_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "targets").mkdir()
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "site-packages" / "edgellm")
    with pytest.raises(EdgeLLMError, match="'targets' is not part of this installation") as caught:
        resources.data_directory("targets")
    assert caught.value.hint

"""A hub on the loopback interface, and an environment that points at it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from edgellm.hub.client import HubClient
from tests.support.fake_hub import FakeHub
from tests.support.tiny_llama import write_tiny_llama

TOKEN = "hf_this0is0a0secret0of0the0tests"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded model as a local directory, with a licence, and with files that no conversion needs."""
    directory = write_tiny_llama(tmp_path_factory.mktemp("local") / "tiny", n_shards=3)
    (directory / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    (directory / "pytorch_model.bin").write_bytes(b"pickle")
    (directory / "evil.py").write_text("raise SystemExit")
    (directory / "onnx").mkdir()
    (directory / "onnx" / "model.onnx").write_bytes(b"onnx")
    return directory


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The cache directory of the test."""
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def online(clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are allowed: each test here names the hub that it asks."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # read when it was imported


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """An empty hub, which HF_ENDPOINT names."""
    with FakeHub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("EDGELLM_CACHE", str(cache))
        monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "20")
        yield server
    huggingface_hub.close_session()


@pytest.fixture
def waits() -> list[float]:
    """Seconds that the client would have waited."""
    return []


@pytest.fixture
def client(hub: FakeHub, waits: list[float]) -> HubClient:
    """A client that does not sleep."""
    return HubClient(sleep=waits.append)

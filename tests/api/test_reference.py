"""The reference by transformers: equal to ours on a tiny model, named in the receipt, replaced with a reason."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgellm import api
from edgellm.api import receipts, reference
from edgellm.api.unquantized import Unquantized
from edgellm.artifact import Artifact
from edgellm.checkpoint import open_checkpoint
from edgellm.convert import pipeline
from edgellm.errors import BackendUnavailable, QualityError
from tests.support import oracle
from tests.support.tiny_llama import write_tiny_llama


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # The text must hold a chunk of 512 tokens.
    config = {"max_position_embeddings": 1024}
    return write_tiny_llama(tmp_path_factory.mktemp("m") / "tiny", config)


@pytest.fixture(scope="module")
def artifact(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return api.convert(tiny, quant="Q8_0", output=tmp_path_factory.mktemp("a") / "tiny-q8")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(reference.PYTHON_VARIABLE, str(oracle.ORACLE_PYTHON))


@pytest.mark.usefixtures("installed")
def test_both_engines_measure_the_same_distance(tiny: Path, artifact: Artifact) -> None:
    receipts = {
        engine: api.verify(artifact.path, reference=tiny, engine=engine)
        for engine in ("transformers", "gguf")
    }
    by_transformers, by_gguf = receipts["transformers"], receipts["gguf"]
    assert by_transformers is not None
    assert by_gguf is not None
    assert by_transformers.reference_engine.startswith("transformers 4.")
    assert "llama.cpp" in by_gguf.reference_engine
    assert "unquantized GGUF" in by_gguf.reference_engine
    assert by_transformers.n_tokens == by_gguf.n_tokens
    assert by_transformers.kl_mean == pytest.approx(by_gguf.kl_mean, rel=0.2)
    assert 1e-6 < by_transformers.kl_mean < 0.03


@pytest.mark.usefixtures("installed")
def test_transformers_is_used_where_it_is_installed(tiny: Path, artifact: Artifact) -> None:
    receipt = api.verify(artifact.path, reference=tiny)
    assert receipt is not None
    assert receipt.reference_engine.startswith("transformers")
    assert receipt.reference_because == "installed"


def test_without_transformers_the_gguf_is_the_reference_and_the_receipt_says_why(
    tiny: Path, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference.resources, "export_environments", list)
    receipt = api.verify(artifact.path, reference=tiny)
    assert receipt is not None
    assert "unquantized GGUF" in receipt.reference_engine
    assert receipt.reference_because == "transformers is not installed"


def test_an_interpreter_without_transformers_is_a_reason_not_a_failure(
    tiny: Path, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(reference.PYTHON_VARIABLE, sys.executable)
    receipt = api.verify(artifact.path, reference=tiny)
    assert receipt is not None
    assert "No module named 'torch'" in receipt.reference_because
    with pytest.raises(BackendUnavailable, match="No module named 'torch'"):
        api.verify(artifact.path, reference=tiny, engine="transformers")


def test_a_model_too_large_for_float32_is_not_tried(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference.machine, "available_memory_bytes", lambda: 1 << 20)
    said = reference.why_not(Unquantized(pipeline.read_source(open_checkpoint(tiny))))
    assert said is not None
    assert "float32 weights need" in said


def test_bounds_are_the_lower_of_target_and_type_unless_asked() -> None:
    from edgellm import targets

    laptop = targets.load("x86-avx2")
    assert laptop.quality is not None
    check = receipts.Check(target=laptop)
    assert check.bounds("Q2_K") == (laptop.quality.max_kl, laptop.quality.min_top1_agreement)
    assert check.bounds("F32") == (0.01, laptop.quality.min_top1_agreement)
    assert receipts.Check(target=laptop, max_kl=3.0, min_top1=0.1).bounds("Q2_K") == (3.0, 0.1)
    assert receipts.Check().bounds("F32") == (0.01, 0.0)


def test_a_result_below_the_targets_bound_is_kept_as_rejected(tiny: Path, tmp_path: Path) -> None:
    """A random model has near ties everywhere: at two bits its best token is seldom the same."""
    output = tmp_path / "out"
    with pytest.raises(QualityError, match=r"kept as out\.rejected"):
        api.convert(
            tiny, quant="Q4_0", target="x86-avx2", output=output, verify="quick", engine="gguf", max_kl=100.0
        )
    assert not output.exists()
    rejected = api.open_artifact(tmp_path / "out.rejected")
    assert rejected.receipt is not None
    assert rejected.receipt.verdict == "fail"
    assert rejected.receipt.top1_agreement < rejected.receipt.min_top1_agreement == 0.85

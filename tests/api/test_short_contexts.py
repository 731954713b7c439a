"""Models whose context is shorter than a chunk: measured within it, where positions end and where a window ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgellm import api
from edgellm.errors import BadInputError, SpecError
from edgellm.native.llama import LlamaModel, LlamaOptions
from tests.support import tiny_models
from tests.support.families import ROWS
from tests.support.tiny_models import Made

NAMES = ("gpt2", "mistral-window")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    return tiny_models.make([ROWS[name] for name in NAMES], tmp_path_factory.mktemp("short"))


@pytest.mark.parametrize("name", NAMES)
def test_a_receipt_stays_within_the_context(made: dict[str, Made], name: str, tmp_path: Path) -> None:
    """By transformers, which computes windows where llama.cpp does not: equal within the context."""
    result = api.convert(made[name].directory, quant="F32", output=tmp_path / "out", verify="quick")
    assert result.receipt is not None
    assert result.receipt.reference_engine.startswith("transformers")
    assert result.receipt.kl_mean is not None
    assert result.receipt.kl_mean < 1e-3
    assert result.manifest.context_train < 512


def test_importance_and_mixes_stay_within_the_context(made: dict[str, Made], tmp_path: Path) -> None:
    directory = made["gpt2"].directory
    collected = api.convert(directory, quant="Q4_0", tensor_types=["ffn_down=IQ2_S"], output=tmp_path / "a")
    assert collected.manifest.importance is not None
    assert collected.manifest.importance.chunk_tokens == 256
    mixed = api.convert(directory, bpw=9.0, output=tmp_path / "b")
    assert mixed.manifest.importance is not None
    assert mixed.manifest.importance.chunk_tokens == 256
    words = tmp_path / "words.txt"
    words.write_text("too short")
    with pytest.raises(BadInputError, match="too few"):
        api.convert(directory, bpw=9.0, calibration=words, output=tmp_path / "c")


def test_native_code_is_not_asked_beyond_the_table_of_positions(
    made: dict[str, Made], tmp_path: Path
) -> None:
    path = tiny_models.write_f32(tiny_models.read_source(made["gpt2"].directory), tmp_path / "model.gguf")
    model = LlamaModel(path, LlamaOptions(n_threads=1))
    with pytest.raises(SpecError, match="table of positions ends at 256"):
        model.open(context=257)
    model.close()

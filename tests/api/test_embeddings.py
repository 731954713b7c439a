"""Encoders end to end: their receipts, what rejects them, and where an embedding model cannot be used."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgellm import api, machine, outside
from edgellm.api import calibration, receipts, reference
from edgellm.api.unquantized import Unquantized
from edgellm.artifact import Artifact
from edgellm.checkpoint import open_checkpoint
from edgellm.cli.words import receipt_line
from edgellm.convert import pipeline
from edgellm.convert.quality_embeddings import GOLDEN_TEXTS
from edgellm.errors import BadInputError, ContextOverflowError, QualityError, SpecError, UnsupportedError
from edgellm.native.llama import LlamaModel, LlamaOptions
from edgellm.protocols import Pooling
from tests.support import oracle
from tests.support.cli import refused
from tests.support.tiny_bert import CONTEXT, write_readable_bert
from tests.support.tiny_llama import write_tiny_llama
from tests.support.tiny_models import write_pooling


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine two threads wait for each other; no figure here depends on their number."""
    monkeypatch.setattr(machine, "default_threads", lambda: 1)
    monkeypatch.setattr(machine, "usable_cores", lambda: 1)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_readable_bert(tmp_path_factory.mktemp("m") / "encoder")


@pytest.fixture(scope="module")
def artifact(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("a") / "q8"
    return api.convert(encoder, target="rpi5", quant="Q8_0", output=out, verify="quick", engine="gguf")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(reference.PYTHON_VARIABLE, str(oracle.ORACLE_PYTHON))


def copied(encoder: Path, place: Path) -> Path:
    shutil.copytree(encoder, place)
    return place


def test_the_receipt_of_an_encoder_holds_cosines_and_nothing_of_next_tokens(artifact: Artifact) -> None:
    receipt = artifact.receipt
    assert receipt is not None
    assert (receipt.kind, receipt.verdict, receipt.min_cosine) == ("embedding", "pass", 0.995)
    assert receipt.cosine_min is not None
    assert receipt.cosine_mean is not None
    assert 0.995 < receipt.cosine_min <= receipt.cosine_mean < 1
    assert receipt.n_tokens <= 1024
    assert receipt.n_texts == 32  # 10 times 16 + 40 + 40 tokens, and 16 + 40 more
    assert receipt.kl_mean is receipt.top1_agreement is receipt.perplexity_ratio is receipt.golden is None
    assert receipt.same_parents is True
    assert "cosine" in receipt_line(receipt)
    assert "KL" not in receipt_line(receipt)


def test_golden_embeddings_come_again(artifact: Artifact) -> None:
    assert artifact.receipt is not None
    golden = artifact.receipt.golden_embeddings
    assert golden is not None
    assert [record.text for record in golden] == list(GOLDEN_TEXTS)
    model = LlamaModel(Path(artifact.model_path), LlamaOptions(n_threads=1))
    embedder = model.open_embedder(context=CONTEXT)
    for record in golden:
        row = embedder.embed(record.token_ids, normalize=True)[0]
        np.testing.assert_allclose(row[:8], record.first_values, atol=1e-6)
    embedder.close()
    model.close()


def test_the_manifest_tells_two_files_of_one_name_apart(artifact: Artifact) -> None:
    names = [parent.name for parent in artifact.manifest.parents]
    assert {"config.json", "1_Pooling/config.json", "modules.json"} < set(names)
    assert len(names) == len(set(names))


def test_the_recipe_of_an_encoder_has_no_cache(encoder: Path, artifact: Artifact) -> None:
    recipe = artifact.manifest.recipe
    assert recipe is not None
    assert recipe.kv_type is None
    assert not [reason for reason in recipe.reasons if reason.choice.startswith("kv_type")]
    assert "KV cache" not in str(recipe.reasons)
    assert recipe.predicted_memory_bytes["kv"] == 0
    with pytest.raises(SpecError, match="keeps no KV cache"):
        api.plan_conversion(encoder, target="rpi5", kv_type="F16")
    chosen = api.plan_conversion(encoder, target="rpi5").recipe.reasons[0]
    assert "cosine" in chosen.because
    assert "SmolLM2" not in chosen.because


@pytest.mark.usefixtures("installed")
def test_transformers_is_the_reference_where_it_is_installed(encoder: Path, artifact: Artifact) -> None:
    by_transformers = api.verify(artifact.path, reference=encoder)
    assert by_transformers is not None
    assert by_transformers.reference_engine.startswith("transformers 4.")
    assert by_transformers.reference_because == "installed"
    assert artifact.receipt is not None
    assert by_transformers.cosine_min == pytest.approx(artifact.receipt.cosine_min, abs=1e-4)


def test_states_are_pooled_as_llama_cpp_does() -> None:
    states = np.asarray([[1, 2], [3, 4], [5, 9]], dtype=np.float32)
    expected = {"mean": [[3, 5]], "cls": [[1, 2]], "last": [[5, 9]], "none": states.tolist()}
    pooling: Pooling
    for pooling in ("mean", "cls", "last", "none"):
        assert reference.pool(states, pooling).tolist() == expected[pooling]


@pytest.mark.usefixtures("installed")
def test_a_class_that_transformers_has_not_is_a_reason(encoder: Path, tmp_path: Path) -> None:
    """As with Nomic BERT, whose code is in its repository."""
    changed = open_checkpoint(copied(encoder, tmp_path / "changed"))
    changed.config["architectures"] = ["NoSuchModel"]
    found, because = reference.open_transformers(
        Unquantized(pipeline.read_source(open_checkpoint(encoder))),
        lambda _: reference.TransformersEmbedder(changed, context=CONTEXT, pooling="mean", n_threads=1),
    )
    assert found is None
    assert "NoSuchModel" in because


def test_a_weight_that_transformers_would_draw_at_random_is_refused() -> None:
    program = runpy.run_path(str(Path(outside.__file__).parent / "transformers_reference.py"))
    parameters = [("layer.0.weight", 1), ("pooler.dense.weight", 1)]
    base = SimpleNamespace(named_parameters=lambda: parameters)
    model = SimpleNamespace(base_model=base, base_model_prefix="bert")
    assert program["without_head"](model, ["bert.pooler.dense.weight", "cls.predictions.bias"]) is base
    with pytest.raises(SystemExit, match=r"the files have no layer\.0\.weight"):
        program["without_head"](model, ["bert.layer.0.weight"])


def test_too_far_from_the_source_is_kept_as_rejected(encoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(QualityError, match=r"cosine .* less than 0\.9999; kept as out\.rejected") as caught:
        api.convert(encoder, quant="Q4_0", output=out, verify="full", engine="gguf", min_cosine=0.9999)
    assert caught.value.hint is not None
    assert "--min-cosine" in caught.value.hint
    assert not out.exists()
    kept = api.open_artifact(tmp_path / "out.rejected")
    assert kept.receipt is not None
    assert kept.receipt.verdict == "fail"
    assert api.verify(tmp_path / "out.rejected") is None


def test_another_model_fails_and_another_pooling_is_no_comparison(
    encoder: Path, artifact: Artifact, tmp_path: Path
) -> None:
    changed = copied(encoder, tmp_path / "changed")
    write_pooling(changed, {"pooling_mode_cls_token": True})
    with pytest.raises(BadInputError, match="pooling of the reference is cls"):
        api.verify(artifact.path, reference=changed, engine="gguf")
    wrong = copied(encoder, tmp_path / "wrong")
    tensors, name = load_file(wrong / "model.safetensors"), "embeddings.position_embeddings.weight"
    tensors[name] = tensors[name][::-1].copy()
    save_file(tensors, wrong / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(QualityError, match=r"less than 0\.995"):
        api.verify(artifact.path, reference=wrong, engine="gguf")
    decoder = write_tiny_llama(tmp_path / "decoder")
    with pytest.raises(BadInputError, match="gives embeddings, the reference generates text"):
        api.verify(artifact.path, reference=decoder, engine="gguf")


def test_bounds_of_the_other_kind_are_refused_before_anything_is_written(
    encoder: Path, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match="held to a cosine"):
        api.convert(encoder, output=tmp_path / "out", max_kl=0.1, verify="quick")
    with pytest.raises(SpecError, match="held to a KL divergence"):
        api.convert(
            write_tiny_llama(tmp_path / "decoder"), output=tmp_path / "out", min_cosine=0.9, verify="quick"
        )
    assert not (tmp_path / "out").exists()
    receipts.Check(max_kl=0.1).check_kind(is_encoder=False)
    receipts.Check(min_cosine=0.9).check_kind(is_encoder=True)


def test_an_embedding_model_generates_no_text(artifact: Artifact) -> None:
    with (
        api.load(artifact.path) as model,
        pytest.raises(UnsupportedError, match="an embedding model: it generates no text"),
    ):
        model.generate("hello")
    with pytest.raises(UnsupportedError, match="generates no text"):
        api.profile(artifact.path)
    for verb in (("run", artifact.path, "hello"), ("chat", artifact.path), ("profile", artifact.path)):
        said = refused(69, *verb)
        assert "an embedding model: it generates no text" in said[0]
        assert said[1].startswith("hint: ")


@pytest.mark.parametrize("isolate", [False, True])
def test_a_loaded_encoder_embeds_texts(artifact: Artifact, isolate: bool) -> None:
    assert artifact.receipt is not None
    golden = artifact.receipt.golden_embeddings
    assert golden is not None
    with api.load(artifact.path, isolate=isolate) as model:
        assert model.context == CONTEXT
        found = model.embed([record.text for record in golden])
        assert found.usage.prompt_tokens == sum(len(record.token_ids) for record in golden)
        for row, record in zip(found.rows, golden, strict=True):
            np.testing.assert_allclose(row[:8], record.first_values, atol=1e-6)
        plain = model.embed(golden[0].text, normalize=False).rows[0]
        np.testing.assert_allclose(plain / np.linalg.norm(plain), found.rows[0], atol=1e-6)
        with pytest.raises(
            ContextOverflowError, match=rf"text 1: \d+ tokens do not fit the context of {CONTEXT}"
        ):
            model.embed(["short", "The capital of France is Paris. " * 20])
        with pytest.raises(UnsupportedError, match="generates no text"):
            model.generate("hello")


@pytest.mark.parametrize(
    ("setting", "value"), [("kv_type", "F16"), ("parallel", 2), ("adapters", {"a": "b"}), ("cache_bytes", 0)]
)
def test_settings_that_an_encoder_has_no_use_for_are_refused(
    artifact: Artifact, setting: str, value: object
) -> None:
    with pytest.raises(SpecError, match=f"{setting} is .* is an embedding model"):
        api.load(artifact.path, **{setting: value})  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="pooling is 'max', expected one of model, mean, cls, last"):
        api.load(artifact.path, pooling="max")  # type: ignore[arg-type]


def test_a_file_that_names_no_pooling_needs_one(encoder: Path, artifact: Artifact, tmp_path: Path) -> None:
    bare = copied(encoder, tmp_path / "bare")
    (bare / "modules.json").unlink()
    made = api.convert(bare, quant="Q8_0", output=tmp_path / "out")
    with pytest.raises(UnsupportedError, match="does not say how"):
        api.load(made.path)
    text = GOLDEN_TEXTS[0]
    with api.load(made.path, pooling="mean") as model, api.load(artifact.path) as named:
        np.testing.assert_array_equal(model.embed(text).rows, named.embed(text).rows)
    with api.load(made.path, pooling="cls") as model, api.load(artifact.path) as named:
        assert np.abs(model.embed(text).rows - named.embed(text).rows).max() > 0.01


def test_an_importance_matrix_sees_every_token_of_every_layer(encoder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The tide comes twice a day. " * 40)
    with Unquantized(pipeline.read_source(open_checkpoint(encoder))) as unquantized:
        matrix = calibration.collect(unquantized, text)
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down")
    assert set(matrix.entries) == {f"blk.{i}.{name}.weight" for i in range(2) for name in names}
    assert matrix.provenance.chunk_tokens == CONTEXT
    assert {int(entry.counts[0]) for entry in matrix.entries.values()} == {matrix.provenance.n_tokens}
    assert matrix.provenance.n_tokens >= 5 * CONTEXT

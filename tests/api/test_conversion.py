"""convert() and verify() from end to end: what appears on disk, and what is left alone."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from edgellm import api, artifact, machine
from edgellm.api import first_load
from edgellm.api.planning import find_target
from edgellm.api.verification import knows_manifest
from edgellm.artifact import write_record
from edgellm.cli.main import run
from edgellm.convert import header, pipeline
from edgellm.errors import (
    ArtifactError,
    BackendUnavailable,
    BadInputError,
    MissingInputError,
    OutputError,
    OutputExistsError,
    QualityError,
    SpecError,
)
from edgellm.formats.gguf import read_gguf
from edgellm.formats.records import replace
from tests.support.tiny_llama import write_tiny_llama


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine two threads wait for each other; no figure here depends on their number."""
    monkeypatch.setattr(machine, "default_threads", lambda: 1)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "tiny", {"max_position_embeddings": 1024})


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_hugging_face_directory_becomes_an_artifact(smollm2_hf: Path, tmp_path: Path) -> None:
    stages: dict[str, tuple[int, int]] = {}
    made = api.convert(
        smollm2_hf, target="rpi5", quant="Q8_0", output=tmp_path / "out", verify="quick", engine="gguf", context=1024,
        progress=lambda stage, done, total: stages.update({stage: (done, total)}),
    )  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "manifest.json", "model.gguf", "receipt.json", "tokenizer.json"
    ]  # fmt: skip
    manifest = made.manifest
    assert (manifest.quant, manifest.target, manifest.architecture, manifest.format) == (
        "Q8_0",
        "rpi5",
        "llama",
        "gguf",
    )
    assert manifest.n_params == 134_515_008
    assert manifest.bpw == pytest.approx(8.5, abs=0.05)
    assert manifest.file_bytes == (tmp_path / "out" / "model.gguf").stat().st_size
    assert manifest.recipe is not None
    assert manifest.recipe.context == 1024
    assert {entry.name for entry in manifest.files} == {"model.gguf", "tokenizer.json", "receipt.json"}
    assert {parent.name for parent in manifest.parents} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    assert manifest.created_at is not None
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (smollm2_hf / "tokenizer.json").read_bytes()
    receipt = made.receipt
    assert receipt is not None
    assert receipt.verdict == "pass"
    assert 0 < receipt.kl_mean < receipt.max_kl == 0.03
    assert receipt.top1_agreement > 0.9
    assert receipt.n_tokens == 2 * 255
    assert (
        receipt.reference_sha256
        == hashlib.sha256((smollm2_hf / "model.safetensors").read_bytes()).hexdigest()
    )
    assert len(receipt.golden) == 3
    assert stages["convert"] == (manifest.n_params, manifest.n_params)
    assert stages["verify"][0] == stages["verify"][1] > 0
    assert api.verify(tmp_path / "out") is None
    assert artifact.open_directory(tmp_path / "out") == made


def test_the_reference_leaves_nothing_in_the_cache(tiny: Path, tmp_path: Path) -> None:
    api.convert(tiny, quant="F32", output=tmp_path / "out", verify="quick", engine="gguf", max_kl=1e-6)
    cache = Path(os.environ["XDG_CACHE_HOME"]) / "edgellm"
    assert set(cache.rglob("*")) == {cache / "scratch", first_load.place()}


def test_too_far_from_the_source_is_kept_as_rejected_and_has_no_final_name(
    tiny: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(QualityError, match=r"kept as out\.rejected") as caught:
        api.convert(tiny, quant="Q4_0", output=out, verify="quick", engine="gguf", max_kl=1e-9)
    assert caught.value.exit_code == 65
    assert not out.exists()
    kept = artifact.open_directory(tmp_path / "out.rejected")
    assert kept.receipt is not None
    assert kept.receipt.verdict == "fail"
    assert api.verify(tmp_path / "out.rejected") is None
    with pytest.raises(QualityError):  # again: the older rejected one is replaced
        api.convert(tiny, quant="Q4_1", output=out, verify="quick", engine="gguf", max_kl=1e-9)
    assert artifact.open_directory(tmp_path / "out.rejected").manifest.quant == "Q4_1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.rejected", "tiny"]


def test_a_users_directory_named_rejected_is_never_removed(tiny: Path, tmp_path: Path) -> None:
    users = tmp_path / "out.rejected"
    users.mkdir()
    (users / "thesis.txt").write_text("mine")
    with pytest.raises(QualityError, match=r"not kept.*out\.rejected"):
        api.convert(tiny, quant="Q4_0", output=tmp_path / "out", verify="quick", engine="gguf", max_kl=1e-9)
    assert contents(users) == {"thesis.txt": b"mine"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.rejected", "tiny"]


def test_a_failed_check_leaves_the_older_artifact_in_place(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    api.convert(tiny, quant="Q8_0", output=out)
    before = contents(out)
    with pytest.raises(QualityError):
        api.convert(tiny, quant="Q4_0", output=out, verify="quick", engine="gguf", max_kl=1e-9, force=True)
    assert contents(out) == before


def test_an_output_that_exists_is_not_touched(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    api.convert(tiny, quant="Q8_0", output=out)
    before = contents(out)
    with pytest.raises(OutputExistsError) as caught:
        api.convert(tiny, quant="Q4_0", output=out)
    assert caught.value.exit_code == 73
    assert contents(out) == before


def test_force_replaces_an_artifact(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    api.convert(tiny, quant="Q8_0", output=out)
    assert api.convert(tiny, quant="Q4_0", output=out, force=True).manifest.quant == "Q4_0"
    assert api.verify(out) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tiny"]


@pytest.mark.parametrize("kind", ["directory", "file", "empty directory", "link to an artifact"])
def test_what_is_not_an_artifact_is_never_replaced(tiny: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "link to an artifact":
        api.convert(tiny, quant="Q8_0", output=tmp_path / "real")
        out.symlink_to(tmp_path / "real")
    else:
        out.mkdir()
        if kind == "directory":
            (out / "thesis.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(OutputExistsError):
            api.convert(tiny, quant="Q8_0", output=out, force=force)
    assert out.exists()
    if kind == "directory":
        assert contents(out) == {"thesis.txt": b"mine"}


def test_a_plan_writes_nothing(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = api.plan_conversion(tiny, target="rpi5", quant="Q4_0")
    assert plan.output == Path("tiny-rpi5")
    assert plan.needed_bytes > 0
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    made = api.convert(tiny, target="rpi5", quant="Q4_0")
    assert made.manifest.recipe is not None
    assert made.manifest.recipe.tensor_types == plan.recipe.tensor_types
    file = read_gguf(Path(made.model_path))
    assert file.file_bytes == file.data_offset + plan.needed_bytes


@pytest.mark.parametrize("name", ["model.gguf", "tokenizer.json"])
def test_a_flipped_bit_is_found_and_the_file_named(tiny: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    api.convert(tiny, quant="Q8_0", output=out)
    content = bytearray((out / name).read_bytes())
    content[-100] ^= 1
    (out / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name}.*sha256"):
        api.verify(out)


def test_a_file_of_another_size_is_found_on_opening(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    api.convert(tiny, quant="Q8_0", output=out)
    os.truncate(out / "model.gguf", 1000)
    with pytest.raises(ArtifactError, match="1000 bytes"):
        api.open_artifact(out)


def test_verify_with_a_reference(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    api.convert(tiny, quant="Q8_0", output=out)
    receipt = api.verify(out, reference=tiny)
    assert receipt is not None
    assert receipt.verdict == "pass"
    with pytest.raises(QualityError, match="more than 1e-09"):
        api.verify(out, reference=tiny, max_kl=1e-9)


def test_verify_against_another_model_is_refused(tiny: Path, tmp_path: Path, smollm2_gguf: Path) -> None:
    out = tmp_path / "out"
    api.convert(tiny, quant="Q8_0", output=out)
    with pytest.raises(BadInputError, match="not the same model"):
        api.verify(out, reference=smollm2_gguf)


def test_an_artifact_can_be_the_source_of_another(tiny: Path, tmp_path: Path) -> None:
    first = api.convert(tiny, quant="F32", output=tmp_path / "first")
    second = api.convert(tmp_path / "first", quant="Q8_0", output=tmp_path / "second")
    straight = api.convert(tiny, quant="Q8_0", output=tmp_path / "straight")
    assert second.manifest.model == first.manifest.model == "tiny"
    assert second.manifest.warnings == []
    digests = {entry.name: entry.sha256 for entry in first.manifest.files}
    assert digests["model.gguf"] in {parent.sha256 for parent in second.manifest.parents}
    files = [read_gguf(Path(made.model_path)) for made in (second, straight)]
    tensors = [
        {
            t.name: (t.type_name, t.shape, Path(made.model_path).read_bytes()[t.offset :][: t.n_bytes])
            for t in file.tensors.values()
        }
        for file, made in zip(files, (second, straight), strict=True)
    ]
    assert tensors[0] == tensors[1]


def test_provenance_is_in_the_model_itself_and_checked(tiny: Path, tmp_path: Path) -> None:
    made = api.convert(tiny, quant="Q8_0", output=tmp_path / "out")
    header = read_gguf(Path(made.model_path)).metadata
    hashes = {p.name: p.sha256 for p in made.manifest.parents}
    assert set(hashes) >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert {n: header[f"edgellm.parent.sha256.{n}"].value for n in hashes} == hashes
    assert api.verify(tmp_path / "out") is None
    parents = [replace(p, sha256="0" * 64) for p in made.manifest.parents]
    manifest = tmp_path / "out" / "manifest.json"
    manifest.unlink()
    write_record(manifest, replace(made.manifest, parents=parents))
    with pytest.raises(ArtifactError, match=r"sha256 of config\.json"):
        api.verify(tmp_path / "out")
    recipe = made.manifest.recipe
    assert recipe is not None
    types = {**recipe.tensor_types, "output.weight": "Q4_0"}
    manifest.unlink()
    write_record(manifest, replace(made.manifest, recipe=replace(recipe, tensor_types=types)))
    with pytest.raises(ArtifactError, match=r"type of output\.weight is Q4_0, model\.gguf says Q8_0"):
        api.verify(tmp_path / "out")


def test_requantizing_warns_in_the_manifest(tiny: Path, tmp_path: Path) -> None:
    api.convert(tiny, quant="Q8_0", output=tmp_path / "first")
    second = api.convert(tmp_path / "first", quant="Q4_0", output=tmp_path / "second")
    assert len(second.manifest.warnings) == 1
    assert "Q8_0" in second.manifest.warnings[0]


def test_the_number_of_jobs_changes_no_byte(tiny: Path, tmp_path: Path) -> None:
    made = [api.convert(tiny, quant="Q4_K_M", output=tmp_path / f"jobs{n}", jobs=n) for n in (1, 3)]
    assert made[0].manifest.files == made[1].manifest.files


def test_an_interrupted_conversion_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.convert(tiny, quant="Q8_0", output=tmp_path / "out", progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_bad_checkpoint_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    weights = tiny / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    with pytest.raises(BadInputError):
        api.convert(tiny, quant="Q8_0", output=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_disk_without_room_is_refused_before_the_work(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(OutputError, match="free"):
        api.convert(tiny, quant="Q8_0", output=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.parametrize("model", ["not/there", "/not/there", "./nothing"])
def test_a_model_that_is_not_there(model: str) -> None:
    with pytest.raises(MissingInputError):
        api.plan_conversion(model)


def test_unknown_names() -> None:
    with pytest.raises(SpecError, match="rpi9") as caught:
        api.plan_conversion("builtin:smollm2", target="rpi9")
    assert "rpi" in str(caught.value.hint)
    with pytest.raises(SpecError, match="builtin:smollm3"):
        api.plan_conversion("builtin:smollm3")


def test_host_is_this_machine() -> None:
    assert find_target("host") == machine.detect_target()


def test_the_manifest_is_json_that_others_can_read(tiny: Path, tmp_path: Path) -> None:
    api.convert(tiny, quant="Q8_0", output=tmp_path / "out")
    content = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert content["schema"] == "edgellm.manifest/1"
    assert content["tool_versions"] == pipeline.tool_versions()


def test_the_source_is_never_replaced_by_its_own_conversion(tiny: Path, tmp_path: Path) -> None:
    made = Path(api.convert(tiny, output=tmp_path / "made", quant="F16").path)
    before = contents(made)
    with pytest.raises(OutputExistsError, match="holds the source itself"):
        api.convert(made, output=made, quant="Q8_0", force=True)
    assert contents(made) == before


@pytest.mark.parametrize(
    ("field", "value"), [("quant", "Q2_K"), ("n_params", 7), ("bpw", 2.0), ("architecture", "mamba")]
)
def test_a_manifest_that_contradicts_its_model_is_found(
    tiny: Path, tmp_path: Path, field: str, value: object
) -> None:
    made = Path(api.convert(tiny, output=tmp_path / "made", quant="F16").path)
    manifest = json.loads((made / "manifest.json").read_text())
    (made / "manifest.json").write_text(json.dumps({**manifest, field: value}))
    with pytest.raises(ArtifactError, match=f"the manifest says {field}"):
        api.verify(made)


def test_a_manifest_that_leaves_out_what_the_model_was_made_from_is_found(tiny: Path, tmp_path: Path) -> None:
    made = Path(api.convert(tiny, output=tmp_path / "made", quant="F16").path)
    manifest = json.loads((made / "manifest.json").read_text())
    (made / "manifest.json").write_text(json.dumps({**manifest, "parents": manifest["parents"][1:]}))
    with pytest.raises(ArtifactError, match=r"the manifest says sha256 of .* is None"):
        api.verify(made)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("argv", ["rm"]),
        ("tool_versions", {"edgellm": "9"}),
        ("revision", "main"),
        ("target", "rpi4"),
        ("model", "another"),
        ("warnings", ["trust me"]),
        ("recipe", None),
    ],
)
def test_a_manifest_that_was_changed_is_found_by_the_hash_in_the_model(
    tiny: Path, tmp_path: Path, field: str, value: object
) -> None:
    made = Path(api.convert(tiny, output=tmp_path / "made", quant="F16").path)
    path = made / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest))  # other spaces and line ends say the same
    assert api.verify(made) is None
    path.write_text(json.dumps({**manifest, field: value}))
    with pytest.raises(ArtifactError, match=r"manifest\.json: is not as it was written") as caught:
        api.verify(made)
    assert caught.value.hint


def test_a_reason_of_the_recipe_that_was_changed_is_found(tiny: Path, tmp_path: Path) -> None:
    made = Path(api.convert(tiny, output=tmp_path / "made", quant="F16").path)
    manifest = json.loads((made / "manifest.json").read_text())
    manifest["recipe"]["reasons"][0]["because"] = "somebody said so"
    (made / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="is not as it was written"):
        api.verify(made)


def test_the_hash_of_a_manifest_holds_with_receipt_and_warnings_and_in_the_next_conversion(
    tmp_path: Path,
) -> None:
    zeros = {"model.layers.0.mlp.up_proj.weight": np.zeros((96, 64), np.float32)}
    model = write_tiny_llama(tmp_path / "m", tensors=zeros)
    first = api.convert(model, quant="F16", output=tmp_path / "first", verify="quick", engine="gguf")
    assert any("all weights are zero" in warning for warning in first.manifest.warnings)
    second = api.convert(tmp_path / "first", quant="Q8_0", output=tmp_path / "second")
    hashes = set()
    for made in (first, second):
        assert api.verify(made.path) is None
        assert knows_manifest(made)
        hashes.add(read_gguf(Path(made.model_path)).metadata["edgellm.manifest.sha256"].value)
    assert len(hashes) == 2


def test_a_model_without_the_hash_of_its_manifest_verifies_and_that_is_said(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(header, "MANIFEST_KEY", "edgellm.other")
    made = api.convert(tiny, quant="F16", output=tmp_path / "made")
    assert api.verify(made.path) is None
    assert not knows_manifest(made)
    assert run(["verify", made.path]) == 0
    assert "2 files match their manifest; the model has no hash of the manifest" in capsys.readouterr().out
    assert run(["verify", made.path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["manifest_hash_in_model"] is False


@pytest.mark.parametrize("change", [{"context_train": 0}, {"n_params": -1}, {"file_bytes": -1}])
def test_a_manifest_with_impossible_numbers_is_refused(
    tiny: Path, tmp_path: Path, change: dict[str, int]
) -> None:
    made = Path(api.convert(tiny, output=tmp_path / "made", quant="F16").path)
    manifest = json.loads((made / "manifest.json").read_text())
    (made / "manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(BadInputError, match=next(iter(change))):
        api.verify(made)


def test_a_missing_library_is_not_taken_for_an_unknown_tokenizer(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(BackendUnavailable, match="no native libraries"):
        api.convert(tiny, output=tmp_path / "made", quant="F16")

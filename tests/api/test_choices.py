"""What may be asked for beside model and target, end to end: importance matrices, patterns, adapters, templates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgellm import api
from edgellm.cli.main import run
from edgellm.convert import lora
from edgellm.convert.imatrix_file import read_imatrix
from edgellm.errors import BadInputError, OutputExistsError, SpecError
from edgellm.formats.gguf import read_gguf
from tests.support import cli, oracle
from tests.support.tiny_llama import write_tiny_llama

# Rows of 256, so that every type fits; a context that holds a chunk.
WIDE = {
    "hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "head_dim": 64,
    "max_position_embeddings": 1024,
}  # fmt: skip


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("m") / "wide", WIDE)


def write_adapter(directory: Path) -> Path:
    """A LoRA adapter of rank 4 for the query projection of the first layer, as PEFT writes it."""
    directory.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(1)
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    halves = {"lora_A": (4, 256), "lora_B": (256, 4)}
    tensors = {
        f"{name}.{half}.weight": 0.05 * rng.standard_normal(shape).astype(np.float32)
        for half, shape in halves.items()
    }
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def types(output: Path) -> dict[str, str]:
    return {t.name: t.type_name for t in read_gguf(output / "model.gguf").tensors.values()}


def test_a_type_that_needs_importance_collects_it_and_says_so(wide: Path, tmp_path: Path) -> None:
    made = api.convert(wide, quant="IQ2_XS", output=tmp_path / "out", target="rpi5")
    assert made.manifest.recipe is not None
    assert made.manifest.recipe.imatrix == "collected"
    assert made.manifest.importance is not None
    assert made.manifest.importance.text == "edgellm's calibration text"
    matrix = read_imatrix(tmp_path / "out" / "imatrix.gguf")
    assert matrix.provenance.n_tokens == made.manifest.importance.n_tokens > 1000
    api.verify(tmp_path / "out")
    # The same as llama-quantize makes with that very matrix.
    reference = api.convert(wide, quant="F32", output=tmp_path / "f32", target="rpi5")
    theirs = tmp_path / "theirs.gguf"
    oracle.tool(
        "llama-quantize",
        "--imatrix",
        tmp_path / "out" / "imatrix.gguf",
        reference.model_path,
        theirs,
        "IQ2_XS",
        "1",
    )
    ours, other = read_gguf(tmp_path / "out" / "model.gguf"), read_gguf(theirs)
    for name, tensor in other.tensors.items():
        found = ours.tensors[name]
        assert found.type_name == tensor.type_name, name
        data = [
            path.read_bytes()[t.offset :][: t.n_bytes]
            for path, t in ((tmp_path / "out" / "model.gguf", found), (theirs, tensor))
        ]
        assert data[0] == data[1], name


def test_a_matrix_from_a_file_is_used_and_named(wide: Path, tmp_path: Path) -> None:
    first = api.convert(wide, quant="IQ2_XS", output=tmp_path / "first", target="rpi5")
    matrix = Path(first.path) / "imatrix.gguf"
    made = api.convert(wide, quant="Q4_K_M", imatrix=matrix, output=tmp_path / "second", target="rpi5")
    assert made.manifest.recipe is not None
    assert made.manifest.recipe.imatrix == "file"
    assert made.manifest.importance is not None
    assert made.manifest.importance.file_sha256
    assert made.manifest.warnings == []
    other = write_tiny_llama(tmp_path / "other", WIDE, dtype="BF16")
    foreign = api.convert(other, quant="Q4_K_M", imatrix=matrix, output=tmp_path / "third", target="rpi5")
    assert any("other weights (wide)" in warning for warning in foreign.manifest.warnings)
    plain = api.convert(wide, quant="Q4_K_M", output=tmp_path / "plain", target="rpi5")
    assert plain.manifest.importance is None
    assert Path(made.model_path).read_bytes() != Path(plain.model_path).read_bytes()


def test_without_a_matrix_such_a_type_is_refused_before_work(wide: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="needs an importance matrix"):
        api.convert(wide, quant="IQ2_XS", imatrix="none", output=tmp_path / "out", target="rpi5")
    assert not (tmp_path / "out").exists()


def test_a_calibration_text_of_ones_own(wide: Path, tmp_path: Path) -> None:
    text = tmp_path / "words.txt"
    text.write_text("the cat in the hat " * 400)
    made = api.convert(wide, quant="IQ2_XS", calibration=text, output=tmp_path / "out", target="rpi5")
    assert made.manifest.importance is not None
    assert made.manifest.importance.text == "words.txt"
    text.write_text("too short")
    with pytest.raises(BadInputError, match="too few"):
        api.convert(wide, quant="IQ2_XS", calibration=text, output=tmp_path / "other", target="rpi5")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "words.txt"]


def test_types_by_pattern(wide: Path, tmp_path: Path) -> None:
    api.convert(
        wide, quant="Q4_0", tensor_types=[r"ffn_down=q8_0", r"blk\.1\.attn_q=F16"], output_tensor_type="Q5_0",
        token_embedding_type="Q5_1", output=tmp_path / "out", target="rpi5",
    )  # fmt: skip
    found = types(tmp_path / "out")
    assert found["blk.0.ffn_down.weight"] == "Q8_0"
    assert (found["blk.0.attn_q.weight"], found["blk.1.attn_q.weight"]) == ("Q4_0", "F16")
    assert (found["output.weight"], found["token_embd.weight"]) == ("Q5_0", "Q5_1")
    with pytest.raises(SpecError, match="matches no tensor"):
        api.plan_conversion(wide, quant="Q4_0", tensor_types=["no_such=Q8_0"])


def test_an_adapter_is_merged_and_its_files_are_parents(wide: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    made = api.convert(
        wide,
        quant="Q8_0",
        lora=adapter,
        output=tmp_path / "out",
        target="rpi5",
        verify="quick",
        engine="auto",
    )
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {p.name for p in made.manifest.parents}
    assert made.manifest.recipe is not None
    assert any("merge LoRA adapter" in step for step in made.manifest.recipe.steps)
    assert made.receipt is not None
    assert made.receipt.verdict == "pass"
    assert made.receipt.reference_because == "an adapter is merged into the source"


def test_a_chat_template_by_name(wide: Path, tmp_path: Path) -> None:
    made = api.convert(wide, quant="Q8_0", chat_template="alpaca", output=tmp_path / "out", target="rpi5")
    template = read_gguf(Path(made.model_path)).metadata["tokenizer.chat_template"]
    assert "### Instruction" in template.value


def test_a_template_that_does_not_parse_is_a_warning(wide: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jinja"
    broken.write_text("{% for m in messages %}{{ m.content }")
    made = api.convert(wide, quant="Q8_0", chat_template=str(broken), output=tmp_path / "out", target="rpi5")
    assert any("chat template" in warning for warning in made.manifest.warnings)


def test_an_adapter_as_a_file_of_its_own(wide: Path, tmp_path: Path) -> None:
    adapter, out = write_adapter(tmp_path / "adapter"), tmp_path / "a.gguf"
    assert api.convert_adapter(wide, adapter, output=out) == out
    file = read_gguf(out)
    assert set(file.tensors) == {"blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"}
    before = out.read_bytes()
    with pytest.raises(OutputExistsError, match="exists already"):
        api.convert_adapter(wide, adapter, output=out)
    assert api.convert_adapter(wide, adapter, output=out, type_name="f16", force=True) == out
    assert out.read_bytes() != before
    with pytest.raises(SpecError, match="Q4_0"):
        api.convert_adapter(wide, adapter, output=out, type_name="Q4_0", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "adapter"]


def test_a_budget_gives_a_mix_that_says_how_it_was_chosen(wide: Path, tmp_path: Path) -> None:
    made = api.convert(wide, max_bytes=700_000, output=tmp_path / "out", verify="quick", engine="gguf")
    manifest = made.manifest
    assert manifest.quant.startswith("MIX_")
    assert manifest.file_bytes <= 700_000
    assert manifest.recipe is not None
    assert manifest.recipe.tensor_types == types(tmp_path / "out")
    assert manifest.importance is not None
    assert manifest.importance.text == "edgellm's calibration text"
    assert made.receipt is not None
    assert made.receipt.verdict == "pass"
    api.verify(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_budget_without_text(wide: Path, tmp_path: Path) -> None:
    made = api.convert(wide, bpw=5.0, imatrix="none", output=tmp_path / "out", target="rpi5")
    assert made.manifest.importance is None
    assert 4.0 < made.manifest.bpw <= 5.0


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"max_bytes": 1000}, "budget"),
        ({"max_bytes": 700_000, "quant": "Q4_0"}, "--quant"),
        ({"max_bytes": 700_000, "bpw": 4.0}, "--bpw"),
        ({"bpw": 4.0, "tensor_types": ["ffn=Q8_0"]}, "--tensor-type"),
    ],
)
def test_budgets_that_cannot_be(wide: Path, tmp_path: Path, choices: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        api.convert(wide, output=tmp_path / "out", target="rpi5", **choices)
    assert not (tmp_path / "out").exists()


def test_paths_of_an_adapter_may_be_text_and_wrong_use_is_refused(wide: Path, tmp_path: Path) -> None:
    adapter, out = str(write_adapter(tmp_path / "adapter")), str(tmp_path / "a.gguf")
    assert api.convert_adapter(str(wide), adapter, output=out, jobs=1) == Path(out)
    wrong: list[tuple[str, dict[str, Any], type[Exception]]] = [
        ("output", {"output": ""}, ValueError),
        ("jobs", {"jobs": 0}, ValueError),
        ("type_name", {"type_name": 16}, TypeError),
    ]
    for name, arguments, error in wrong:
        with pytest.raises(error, match=name):
            api.convert_adapter(wide, adapter, **arguments)


def test_jobs_hold_for_an_adapter_too(wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, out = write_adapter(tmp_path / "adapter"), tmp_path / "a.gguf"
    seen = []
    real = lora.write_adapter

    def write(*arguments: Any, n_workers: int, **options: Any) -> None:
        seen.append(n_workers)
        real(*arguments, n_workers=n_workers, **options)

    monkeypatch.setattr(lora, "write_adapter", write)
    words = ["--lora", str(adapter), "--lora-as", "adapter", "--jobs", "3"]
    assert run(["convert", str(wide), *words, "-o", str(out)]) == 0
    assert seen == [3]
    assert out.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "notes.txt", "model.gguf"])
def test_an_adapter_never_replaces_anything_else(wide: Path, tmp_path: Path, name: str) -> None:
    """Not the base it is read beside, not a model, not a file of the user's, with force or without."""
    adapter = write_adapter(tmp_path / "adapter")
    base = tmp_path / "base"
    shutil.copytree(wide, base)
    if name == "model.gguf":
        api.convert(wide, quant="Q8_0", output=tmp_path / "made")
        shutil.copyfile(tmp_path / "made" / "model.gguf", base / name)
    elif name == "notes.txt":
        (base / name).write_text("mine")
    before = (base / name).read_bytes()
    with pytest.raises(OutputExistsError, match="not replaced"):
        api.convert_adapter(base, adapter, output=base / name, force=True)
    assert (base / name).read_bytes() == before


@pytest.mark.parametrize(
    "option", [["--dry-run"], ["--verify", "full"], ["--max-bytes", "1M"], ["--target", "rpi5"]]
)
def test_options_that_do_not_apply_to_an_adapter_are_named(
    wide: Path, tmp_path: Path, option: list[str]
) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    lines = cli.refused(
        64, "convert", wide, "--lora", adapter, "--lora-as", "adapter", "-o", tmp_path / "a.gguf", *option
    )
    assert option[0] in lines[0]
    assert not (tmp_path / "a.gguf").exists()


def test_a_bound_without_a_comparison_is_refused(wide: Path, tmp_path: Path) -> None:
    for bound in ({"max_kl": 0.1}, {"min_cosine": 0.9}, {"engine": "gguf"}):
        with pytest.raises(SpecError, match="without a comparison"):
            api.convert(wide, quant="Q8_0", output=tmp_path / "out", **bound)  # type: ignore[arg-type]
    api.convert(wide, quant="Q8_0", output=tmp_path / "out")
    with pytest.raises(SpecError, match=r"--max-kl without a comparison"):
        api.verify(tmp_path / "out", max_kl=0.1)


def test_a_planned_budget_names_no_types_and_is_checked(wide: Path) -> None:
    plan = api.plan_conversion(wide, max_bytes=700_000)
    assert plan.recipe.tensor_types == {}
    assert plan.needed_bytes == 700_000
    with pytest.raises(SpecError, match="below the smallest"):
        api.plan_conversion(wide, max_bytes=10_000)


def test_importance_that_cannot_be_collected_is_refused_in_planning(wide: Path) -> None:
    with pytest.raises(SpecError, match=r"token_embd\.weight in IQ1_S"):
        api.plan_conversion(wide, quant="Q4_0", token_embedding_type="IQ1_S")
    plan = api.plan_conversion(wide, quant="Q4_0", tensor_types=["ffn_down=IQ2_XS"])
    assert plan.recipe.imatrix == "collected"
    said = next(r.because for r in plan.recipe.reasons if r.choice.startswith("importance matrix"))
    assert "ffn_down.weight in IQ2_XS" in said

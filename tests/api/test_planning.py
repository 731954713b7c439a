"""Plans: what a dry run refuses as the conversion would, and what is asked for without effect."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgellm import api, machine
from edgellm.api import models, planning
from edgellm.cli.main import run
from edgellm.convert import mixture, pipeline, search, slabs
from edgellm.convert.imatrix_file import read_imatrix
from edgellm.errors import (
    BadInputError,
    EdgeLLMError,
    OutputError,
    OutputExistsError,
    QualityError,
    ResourceError,
    SpecError,
)
from edgellm.machine.memory import Headroom
from edgellm.native import blas
from tests.api.test_choices import WIDE, write_adapter
from tests.support.cli import edgellm, refused
from tests.support.tiny_bert import write_readable_bert
from tests.support.tiny_llama import write_tiny_llama


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("m") / "wide", WIDE)


@pytest.fixture(scope="module")
def matrix(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An importance matrix of that model."""
    out = tmp_path_factory.mktemp("a") / "out"
    api.convert(wide, quant="IQ2_XS", output=out, target="rpi5")
    return out / "imatrix.gguf"


def occupied(place: Path) -> Path:
    (place / "out").mkdir()
    (place / "out" / "thesis.txt").write_text("mine")
    return place / "out"


def below_a_file(place: Path) -> Path:
    (place / "file").write_text("x")
    return place / "file" / "out"


REFUSALS: dict[str, tuple[int, Callable[[Path], dict[str, Any]]]] = {
    "exists": (73, lambda place: {"output": occupied(place)}),
    "not an artifact": (73, lambda place: {"output": occupied(place), "force": True}),
    "below a file": (74, lambda place: {"output": below_a_file(place)}),
    "bound without comparison": (64, lambda _: {"max_kl": 0.1}),
    "bound of the other kind": (64, lambda _: {"min_cosine": 0.9, "verify": "quick"}),
    "no adapter": (66, lambda place: {"lora": place / "nothing"}),
    "template": (64, lambda _: {"chat_template": "nonsense"}),
    "quant": (64, lambda _: {"quant": "Q9"}),
    "budget": (64, lambda _: {"max_bytes": 1000}),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_plan_is_refused_as_the_conversion_would_be(wide: Path, tmp_path: Path, name: str) -> None:
    code, make = REFUSALS[name]
    asked = {"output": tmp_path / "new", "target": "rpi5", **make(tmp_path)}
    said: list[tuple[str, str | None]] = []
    for act in (api.plan_conversion, api.convert):
        with pytest.raises(EdgeLLMError) as caught:
            act(wide, **asked)
        assert caught.value.exit_code == code
        said.append((caught.value.message, caught.value.hint))
    assert said[0] == said[1]


def smallest_weights_bytes(model: Path | str) -> int:
    """Of any mix, without the header."""
    source = pipeline.read_source(models.resolve(model))
    low, high = 0, 1 << 30
    while low < high:
        middle = (low + high) // 2
        try:
            search.check_budget(source, max_bytes=middle, header_bytes=0)
        except SpecError:
            low = middle + 1
        else:
            high = middle
    return low


@pytest.mark.parametrize("kind", ["hf", "gguf"])
def test_a_budget_that_only_the_header_exceeds_is_refused_in_planning(
    wide: Path, tmp_path: Path, kind: str
) -> None:
    model = wide if kind == "hf" else Path(api.convert(wide, quant="F16", output=tmp_path / "f16").model_path)
    asked: dict[str, Any] = {"imatrix": "none", "output": tmp_path / "out", "target": "rpi5"}
    low = smallest_weights_bytes(model)
    high = low + (1 << 20)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            api.plan_conversion(model, max_bytes=middle, **asked)
        except SpecError:
            low = middle
        else:
            high = middle
    with pytest.raises(SpecError, match="below the smallest file"):
        api.convert(model, max_bytes=low, **asked)
    made = api.convert(model, max_bytes=high + 300, **asked)
    assert high <= made.manifest.file_bytes <= high + 300


def test_bits_per_weight_do_not_count_the_header(wide: Path, tmp_path: Path) -> None:
    n_params = api.plan_conversion(wide, quant="F16").source.shape.n_params
    bpw = 8 * (smallest_weights_bytes(wide) + 1) / n_params
    assert api.plan_conversion(wide, bpw=bpw, target="rpi5").recipe.quant == mixture.MIX


@pytest.mark.parametrize("choices", [{"quant": "Q8_0"}, {"bpw": 5.0}, {"quant": "IQ2_XS"}], ids=str)
def test_too_little_memory_is_refused_in_planning(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choices: dict[str, Any]
) -> None:
    """For twenty threads; one finds enough."""
    monkeypatch.setattr(slabs, "headroom", lambda: Headroom(64 << 20, 0, "limit of the cgroup"))
    asked: dict[str, Any] = {"output": tmp_path / "out", "target": "rpi5", **choices}
    for act in (api.plan_conversion, api.convert):
        with pytest.raises(ResourceError, match="converting with 20 workers needs about"):
            act(wide, jobs=20, **asked)
    assert list(tmp_path.iterdir()) == []
    assert api.plan_conversion(wide, jobs=1, **asked).output == tmp_path / "out"


def test_a_dry_run_passes_the_number_of_jobs_on(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def plan(*_: object, jobs: int | None = None, **__: object) -> object:
        seen.append(jobs)
        raise SpecError("seen")

    monkeypatch.setattr(planning, "plan_conversion", plan)
    assert run(["convert", str(wide), "--dry-run", "--jobs", "3"]) == 64
    assert seen == [3]


def test_an_adapter_of_another_base_is_refused_in_planning(wide: Path, tmp_path: Path) -> None:
    other = write_tiny_llama(tmp_path / "other")
    with pytest.raises(BadInputError):
        api.plan_conversion(other, lora=write_adapter(tmp_path / "adapter"), output=tmp_path / "out")


def test_a_tokenizer_that_cannot_be_converted_is_refused_in_planning(wide: Path, tmp_path: Path) -> None:
    mute = write_tiny_llama(tmp_path / "mute")
    (mute / "tokenizer.json").unlink()
    for act in (api.plan_conversion, api.convert):
        with pytest.raises(EdgeLLMError, match="tokenizer"):
            act(mute, output=tmp_path / "out", target="rpi5")


def test_a_source_inside_the_output_is_refused_in_planning(wide: Path, tmp_path: Path) -> None:
    made = api.convert(wide, quant="F16", output=tmp_path / "out", target="rpi5").path
    with pytest.raises(OutputExistsError, match="holds the source itself"):
        api.plan_conversion(made, quant="Q8_0", output=made, force=True)


def test_too_little_space_is_refused_in_planning(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(OutputError, match="free"):
        api.plan_conversion(wide, quant="Q8_0", output=tmp_path / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_that_may_not_be_written_to_is_refused_in_planning(wide: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        api.plan_conversion(wide, output=tmp_path / "locked" / "out")


def test_a_dry_run_passes_every_option_on(wide: Path, tmp_path: Path) -> None:
    out = occupied(tmp_path)
    assert "exists already" in refused(73, "convert", wide, "--dry-run", "-o", out)[0]
    assert "is not an artifact" in refused(73, "convert", wide, "--dry-run", "--force", "-o", out)[0]
    assert "--max-kl" in refused(64, "convert", wide, "--dry-run", "--max-kl", "1", "-o", tmp_path / "x")[0]
    words = ("--verify", "quick", "--min-cosine", "0.5")
    assert "--min-cosine" in refused(64, "convert", wide, "--dry-run", *words, "-o", tmp_path / "x")[0]


@pytest.mark.parametrize("quant", ["F32", "F16", "BF16", "Q8_0"])
def test_a_matrix_that_weighs_nothing_is_not_recorded_but_said(
    wide: Path, matrix: Path, tmp_path: Path, quant: str
) -> None:
    made = api.convert(wide, quant=quant, imatrix=matrix, output=tmp_path / "out", target="rpi5")
    assert made.manifest.importance is None
    assert made.manifest.recipe is not None
    assert made.manifest.recipe.imatrix == "none"
    (reason,) = [r for r in made.manifest.recipe.reasons if r.choice.startswith("importance matrix")]
    assert reason.choice == "importance matrix: none"
    assert "asked for" not in reason.because
    (warning,) = made.manifest.warnings
    assert warning.startswith("the importance matrix imatrix.gguf is not used")
    assert api.verify(made.path) is None


def test_a_matrix_of_which_only_rounded_tensors_count(wide: Path, matrix: Path, tmp_path: Path) -> None:
    """Rows that are copied, and tensors that the matrix has not, are weighed by nothing."""
    ours = read_imatrix(matrix).entries
    assert "token_embd.weight" not in ours
    plan = api.plan_conversion(wide, quant="Q8_0", token_embedding_type="Q6_K", imatrix=matrix)
    assert plan.recipe.imatrix == "none"
    plan = api.plan_conversion(wide, quant="Q8_0", tensor_types=["ffn_down=Q6_K"], imatrix=matrix)
    assert (plan.recipe.imatrix, plan.warnings) == ("file", [])
    made = api.convert(wide, quant="Q4_0", output=tmp_path / "q4", target="rpi5")
    plan = api.plan_conversion(made.path, quant="Q4_0", imatrix=matrix, output_tensor_type="Q4_0")
    assert plan.recipe.imatrix == "none"


def test_a_matrix_of_another_model_is_refused_in_planning(matrix: Path, tmp_path: Path) -> None:
    other = write_tiny_llama(tmp_path / "other")
    with pytest.raises(BadInputError, match="importance matrix has"):
        api.plan_conversion(other, quant="Q4_0", imatrix=matrix, output=tmp_path / "out")


@pytest.mark.parametrize(
    "choices",
    [
        {"quant": "Q8_0"},
        {"quant": "Q4_0", "imatrix": "none"},
        {"quant": "Q4_0"},
        {"bpw": 5.0, "imatrix": "none"},
    ],
)
def test_a_text_on_which_nothing_is_measured_is_said(
    wide: Path, tmp_path: Path, choices: dict[str, Any]
) -> None:
    text = tmp_path / "words.txt"
    text.write_text("the cat in the hat " * 400)
    (warning,) = api.plan_conversion(wide, calibration=text, target="rpi5", **choices).warnings
    assert warning.startswith("the calibration text words.txt is not used")


@pytest.mark.parametrize("choices", [{"quant": "IQ2_XS"}, {"bpw": 5.0}])
def test_a_text_that_is_measured_on_needs_no_words(
    wide: Path, tmp_path: Path, choices: dict[str, Any]
) -> None:
    text = tmp_path / "words.txt"
    text.write_text("the cat in the hat " * 400)
    assert api.plan_conversion(wide, calibration=text, target="rpi5", **choices).warnings == []


def test_a_warning_of_the_plan_is_one_line_on_stderr(wide: Path, tmp_path: Path) -> None:
    text = tmp_path / "words.txt"
    text.write_text("words")
    done = edgellm("convert", wide, "--quant", "Q8_0", "--calibration", text, "--dry-run")
    assert done.returncode == 0
    assert (
        done.stderr == "warning: the calibration text words.txt is not used: nothing is measured for Q8_0\n"
    )


@pytest.mark.parametrize("budget", [{"bpw": 32.0}, {"max_bytes": 1 << 30}])
def test_a_budget_beyond_the_finest_mix_is_said_and_that_is_made(
    wide: Path, tmp_path: Path, budget: dict[str, Any]
) -> None:
    plan = api.plan_conversion(wide, target="rpi5", **budget)
    (warning,) = plan.warnings
    assert "cannot be used: a mix has at most Q8_0" in warning
    assert plan.needed_bytes == plan.recipe.predicted_memory_bytes["weights"] < 3_000_000
    made = api.convert(wide, target="rpi5", imatrix="none", output=tmp_path / "out", **budget)
    assert made.manifest.warnings == [warning]
    assert made.manifest.recipe is not None
    kinds = set(made.manifest.recipe.tensor_types.values())
    assert kinds == {"F32", "Q8_0"}


def test_a_budget_below_the_finest_mix_needs_no_words(wide: Path) -> None:
    for budget in ({"bpw": 8.0}, {"max_bytes": 700_000}):
        assert api.plan_conversion(wide, target="rpi5", **budget).warnings == []  # type: ignore[arg-type]


def test_a_chat_template_for_a_model_that_gives_embeddings_is_refused(tmp_path: Path) -> None:
    encoder = write_readable_bert(tmp_path / "encoder")
    for act in (api.plan_conversion, api.convert):
        with pytest.raises(SpecError, match=r"--chat-template alpaca .* embeddings") as caught:
            act(encoder, chat_template="alpaca", output=tmp_path / "out")
        assert caught.value.exit_code == 64


@pytest.mark.parametrize("choices", [{"bpw": 5.0}, {"quant": "IQ2_XS"}])
def test_the_number_of_jobs_holds_for_every_step(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choices: dict[str, Any]
) -> None:
    def ask() -> int:
        raise AssertionError("a step asks the machine for its threads")

    monkeypatch.setattr(machine, "usable_cores", ask)
    monkeypatch.setattr(machine, "default_threads", ask)
    threads, stages = set(), set()

    def progress(stage: str, _: int, __: int) -> None:
        stages.add(stage)
        threads.add(blas.threads())

    with contextlib.suppress(QualityError):  # random weights do not bear so few bits
        api.convert(
            wide, target="rpi5", jobs=1, output=tmp_path / "out", verify="quick", engine="gguf", progress=progress,
            **choices,
        )  # fmt: skip
    assert stages >= {"convert", "verify", "probes" if "bpw" in choices else "importance"}
    assert threads <= {1, None}


def test_a_planned_json_has_the_warnings(wide: Path) -> None:
    done = edgellm("convert", wide, "--bpw", "32", "--target", "rpi5", "--dry-run", "--json")
    assert len(json.loads(done.stdout)["warnings"]) == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"qunat": "Q4_0"}, TypeError),
        ({"quant": 4}, TypeError),
        ({"tensor_types": "ffn_down=Q6_K"}, TypeError),
        ({"verify": "bogus"}, ValueError),
        ({"verify": "quick", "engine": "bogus"}, ValueError),
        ({"bpw": 0.0}, ValueError),
        ({"bpw": float("nan")}, ValueError),
        ({"max_bytes": 0}, ValueError),
    ],
    ids=str,
)
def test_wrong_use_from_python_is_refused(
    wide: Path, tmp_path: Path, arguments: dict[str, Any], error: type[Exception]
) -> None:
    for act in (api.plan_conversion, api.convert):
        with pytest.raises(error, match=list(arguments)[-1]):
            act(wide, target="rpi5", output=tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("jobs", [0, -1])
def test_a_conversion_without_a_thread_is_refused(wide: Path, tmp_path: Path, jobs: int) -> None:
    with pytest.raises(ValueError, match="jobs"):
        api.convert(wide, target="rpi5", output=tmp_path / "out", jobs=jobs)
    with pytest.raises(ValueError, match="jobs"):
        api.plan_conversion(wide, target="rpi5", output=tmp_path / "out", jobs=jobs)


def test_an_output_without_a_name_is_refused(wide: Path, tmp_path: Path) -> None:
    """It would mean the directory we are in."""
    for act in (api.plan_conversion, api.convert):
        with pytest.raises(ValueError, match="output must name a directory"):
            act(wide, target="rpi5", output="")
    for verb in (["convert", wide], ["profile", wide], ["demo"]):
        said = refused(64, *verb, "-o", "", cwd=tmp_path)
        assert "the name is empty" in said[0]
    assert list(tmp_path.iterdir()) == []


def test_paths_may_be_text(wide: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter")
    (tmp_path / "text").write_text("Measure. " * 2000)
    plan = api.plan_conversion(
        wide, target="rpi5", output=str(tmp_path / "out"), lora=str(tmp_path / "adapter"), bpw=5.0,
        calibration=str(tmp_path / "text"),
    )  # fmt: skip
    assert plan.adapter is not None


@pytest.mark.parametrize("option", ["--imatrix", "--calibration"])
def test_a_file_that_is_not_there_is_named_with_what_would_do(wide: Path, option: str) -> None:
    said = refused(66, "convert", wide, option, "atuo", "--dry-run")
    assert "atuo" in said[0]
    assert said[1].startswith("hint: ")


def test_two_budgets_are_one_too_many(wide: Path) -> None:
    with pytest.raises(SpecError, match=r"two budgets: --max-bytes and --bpw"):
        api.plan_conversion(wide, target="rpi5", bpw=5.0, max_bytes=1 << 20)

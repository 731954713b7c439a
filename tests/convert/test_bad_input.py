"""What `edgellm convert` answers to a hostile directory: the right exit code, one line, and nothing left behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgellm.cli.main import run
from edgellm.convert import pipeline
from tests.support.tiny_llama import tokenizer_json, write_tiny_llama

Change = Callable[[Path], object]
WEIGHT = "model.layers.0.mlp.up_proj.weight"
HOSTILE = [-1, 2**63, 1e308, "x" * 500_000, [[1] * 300_000], {}, True]
OPTIONAL = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)


def convert(capfd: pytest.CaptureFixture[str], model: Path, output: Path, *more: str) -> tuple[int, str]:
    """The exit code and the first line on stderr; a second one can only be a hint."""
    code = run(["convert", str(model), "-o", str(output), "--target", "rpi5", *more])
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) <= 1 + (len(lines) == 2 and lines[1].startswith("hint: ")), lines[:3]
    assert len(lines[0] if lines else "") < 600
    if code:
        assert lines[0].startswith("error: ")
        assert "internal error" not in lines[0]
        assert list(output.parent.glob(".*partial*")) == []
        assert not output.exists()
    return code, lines[0] if lines else ""


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value)[:10])
@pytest.mark.parametrize("key", ["architectures", "hidden_act", "rope_scaling", "hidden_size", "vocab_size"])
def test_a_hostile_value_in_the_configuration(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], key: str, value: object
) -> None:
    model = write_tiny_llama(tmp_path / "model")
    config = {**json.loads((model / "config.json").read_text()), key: value}
    (model / "config.json").write_text(json.dumps(config))
    code, _ = convert(capfd, model, tmp_path / "out", "--dry-run")
    assert code == 65 or (key, value) == ("rope_scaling", {})


@pytest.mark.parametrize(
    "number", [-1, 2**63, "x", None, True, 1.5, [[1] * 300_000]], ids=lambda n: repr(n)[:10]
)
@pytest.mark.parametrize("place", ["vocab", "added_tokens"])
def test_a_hostile_id_in_the_tokenizer(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], place: str, number: object
) -> None:
    model = write_tiny_llama(tmp_path / "model")
    tokenizer = tokenizer_json()
    if place == "vocab":
        tokenizer["model"]["vocab"]["a"] = number
    else:
        tokenizer["added_tokens"][0]["id"] = number
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    code, line = convert(capfd, model, tmp_path / "out")
    assert (code, "has id" in line) == (65, True)


@pytest.mark.parametrize("kind", ["pipe", "directory", "link to nothing"])
@pytest.mark.parametrize("name", OPTIONAL)
def test_what_is_there_and_no_file_is_not_passed_over(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    path = write_tiny_llama(tmp_path / "model") / name
    path.unlink(missing_ok=True)
    {
        "pipe": lambda: os.mkfifo(path),
        "directory": path.mkdir,
        "link to nothing": lambda: path.symlink_to("none"),
    }[kind]()
    code, line = convert(capfd, path.parent, tmp_path / "out", "--dry-run")
    assert (code, name in line) == (65, True)


def test_a_link_of_the_index_out_of_the_directory(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    index = write_tiny_llama(tmp_path / "model", n_shards=2) / "model.safetensors.index.json"
    index.rename(tmp_path / "elsewhere.json")
    index.symlink_to(tmp_path / "elsewhere.json")
    code, line = convert(capfd, index.parent, tmp_path / "out", "--dry-run")
    assert (code, "escapes the model directory" in line) == (65, True)


def test_a_tensor_with_an_endless_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = write_tiny_llama(tmp_path / "model", tensors={"z" * 3_000_000: np.zeros(1, np.float32)})
    assert convert(capfd, model, tmp_path / "out", "--dry-run")[0] == 65


@pytest.mark.parametrize("quant", ["F32", "Q8_0"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], value: float, quant: str
) -> None:
    bad = np.full((96, 64), value, np.float32)
    model = write_tiny_llama(tmp_path / "model", tensors={WEIGHT: bad})
    code, line = convert(capfd, model, tmp_path / "out", "--quant", quant)
    assert code == 65
    assert (
        "tensor 'blk.0.ffn_up.weight', rows 0 to 95: 6144 of 6144 weights are NaN or infinity, the first in row 0, column 0"
        in line
    )


@pytest.mark.parametrize("n_layers", [1, 10])
def test_weights_that_are_all_zero_are_a_warning(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], n_layers: int
) -> None:
    zeros = {f"model.layers.{i}.mlp.up_proj.weight": np.zeros((96, 64), np.float32) for i in range(n_layers)}
    model = write_tiny_llama(tmp_path / "model", {"num_hidden_layers": n_layers}, tensors=zeros)
    assert run(["convert", str(model), "-o", str(tmp_path / "out"), "--target", "rpi5"]) == 0
    said = capfd.readouterr().out
    assert f"warning: all weights are zero in {n_layers} tensors: blk.0.ffn_up.weight (6144)" in said
    assert ("and 2 more" in said) == (n_layers == 10)
    assert "all weights are zero" in (tmp_path / "out" / "manifest.json").read_text()


@pytest.mark.parametrize("content", [None, b"\xff\xfe\0"], ids=["missing", "binary"])
def test_a_bad_calibration_text_is_refused_before_the_work(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    text = tmp_path / "text"
    if content is not None:
        text.write_bytes(content)
    model = write_tiny_llama(tmp_path / "model")
    code, _ = convert(capfd, model, tmp_path / "out", "--dry-run", "--calibration", str(text))
    assert code == (66 if content is None else 65)


def _piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "change", [lambda path: os.truncate(path, 2000), Path.unlink, _piped], ids=["cut", "gone", "pipe"]
)
def test_weights_that_change_after_planning(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, change: Change
) -> None:
    model = write_tiny_llama(tmp_path / "model")
    real = pipeline.convert

    def changed(*arguments: object, **options: object) -> object:
        change(model / "model.safetensors")
        options["parents"] = None
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "convert", changed)
    code, line = convert(capfd, model, tmp_path / "out", "--quant", "Q8_0")
    assert (code in (65, 66), "model.safetensors" in line) == (True, True)

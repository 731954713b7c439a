"""Reading an adapter: what is in it, and one line for every file that is not what it says."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from edgellm.convert import lora
from edgellm.errors import BadInputError, MissingInputError, UnsafeInputError, UnsupportedError
from tests.support.refusals import refusal
from tests.support.tiny_llama import Array

Q = "base_model.model.model.layers.0.self_attn.q_proj"
V = "base_model.model.model.layers.0.self_attn.v_proj"
Tensors = dict[str, Array]


def tensors() -> Tensors:
    rng = np.random.default_rng(3)
    shapes = {f"{Q}.lora_A": (4, 8), f"{Q}.lora_B": (8, 4), f"{V}.lora_A": (4, 8), f"{V}.lora_B": (6, 4)}
    return {f"{name}.weight": rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def write(folder: Path, found: Tensors | None = None, **config: Any) -> Path:
    values = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    save_file(tensors() if found is None else found, folder / "adapter_model.safetensors")
    return folder


def test_the_pairs_of_an_adapter(tmp_path: Path) -> None:
    adapter = lora.read_adapter(write(tmp_path, rank_pattern={"v_proj": 4}, alpha_pattern={"v_proj": 2}))
    assert list(adapter.pairs) == ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"]
    q, v = adapter.pairs.values()
    assert (q.rank, q.scale, q.weight_shape) == (4, 2.0, (8, 8))
    assert (v.rank, v.scale, v.weight_shape) == (4, 0.5, (6, 8))
    assert adapter.describe() == "2 modules, rank 4, scale 0.5 to 2"
    assert [path.name for path in adapter.files] == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize("name", ["my adapter", "x\ny", "\u00e4", "..."])
def test_the_name_is_fit_for_a_path(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    found = lora.read_adapter(write(tmp_path / name)).name
    assert set(found) <= set("abcdefghijklmnopqrstuvwxyz-.")
    assert found.strip(".")


def named(name: str, shape: tuple[int, ...] = (4,), dtype: str = "float32") -> Callable[[], Tensors]:
    return lambda: {**tensors(), name: np.ones(shape, dtype)}


def without(*endings: str) -> Callable[[], Tensors]:
    return lambda: {name: value for name, value in tensors().items() if not name.endswith(endings)}


def with_value(name: str, value: float) -> Callable[[], Tensors]:
    def make() -> Tensors:
        found = tensors()
        found[name][-1, -1] = value
        return found

    return make


LONG = f"base_model.model.{'x' * 600}.lora_A.weight"


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (without("q_proj.lora_B.weight"), r"q_proj' has only lora_A\.weight; lora_A and lora_B are needed"),
        (without("v_proj.lora_A.weight"), r"v_proj' has only lora_B\.weight"),
        (dict, "no LoRA tensors"),
        (named(f"{Q}.lora_A.weight", (5, 8)), r"q_proj\.lora_A\.weight' has shape \[5, 8\], .* implies 4 rows"),
        (named(f"{Q}.lora_B.weight", (8, 3)), r"lora_B\.weight' has shape \[8, 3\], .* implies 4 columns"),
        (named(f"{Q}.lora_A.weight", (4, 8, 1)), r"has shape \[4, 8, 1\]"), (named(f"{Q}.lora_A.weight", (4,)), r"shape \[4\]"),
        (named(f"{Q}.lora_A.weight", (4, 0)), r"has shape \[4, 0\]"), (named(f"{Q}.lora_B.weight", ()), r"has shape \[\]"),
        (named(f"{Q}.lora_A.weight", (4, 8), "int32"), "has type I32; F32, F16 and BF16"),
        (named(f"{Q}.lora_A.weight", (4, 8), "float64"), "has type F64"),
        (with_value(f"{Q}.lora_A.weight", float("nan")), r"q_proj\.lora_A\.weight' holds NaN"),
        (with_value(f"{V}.lora_B.weight", float("inf")), r"v_proj\.lora_B\.weight' holds NaN or infinity"),
        (named(f"{Q}.lora_magnitude_vector"), "belongs to use_dora"), (named(f"{Q}.bias"), "belongs to bias"),
        (named("base_model.model.lm_head.modules_to_save.weight"), "belongs to modules_to_save"),
        (named(f"{Q}.lora_C.weight"), "is no LoRA tensor; expected names like base_model"), (named("x"), "'x' is no LoRA"),
        (named(f"{Q}.lora_A.default.weight"), "is no LoRA tensor"), (named("model.q_proj.lora_A.weight"), "is no LoRA"),
        (named("base_model.model.../../etc/passwd.lora_A.weight"), "is no LoRA tensor"), (named(LONG), "name of 631 char"),
        (named("base_model.model.a\nb.lora_A.weight"), r"a\\nb\.lora_A\.weight' is no LoRA tensor"),
        (named(f"{Q}.lora_embedding_A", (4, 8)), "q_proj' has "),
        (lambda: {k.replace("q_proj", "o_proj"): v for k, v in tensors().items()}, "but target_modules of adapter_config"),
    ],
)  # fmt: skip
def test_wrong_tensors_are_refused(tmp_path: Path, made: Callable[[], Tensors], message: str) -> None:
    with pytest.raises((BadInputError, UnsupportedError), match=message) as caught:
        lora.read_adapter(write(tmp_path, made()))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 900 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"r": 8}, "implies 8 rows"), ({"r": 65536}, "implies 65536 rows"), ({"rank_pattern": {"v_proj": 2}}, "implies 2 rows"),
        ({"layers_to_transform": [3]}, "layers_to_transform of adapter_config.json leaves it out"),
        ({"use_dora": True}, "use_dora"), ({"r": 1 << 40}, "r is 1099511627776"),
    ],
)  # fmt: skip
def test_a_configuration_of_another_adapter_is_refused(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises((BadInputError, UnsupportedError), match=message):
        lora.read_adapter(write(tmp_path, **config))


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no adapter at"):
        lora.read_adapter(tmp_path / "none")
    with pytest.raises(MissingInputError, match="no adapter_config"):
        lora.read_adapter(tmp_path)
    write(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(MissingInputError, match=r"no adapter_model\.safetensors"):
        lora.read_adapter(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04}.")
    with pytest.raises(UnsafeInputError, match=r"pickles \(adapter_model\.bin\)"):
        lora.read_adapter(tmp_path)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_links_out_of_the_directory_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "adapter").mkdir()
    write(tmp_path / "adapter")
    (tmp_path / "adapter" / name).rename(tmp_path / name)
    (tmp_path / "adapter" / name).symlink_to(tmp_path / name)
    with pytest.raises(UnsafeInputError, match="escapes"):
        lora.read_adapter(tmp_path / "adapter")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_pipes_are_not_waited_for(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises((BadInputError, MissingInputError)):
        lora.read_adapter(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    folder = write(tmp_path_factory.mktemp("whole"))
    return folder, (folder / "adapter_model.safetensors").read_bytes()


@given(data=st.data())
def test_flipped_and_cut_headers_are_read_or_refused(whole: tuple[Path, bytes], data: st.DataObject) -> None:
    folder, good = whole
    header_bytes = 8 + int.from_bytes(good[:8], "little")
    at = data.draw(st.integers(0, header_bytes - 1))
    cut = data.draw(st.sampled_from([len(good), len(good) - 1, at]))
    flipped = good[at] ^ data.draw(st.integers(1, 255))
    (folder / "adapter_model.safetensors").write_bytes((good[:at] + bytes([flipped]) + good[at + 1 :])[:cut])
    said = refusal(lambda: lora.read_adapter(folder))
    assert said or cut == len(good)

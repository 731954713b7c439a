"""Adapter files: the bytes of llama.cpp's converter where it is right, and PEFT's answers when llama.cpp loads them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from edgellm.artifact import sha256_file
from edgellm.convert import lora
from edgellm.convert.source import Source
from edgellm.errors import UnsupportedError
from edgellm.formats.gguf import read_gguf
from tests.support import tiny_models
from tests.support.peft_adapters import CASES, Made, adapted_logits
from tests.support.tiny_llama import Array, kl_divergence

EQUAL_NATS, WRONG_NATS = 1e-4, 1e-3
# llama.cpp's converter leaves out rsLoRA and alpha_pattern, and transposes what PEFT has not (GPT-2).
DIFFERENT = ("rslora", "gpt2")


@pytest.fixture(scope="module")
def bases(
    adapters: dict[str, Made], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Source, Path]]:
    """Every base as a source, and as an F32 GGUF."""
    folder = tmp_path_factory.mktemp("bases")
    made = {}
    for name, one in adapters.items():
        source = tiny_models.read_source(one.base)
        made[name] = (source, tiny_models.write_f32(source, folder / f"{name}.gguf"))
    return made


def written(made: Made, base: Source, folder: Path, type_name: str = "F32") -> Path:
    path = folder / "adapter.gguf"
    lora.write_adapter(path, base, lora.read_adapter(made.adapter), type_name=type_name)
    return path


def answer(model: Path, adapter: Path) -> Array:
    logits = adapted_logits(model, adapter)
    assert logits is not None, "llama.cpp refused the adapter"
    return logits


@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_answers_as_pefts_merge(
    adapters: dict[str, Made], bases: dict[str, tuple[Source, Path]], name: str, tmp_path: Path
) -> None:
    source, model = bases[name]
    seen = answer(model, written(adapters[name], source, tmp_path))
    assert kl_divergence(adapters[name].merged_logits, seen) < EQUAL_NATS


@pytest.mark.parametrize("type_name", ["F16", "BF16"])
def test_smaller_types_are_close(
    adapters: dict[str, Made], bases: dict[str, tuple[Source, Path]], type_name: str, tmp_path: Path
) -> None:
    source, model = bases["llama"]
    path = written(adapters["llama"], source, tmp_path, type_name)
    assert {t.type_name for t in read_gguf(path).tensors.values()} == {type_name}
    assert kl_divergence(adapters["llama"].merged_logits, answer(model, path)) < WRONG_NATS


def test_rows_of_b_that_stay_in_hugging_faces_order_are_noticed(
    adapters: dict[str, Made], bases: dict[str, tuple[Source, Path]], tmp_path: Path
) -> None:
    source, model = bases["llama"]
    tensors = tuple(t._replace(parts=tuple(p._replace(order=None) for p in t.parts)) for t in source.tensors)
    path = written(adapters["llama"], dataclasses.replace(source, tensors=tensors), tmp_path)
    assert kl_divergence(adapters["llama"].merged_logits, answer(model, path)) > WRONG_NATS


@pytest.mark.parametrize("name", sorted(set(CASES) - set(DIFFERENT)))
def test_tensors_and_keys_equal_those_of_llama_cpps_converter(
    adapters: dict[str, Made],
    bases: dict[str, tuple[Source, Path]],
    name: str,
    tmp_path: Path,
) -> None:
    path = written(adapters[name], bases[name][0], tmp_path)
    ours, other = read_gguf(path), read_gguf(adapters[name].theirs)
    assert set(ours.tensors) == set(other.tensors)
    mine, wanted = path.read_bytes(), adapters[name].theirs.read_bytes()
    for tensor, expected in other.tensors.items():
        found = ours.tensors[tensor]
        assert (found.shape, found.type_name) == (expected.shape, expected.type_name), tensor
        assert mine[found.offset :][: found.n_bytes] == wanted[expected.offset :][: expected.n_bytes], tensor
    keys = [
        "general.architecture",
        "general.type",
        "adapter.type",
        "adapter.lora.alpha",
        "general.quantization_version",
    ]
    assert {k: ours.metadata[k] for k in keys} == {k: other.metadata[k] for k in keys}


@pytest.mark.parametrize("name", DIFFERENT)
def test_where_the_bytes_differ_llama_cpps_converter_is_wrong(
    adapters: dict[str, Made], bases: dict[str, tuple[Source, Path]], name: str
) -> None:
    """Shown so that a converter that was mended does not go unnoticed."""
    seen = adapted_logits(bases[name][1], adapters[name].theirs)
    assert seen is None or kl_divergence(adapters[name].merged_logits, seen) > WRONG_NATS


def test_the_file_names_its_parents(
    adapters: dict[str, Made], bases: dict[str, tuple[Source, Path]], tmp_path: Path
) -> None:
    made = adapters["llama"]
    found = read_gguf(written(made, bases["llama"][0], tmp_path)).metadata
    assert found["general.base_model.0.name"].value == "base"
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert found[f"edgellm.parent.{name}.sha256"].value == sha256_file(made.adapter / name)


def test_one_alpha_is_enough_for_llama_cpp(
    adapters: dict[str, Made], bases: dict[str, tuple[Source, Path]], tmp_path: Path
) -> None:
    """alpha / rank of every module times B is PEFT's scale times its B."""
    adapter = lora.read_adapter(adapters["rslora"].adapter)
    path = written(adapters["rslora"], bases["rslora"][0], tmp_path)
    file, data = read_gguf(path), path.read_bytes()
    alpha = file.metadata["adapter.lora.alpha"].value
    assert alpha == pytest.approx(6 * 8**0.5)
    for module, kind, scale in (
        ("q_proj", "attn_q", 6 / 2**0.5), ("k_proj", "attn_k", 6 / 6**0.5), ("v_proj", "attn_v", 9 / 8**0.5),
        ("o_proj", "attn_output", 6 / 8**0.5),
    ):  # fmt: skip
        pair = adapter.pairs[f"model.layers.1.self_attn.{module}"]
        assert pair.scale == pytest.approx(scale)
        place = file.tensors[f"blk.1.{kind}.weight.lora_b"]
        seen = np.frombuffer(data[place.offset :][: place.n_bytes], np.float32)
        bits = np.fromfile(pair.b.path, np.uint16, pair.b.n_bytes // 2, offset=pair.b.offset).astype(
            np.uint32
        )
        stored = (bits << 16).view(np.float32)
        assert np.sort(seen * alpha / pair.rank) == pytest.approx(np.sort(stored * scale), rel=1e-5)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (
            lambda module: "experts.2" not in module,
            r"becomes a part of 'blk\.0\.ffn_(down|gate|up)_exps\.weight'",
        ),
    ],
)
def test_what_llama_cpp_cannot_add_is_refused(
    adapters: dict[str, Made],
    bases: dict[str, tuple[Source, Path]],
    kept: object,
    message: str,
    tmp_path: Path,
) -> None:
    assert callable(kept)
    adapter = lora.read_adapter(adapters["mixtral"].adapter)
    fewer = dataclasses.replace(adapter, pairs={k: v for k, v in adapter.pairs.items() if kept(k)})
    assert len(fewer.pairs) < len(adapter.pairs)
    with pytest.raises(UnsupportedError, match=message):
        lora.write_adapter(tmp_path / "adapter.gguf", bases["mixtral"][0], fewer)
    assert lora.merge(bases["mixtral"][0], fewer)

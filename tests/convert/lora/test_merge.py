"""Merging: the same distributions as PEFT's merge_and_unload, and a refusal of what does not fit."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgellm import machine
from edgellm.checkpoint import SourceTensor, open_checkpoint
from edgellm.convert import lora, pipeline, rows, slabs, writer
from edgellm.convert.lora import Adapter
from edgellm.convert.recipe import ConvertOptions, make_recipe
from edgellm.convert.source import LowRank, Part, PlannedTensor, Source, from_gguf
from edgellm.errors import BadInputError, UnsupportedError
from edgellm.formats.gguf import read_gguf
from edgellm.formats.safetensors import read_safetensors
from tests.support import tiny_llama, tiny_models
from tests.support.peft_adapters import CASES, Made
from tests.support.tiny_llama import Array, kl_divergence, write_tiny_llama

EQUAL_NATS, WRONG_NATS = 1e-4, 1e-3
Change = Callable[[Source], Source]


def merged(made: Made) -> Source:
    return lora.merge(tiny_models.read_source(made.base), lora.read_adapter(made.adapter))


def logits_of(source: Source, folder: Path) -> Array:
    return tiny_models.our_logits(tiny_models.write_f32(source, folder / "model.gguf"))


@pytest.mark.parametrize("name", CASES)
def test_distributions_equal_those_of_pefts_merge(
    adapters: dict[str, Made], name: str, tmp_path: Path
) -> None:
    seen = logits_of(merged(adapters[name]), tmp_path)
    assert kl_divergence(adapters[name].merged_logits, seen) < EQUAL_NATS


@pytest.mark.parametrize("name", CASES)
def test_the_adapters_change_much(adapters: dict[str, Made], name: str) -> None:
    assert kl_divergence(adapters[name].merged_logits, adapters[name].base_logits) > 10 * WRONG_NATS


def changed(source: Source, ending: str, change: Callable[[Part], Part]) -> Source:
    assert any(t.name.endswith(ending) and t.parts[0].low_rank for t in source.tensors)
    return dataclasses.replace(
        source,
        tensors=tuple(
            t._replace(parts=tuple(map(change, t.parts))) if t.name.endswith(ending) else t
            for t in source.tensors
        ),
    )


def half_scale(part: Part) -> Part:
    return part._replace(low_rank=part.low_rank and part.low_rank._replace(scale=part.low_rank.scale / 2))


def left_out(part: Part) -> Part:
    return part._replace(low_rank=None)


@pytest.mark.parametrize(
    ("name", "ending", "change"),
    [
        ("llama", "attn_q.weight", half_scale), ("llama", "output.weight", left_out), ("llama", "ffn_down.weight", left_out),
        ("rslora", "attn_q.weight", half_scale), ("rslora", "attn_k.weight", left_out),
        ("rslora", "attn_v.weight", half_scale), ("embedding", "token_embd.weight", left_out),
        ("gpt2", "attn_qkv.weight", half_scale), ("mixtral", "ffn_down_exps.weight", half_scale),
    ],
)  # fmt: skip
def test_a_wrong_merge_is_noticed(
    adapters: dict[str, Made], name: str, ending: str, change: Callable[[Part], Part], tmp_path: Path
) -> None:
    source = changed(
        merged(adapters[name]), f".{ending}" if ending.startswith(("attn", "ffn")) else ending, change
    )
    assert kl_divergence(adapters[name].merged_logits, logits_of(source, tmp_path)) > WRONG_NATS


def test_products_follow_the_order_of_rows(adapters: dict[str, Made], tmp_path: Path) -> None:
    """With B in the order of Hugging Face's rows and W in GGUF's, the answer is another."""
    made = adapters["llama"]
    tensors = dict(load_file(made.adapter / "adapter_model.safetensors"))
    copy = shutil.copytree(made.adapter, tmp_path / "adapter")
    right = merged(made)
    for name, values in tensors.items():
        if "q_proj.lora_B" in name:
            part = next(t for t in right.tensors if t.name == "blk.0.attn_q.weight").parts[0]
            tensors[name] = values[np.argsort(part.source_rows(0, part.n_rows))]
    save_file(tensors, copy / "adapter_model.safetensors")
    wrong = lora.merge(tiny_models.read_source(made.base), lora.read_adapter(copy))
    assert kl_divergence(made.merged_logits, logits_of(wrong, tmp_path)) > WRONG_NATS


def test_merged_rows_are_the_sum_in_float32(adapters: dict[str, Made]) -> None:
    made = adapters["llama"]
    base, both = tiny_models.read_source(made.base), merged(made)
    stored = load_file(made.adapter / "adapter_model.safetensors")
    prefix = "base_model.model.model.layers.1.self_attn.q_proj"
    product = 2.0 * stored[f"{prefix}.lora_B.weight"] @ stored[f"{prefix}.lora_A.weight"]
    before, after = (next(t for t in s.tensors if t.name == "blk.1.attn_q.weight") for s in (base, both))
    order = before.parts[0].source_rows(0, 64)
    expected = rows.read_rows(before, 0, 64) + product[order]
    assert np.abs(rows.read_rows(after, 0, 64) - expected).max() < 1e-6
    assert np.abs(product).max() > 0.1


@pytest.mark.parametrize(
    ("n_columns", "rank", "low", "high"), [(1300, 16, 0, 130), (700, 70, 3, 50), (33, 5000, 1, 9)]
)
def test_products_of_any_size_are_whole(
    tmp_path: Path, n_columns: int, rank: int, low: int, high: int
) -> None:
    """They are computed in blocks of rows and columns."""
    rng = np.random.default_rng(5)
    values = {"w": (130, n_columns), "b": (130, rank), "a": (rank, n_columns)}
    arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in values.items()}
    save_file(arrays, tmp_path / "m.safetensors")
    w, b, a = (
        SourceTensor(v.name, v.dtype, v.shape, v.path, v.offset, v.n_bytes)
        for v in map(read_safetensors(tmp_path / "m.safetensors").tensors.__getitem__, "wba")
    )
    part = Part(w, 130, lambda index: 129 - index, 130, low_rank=LowRank(b, a, 0.5))
    seen = rows.read_rows(PlannedTensor("w", (130, n_columns), (part,)), low, high)
    wide = {name: array.astype(np.float64) for name, array in arrays.items()}
    expected = (wide["w"] + 0.5 * wide["b"] @ wide["a"])[::-1][low:high]
    assert np.abs(seen - expected).max() < 1e-3 * np.sqrt(rank / 16)


@pytest.mark.parametrize(("slab_weights", "n_workers"), [(1, 1), (700, 3), (1 << 19, 2)])
def test_slabs_and_threads_change_no_byte(
    adapters: dict[str, Made],
    slab_weights: int,
    n_workers: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = merged(adapters["llama"])
    first = tiny_models.write_f32(source, tmp_path / "first.gguf").read_bytes()
    monkeypatch.setattr(slabs, "SLAB_WEIGHTS", slab_weights)
    second = tmp_path / "second.gguf"
    writer.write_gguf(
        second, source, dict.fromkeys(source.shape.tensors, "F32"), source.header, n_workers=n_workers
    )
    a, b = (
        np.frombuffer(data[-4 * source.shape.n_params :], np.float32) for data in (first, second.read_bytes())
    )
    assert len(first) == second.stat().st_size
    assert np.abs(a - b).max() < 1e-6


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_types_stay_the_bases(adapters: dict[str, Made], dtype: str, tmp_path: Path) -> None:
    """Tensors that would be copied byte by byte are changed all the same."""
    base = tiny_llama.read_source(write_tiny_llama(tmp_path / "base", dtype=dtype))
    both = lora.merge(base, without_copies(adapters["llama"]))
    assert both.base_types() == base.base_types()
    for source, name in ((base, "a.gguf"), (both, "b.gguf")):
        writer.write_gguf(tmp_path / name, source, source.base_types(), source.header, n_workers=1)
    first, second = read_gguf(tmp_path / "a.gguf"), read_gguf(tmp_path / "b.gguf")
    data = [(tmp_path / name).read_bytes() for name in ("a.gguf", "b.gguf")]
    different = set()
    for name, one in first.tensors.items():
        two = second.tensors[name]
        assert one.type_name == two.type_name
        if data[0][one.offset :][: one.n_bytes] != data[1][two.offset :][: two.n_bytes]:
            different.add(name)
    assert different == {t.name for t in both.tensors if any(part.low_rank for part in t.parts)}
    assert len(different) == 15


def without_copies(made: Made) -> Adapter:
    return dataclasses.replace(lora.read_adapter(made.adapter), copies={})


def test_name_files_and_recipe_say_that_an_adapter_was_merged(
    adapters: dict[str, Made], tmp_path: Path
) -> None:
    made = adapters["llama"]
    adapter = lora.read_adapter(made.adapter)
    base = tiny_models.read_source(made.base)
    source = lora.merge(base, adapter)
    assert source.checkpoint.name == "base+adapter"
    assert source.header["general.name"].value == "base+adapter"
    recipe = lora.say_merged(
        make_recipe(machine.detect_target(), source, ConvertOptions(quant="Q8_0")), adapter
    )
    manifest = pipeline.convert(source, machine.detect_target(), recipe, tmp_path, n_workers=1, argv=[])
    names = [parent.name for parent in manifest.parents]
    assert names[-2:] == ["adapter_config.json", "adapter_model.safetensors"]
    assert manifest.recipe is not None
    said = "merge LoRA adapter adapter in float32: 15 modules, rank 4, scale 2"
    assert manifest.recipe.steps[1] == said
    assert manifest.recipe.reasons[-1].because == "asked for: 15 modules, rank 4, scale 2"


def test_a_gguf_base_is_refused(adapters: dict[str, Made], tmp_path: Path) -> None:
    path = tiny_models.write_f32(tiny_models.read_source(adapters["llama"].base), tmp_path / "base.gguf")
    with pytest.raises(UnsupportedError, match="this base is a GGUF"):
        lora.merge(from_gguf(open_checkpoint(path)), lora.read_adapter(adapters["llama"].adapter))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"num_hidden_layers": 1},
            r"layers\.1\.mlp\.down_proj\.lora_A\.weight.*has no 'model\.layers\.1\.mlp",
        ),
        (
            {"intermediate_size": 128},
            r"layers\.0\.mlp\.down_proj' has A \[4, 96\] and B \[64, 4\].* \[64, 96\]; base has \[64, 128\]",
        ),
        (
            {"tie_word_embeddings": True},
            r"'lm_head' is changed, but the base's output head is its input embedding",
        ),
    ],
)
def test_an_adapter_of_another_base_is_refused(
    adapters: dict[str, Made], config: dict[str, object], message: str, tmp_path: Path
) -> None:
    base = tiny_llama.read_source(write_tiny_llama(tmp_path / "base", config))
    with pytest.raises((BadInputError, UnsupportedError), match=message):
        lora.merge(base, without_copies(adapters["llama"]))


def test_a_saved_copy_of_the_base_must_be_the_bases(adapters: dict[str, Made], tmp_path: Path) -> None:
    """PEFT saves the head that it adapts: left out where it is the base's, refused where it was trained."""
    made = adapters["llama"]
    adapter = lora.read_adapter(made.adapter)
    assert list(adapter.copies) == ["lm_head.weight"]
    copy = shutil.copytree(made.adapter, tmp_path / "adapter")
    tensors = dict(load_file(copy / "adapter_model.safetensors"))
    head = tensors["base_model.model.lm_head.base_layer.weight"]
    for wrong in (
        np.where(np.arange(head.size).reshape(head.shape) == head.size - 1, head + 1, head),
        head[:-1],
    ):
        tensors["base_model.model.lm_head.base_layer.weight"] = np.ascontiguousarray(wrong)
        save_file(tensors, copy / "adapter_model.safetensors")
        with pytest.raises(UnsupportedError, match=r"lm_head\.base_layer\.weight.*is not the base's own"):
            lora.merge(tiny_models.read_source(made.base), lora.read_adapter(copy))


def test_a_sum_beyond_float32_is_refused(adapters: dict[str, Made], tmp_path: Path) -> None:
    made = adapters["llama"]
    copy = shutil.copytree(made.adapter, tmp_path / "adapter")
    tensors = dict(load_file(copy / "adapter_model.safetensors"))
    tensors = {k: v * np.float32(1e30) if "0.self_attn.v_proj" in k else v for k, v in tensors.items()}
    save_file(tensors, copy / "adapter_model.safetensors")
    source = lora.merge(tiny_models.read_source(made.base), lora.read_adapter(copy))
    with pytest.raises(BadInputError, match=r"blk\.0\.attn_v\.weight.*NaN or infinity"):
        tiny_models.write_f32(source, tmp_path / "model.gguf")

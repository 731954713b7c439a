"""The recipe: what is chosen for a target, why, and what is refused before anything is written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from edgellm import targets
from edgellm.checkpoint import open_checkpoint
from edgellm.convert import mixture, pipeline
from edgellm.convert.recipe import SMALL_MODEL_WEIGHTS, ConvertOptions, make_recipe, requantized
from edgellm.convert.source import Source
from edgellm.errors import DoesNotFitError, SpecError
from edgellm.formats import ggml_types
from edgellm.targets import Target
from tests.convert.test_mixture import MODELS
from tests.support.sparse_gguf import write_sparse
from tests.support.tiny_llama import write_tiny_llama


@pytest.fixture
def tiny(tmp_path: Path) -> Source:
    return pipeline.read_source(open_checkpoint(write_tiny_llama(tmp_path / "tiny")))


@pytest.fixture
def rpi5() -> Target:
    return targets.load("rpi5")


def big(tmp_path: Path, name: str) -> Source:
    model = MODELS[name]
    return pipeline.read_source(
        open_checkpoint(
            write_sparse(tmp_path / f"{name}.gguf", model.architecture, model.metadata(), model.shapes())
        )
    )


def because(recipe: Any, choice: str) -> str:
    found = [reason.because for reason in recipe.reasons if reason.choice.startswith(choice)]
    assert len(found) == 1, recipe.reasons
    return str(found[0])


def test_a_small_model_gets_q8_0_and_the_reason_says_what_a_larger_one_would_get(
    tiny: Source, rpi5: Target
) -> None:
    assert tiny.shape.n_params < SMALL_MODEL_WEIGHTS
    recipe = make_recipe(rpi5, tiny, ConvertOptions())
    assert recipe.quant == "Q8_0"
    assert "is small" in because(recipe, "quant Q8_0")
    assert rpi5.defaults.quant in because(recipe, "quant Q8_0")


def test_a_larger_model_gets_the_targets_default_with_the_targets_reason(
    tmp_path: Path, rpi5: Target
) -> None:
    source = big(tmp_path, "llama_tied")
    assert source.shape.n_params > SMALL_MODEL_WEIGHTS
    recipe = make_recipe(rpi5, source, ConvertOptions())
    assert recipe.quant == rpi5.defaults.quant == "Q4_0"
    assert because(recipe, "quant Q4_0") == rpi5.why["quant"]


@pytest.mark.parametrize("name", targets.available())
def test_every_target_gives_a_whole_recipe(tiny: Source, name: str) -> None:
    target = targets.load(name)
    recipe = make_recipe(target, tiny, ConvertOptions())
    assert recipe.tensor_types.keys() == tiny.shape.tensors.keys()
    assert recipe.context == min(target.defaults.context, 256)
    assert all(reason.because for reason in recipe.reasons)
    assert {"quant", "context", "kv_type", "fits"} <= {reason.choice.split()[0] for reason in recipe.reasons}


def test_an_asked_quant_is_used_and_said(tiny: Source, rpi5: Target) -> None:
    recipe = make_recipe(rpi5, tiny, ConvertOptions(quant="q6_k"))
    assert recipe.quant == "Q6_K"
    assert because(recipe, "quant Q6_K") == "asked for"


def test_tensors_that_fall_back_are_counted_with_their_width(tiny: Source, rpi5: Target) -> None:
    recipe = make_recipe(rpi5, tiny, ConvertOptions(quant="Q4_K_M"))
    assert "64 weights" in because(
        recipe, "15 tensors in another type"
    )  # all matrices but the head, a rule of its own


@pytest.mark.parametrize("name", ["Q4_K_X", "", "IQ9_XXS"])
def test_an_unknown_quant(tiny: Source, rpi5: Target, name: str) -> None:
    with pytest.raises(SpecError) as caught:
        make_recipe(rpi5, tiny, ConvertOptions(quant=name))
    assert "Q4_K_M" in str(caught.value.hint)


@pytest.mark.parametrize("context", [257, 0, -1])
def test_a_context_the_model_was_not_trained_for(tiny: Source, rpi5: Target, context: int) -> None:
    with pytest.raises(SpecError, match=str(context)) as caught:
        make_recipe(rpi5, tiny, ConvertOptions(context=context))
    assert "256" in f"{caught.value} {caught.value.hint}"


def test_the_longest_context_is_allowed(tiny: Source, rpi5: Target) -> None:
    assert make_recipe(rpi5, tiny, ConvertOptions(context=256)).context == 256


def test_the_default_context_stops_at_what_was_trained(tiny: Source, rpi5: Target) -> None:
    recipe = make_recipe(rpi5, tiny, ConvertOptions())
    assert because(recipe, "context 256") == "the model was trained for 256 tokens"


@pytest.mark.parametrize("kv_type", ["Q9", "", "Q4_K", "I8"])
def test_a_cache_type_that_does_not_exist(tiny: Source, rpi5: Target, kv_type: str) -> None:
    with pytest.raises(SpecError, match="KV cache type") as caught:
        make_recipe(rpi5, tiny, ConvertOptions(kv_type=kv_type))
    assert "Q8_0" in str(caught.value.hint)


def test_a_cache_type_in_any_case(tiny: Source, rpi5: Target) -> None:
    recipe = make_recipe(rpi5, tiny, ConvertOptions(kv_type="q8_0"))
    assert recipe.kv_type == "Q8_0"
    assert because(recipe, "kv_type Q8_0") == "asked for"


def test_a_model_that_does_not_fit_is_refused_with_all_numbers(tmp_path: Path, rpi5: Target) -> None:
    with pytest.raises(DoesNotFitError, match="does not fit rpi5") as caught:
        make_recipe(rpi5, big(tmp_path, "llama_70b"), ConvertOptions())
    for words in ("of weights", "of KV cache", "4096 tokens", "it has 8", "can be used"):
        assert words in str(caught.value)
    assert "smaller model" in str(caught.value.hint)
    assert caught.value.table == []


def test_what_was_asked_for_is_not_replaced_and_the_table_says_what_would_fit(
    tmp_path: Path, rpi5: Target
) -> None:
    with pytest.raises(DoesNotFitError, match="Q8_0 at 4096 tokens") as caught:
        make_recipe(rpi5, big(tmp_path, "llama_7b"), ConvertOptions(quant="Q8_0"))
    heading, *rows = caught.value.table
    assert heading.split()[:2] == ["type", "context"]
    assert [row.split()[0] for row in rows] == ["Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K"]
    assert caught.value.hint == "what would fit: --quant Q6_K --context 2048"


@pytest.mark.parametrize(
    ("target", "model", "quant", "context"),
    [
        ("rpi5", "llama_7b", "Q4_0", 4096),
        ("rpi5", "llama3_8b", "Q4_0", 4096),
        ("rpi4", "llama_tied", "Q4_K_M", 4096),
        ("rpi3", "qwen2_tied", "Q5_K_M", 2048),
    ],
)
def test_where_it_is_left_open_something_smaller_is_found(
    tmp_path: Path, target: str, model: str, quant: str, context: int
) -> None:
    recipe = make_recipe(targets.load(target), big(tmp_path, model), ConvertOptions())
    assert (recipe.quant, recipe.context) == (quant, context)
    assert sum(recipe.predicted_memory_bytes.values()) <= targets.load(target).usable_ram_bytes


def test_kernels_are_named_for_the_targets_instructions(tiny: Source, rpi5: Target) -> None:
    said = because(make_recipe(rpi5, tiny, ConvertOptions(quant="Q5_0")), "kernels")
    assert "DOTPROD" in said
    assert "plain dot products: Q5_0" in said
    assert because(make_recipe(rpi5, tiny, ConvertOptions(quant="Q8_0")), "kernels").startswith("100%")
    assert "no repacked kernels" in because(
        make_recipe(targets.load("rpi4"), tiny, ConvertOptions()), "kernels"
    )


def test_a_longer_context_can_be_what_does_not_fit(tmp_path: Path, rpi5: Target) -> None:
    source = big(tmp_path, "llama_7b")
    long = dataclasses.replace(
        source, shape=source.shape.__class__(**{**_fields(source), "context_train": 1 << 17})
    )
    assert make_recipe(rpi5, long, ConvertOptions(context=4096)).context == 4096
    with pytest.raises(DoesNotFitError, match="131072 tokens"):
        make_recipe(rpi5, long, ConvertOptions(context=1 << 17))


def test_only_lossy_changes_of_quantized_weights_are_requantization(smollm2_gguf: Path) -> None:
    source = pipeline.read_source(open_checkpoint(smollm2_gguf))
    base = source.base_types()
    assert requantized(source, base) == []
    q8 = mixture.named_mix(mixture.find("Q8_0"), source.shape, base)[0]
    assert requantized(source, q8) == ["Q4_1"]
    assert "already quantized (Q4_1)" in pipeline.conversion_warnings(source, _recipe(source, "Q8_0"))[0]


def test_float_weights_are_never_requantized(tiny: Source) -> None:
    assert pipeline.conversion_warnings(tiny, _recipe(tiny, "Q4_0")) == []


def test_steps_say_what_is_read_and_written(tiny: Source, rpi5: Target) -> None:
    recipe = make_recipe(rpi5, tiny, ConvertOptions(quant="Q8_0"))
    assert recipe.steps[0] == "read 21 tensors from HF row by row"
    assert "reorder query and key rows" in recipe.steps[1]
    assert recipe.steps[2] == "write 16 x Q8_0, 5 x F32"


def test_a_recipe_is_the_same_every_time_and_survives_json(tiny: Source, rpi5: Target) -> None:
    one, other = (make_recipe(rpi5, tiny, ConvertOptions(quant="Q3_K_M")) for _ in range(2))
    assert one == other
    assert json.loads(json.dumps(one.tensor_types)) == one.tensor_types
    assert set(one.tensor_types.values()) <= set(ggml_types.BY_NAME)


def _fields(source: Source) -> dict[str, Any]:
    return {name: getattr(source.shape, name) for name in source.shape.__struct_fields__}


def _recipe(source: Source, quant: str) -> Any:
    return make_recipe(targets.load("rpi5"), source, ConvertOptions(quant=quant))

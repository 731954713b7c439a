"""Tiny random llama models, converted and run by llama.cpp, give the logits of transformers.

Every claim of equality has a control beside it that a wrong conversion would not pass.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from edgellm.checkpoint import open_checkpoint
from edgellm.convert import architectures
from edgellm.errors import BadInputError, UnsupportedError
from tests.support import tiny_llama
from tests.support.families.row import unordered
from tests.support.tiny_llama import (
    Array,
    kl_divergence,
    our_logits,
    read_source,
    write_f32,
    write_tiny_llama,
)

IDS = np.random.default_rng(3).integers(3, 259, 96).tolist()
EQUAL_NATS, WRONG_NATS = 1e-4, 1e-3
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped_queries": {},
    "no_groups": {"num_key_value_heads": 4},
    "one_kv_head": {"num_key_value_heads": 1},
    "tied_head": {"tie_word_embeddings": True},
    "attention_biases": {"attention_bias": True},
    "mlp_biases": {"mlp_bias": True},
    "wide_heads": {"head_dim": 32},
    "head_size_implied": {"head_dim": 16, "rope_theta": 500.0},
    "llama3_scaling": {"rope_scaling": LLAMA3},
    "linear_scaling": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "old_linear_scaling": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "mistral": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None},
}
SOURCES = {"f16_source": ("F16", 1), "bf16_source": ("BF16", 1), "sharded": ("F32", 3)}


class Case(NamedTuple):
    """A directory, and the logits of transformers."""

    directory: Path
    reference: Array


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    root = tmp_path_factory.mktemp("tiny")
    directories = [write_tiny_llama(root / name, config) for name, config in VARIANTS.items()]
    directories += [write_tiny_llama(root / name, dtype=d, n_shards=n) for name, (d, n) in SOURCES.items()]
    implied = root / "head_size_implied" / "config.json"
    config = json.loads(implied.read_text())
    del config["head_dim"]
    implied.write_text(json.dumps(config))
    logits = tiny_llama.reference_logits(directories, IDS, tmp_path_factory.mktemp("logits"))
    return {d.name: Case(d, logits[d.name]) for d in directories}


@pytest.mark.parametrize("name", [*VARIANTS, *SOURCES])
def test_logits_equal_those_of_transformers(cases: dict[str, Case], name: str, tmp_path: Path) -> None:
    case = cases[name]
    seen = our_logits(write_f32(read_source(case.directory), tmp_path / "model.gguf"), IDS)
    assert kl_divergence(case.reference, seen) < EQUAL_NATS


def test_the_reference_distributions_are_not_flat(cases: dict[str, Case]) -> None:
    uniform = np.zeros_like(cases["grouped_queries"].reference)
    assert kl_divergence(cases["grouped_queries"].reference, uniform) > 0.1


@pytest.mark.parametrize("tensor", ["attn_q.weight", "attn_k.weight"])
def test_rows_left_in_rotary_halves_are_noticed(cases: dict[str, Case], tensor: str, tmp_path: Path) -> None:
    case = cases["grouped_queries"]
    source = read_source(case.directory)
    wrong = write_f32(unordered(tensor)(source), tmp_path / "model.gguf")
    assert kl_divergence(case.reference, our_logits(wrong, IDS)) > WRONG_NATS


def test_biases_left_in_rotary_halves_are_noticed(cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases["attention_biases"]
    source = read_source(case.directory)
    wrong = write_f32(unordered("attn_q.bias")(source), tmp_path / "model.gguf")
    assert kl_divergence(case.reference, our_logits(wrong, IDS)) > WRONG_NATS


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("grouped_queries", {"rope_theta": 500000.0}),
        (
            "grouped_queries",
            {"num_key_value_heads": 2, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        ),
        ("llama3_scaling", {"rope_scaling": None}),
        ("llama3_scaling", {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 8192}}),
        ("linear_scaling", {"rope_scaling": None}),
    ],
    ids=["other base", "scaling added", "llama3 left out", "llama3 of a longer context", "linear left out"],
)
def test_a_wrong_rope_is_noticed(
    cases: dict[str, Case], name: str, change: dict[str, Any], tmp_path: Path
) -> None:
    wrong = write_tiny_llama(tmp_path / "wrong", {**VARIANTS[name], **change})
    seen = our_logits(write_f32(read_source(wrong), tmp_path / "model.gguf"), IDS)
    assert kl_divergence(cases[name].reference, seen) > WRONG_NATS


def test_shards_give_the_same_file_as_one_file(cases: dict[str, Case], tmp_path: Path) -> None:
    files = [tmp_path / "one.gguf", tmp_path / "three.gguf"]
    for path, name in zip(files, ("grouped_queries", "sharded"), strict=True):
        source = read_source(cases[name].directory)
        write_f32(
            dataclasses.replace(
                source, header={**source.header, "general.name": source.header["general.type"]}
            ),
            path,
        )
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_tied_model_has_no_head_even_where_the_file_holds_one(tmp_path: Path) -> None:
    head = np.zeros((tiny_llama.VOCAB_SIZE, 64), dtype=np.float32)
    directory = write_tiny_llama(
        tmp_path / "m", {"tie_word_embeddings": True}, tensors={"lm_head.weight": head}
    )
    assert "output.weight" not in read_source(directory).shape.tensors


def test_old_rotary_tables_are_ignored(tmp_path: Path) -> None:
    table = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, dtype=np.float32)}
    assert len(read_source(write_tiny_llama(tmp_path / "m", tensors=table)).tensors) == 21


def refused(kind: type[Exception], directory: Path) -> str:
    with pytest.raises(kind) as caught:
        architectures.read_source(open_checkpoint(directory))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_shape_that_contradicts_the_config_names_tensor_and_both_shapes(tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    directory = write_tiny_llama(tmp_path / "m", tensors={name: np.zeros((48, 64), dtype=np.float32)})
    message = refused(BadInputError, directory)
    assert name in message
    assert "[48, 64]" in message
    assert "[32, 64]" in message


def test_a_config_that_contradicts_the_tensors_names_the_first(tmp_path: Path) -> None:
    directory = write_tiny_llama(tmp_path / "m")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "vocab_size": 400}))
    message = refused(BadInputError, directory)
    assert "[320, 64]" in message
    assert "[400, 64]" in message


@pytest.mark.parametrize(
    "hf_name",
    [
        "model.layers.1.mlp.down_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
    ],
)
def test_a_missing_tensor_is_named(tmp_path: Path, hf_name: str) -> None:
    assert hf_name in refused(BadInputError, write_tiny_llama(tmp_path / "m", tensors={hf_name: None}))


@pytest.mark.parametrize(
    "name", ["model.layers.x.mlp.up_proj.weight", "model.layers.0.self_attn.q_norm.weight"]
)
def test_an_unknown_tensor_is_refused_by_name(tmp_path: Path, name: str) -> None:
    extra = {name: np.zeros((16,), dtype=np.float32)}
    assert name in refused(UnsupportedError, write_tiny_llama(tmp_path / "m", tensors=extra))


@pytest.mark.parametrize(
    ("config", "kind", "words"),
    [
        ({"rope_scaling": {"rope_type": "spiral", "factor": 4.0}}, UnsupportedError, "spiral"),
        ({"rope_scaling": {"factor": 4.0}}, BadInputError, "rope_type"),
        ({"hidden_act": "gelu"}, UnsupportedError, "gelu"),
        ({"num_key_value_heads": 3}, BadInputError, "4 heads, 3 key/value heads"),
        ({"head_dim": 15}, BadInputError, "15"),
        ({"num_hidden_layers": 10**6}, BadInputError, "num_hidden_layers"),
        ({"num_hidden_layers": "2"}, BadInputError, "num_hidden_layers"),
        ({"rope_theta": -1.0}, BadInputError, "rope_theta"),
        ({"architectures": []}, BadInputError, "architectures"),
        ({"architectures": "LlamaForCausalLM"}, BadInputError, "architectures"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_config_that_cannot_be_converted(
    tmp_path: Path, config: dict[str, Any], kind: type[Exception], words: str
) -> None:
    directory = write_tiny_llama(tmp_path / "m")
    whole = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**whole, **config}))
    assert words in refused(kind, directory)


def test_an_unknown_class_names_the_nearest_and_the_other_route(tmp_path: Path) -> None:
    directory = write_tiny_llama(tmp_path / "m", {"architectures": ["LamaForCausalLM"]})
    with pytest.raises(BadInputError, match=r"LamaForCausalLM.*'LlamaForCausalLM'") as caught:
        architectures.read_source(open_checkpoint(directory))
    assert caught.value.hint is not None
    assert "ONNX" in caught.value.hint

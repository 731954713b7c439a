"""Encoders: old names, what the header says of pooling, and everything that llama.cpp would compute otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm.checkpoint import open_checkpoint
from edgellm.convert import architectures, pipeline
from edgellm.convert.source import Source
from edgellm.errors import BadInputError, EdgeLLMError, MissingInputError, UnsupportedError
from tests.support import tiny_models
from tests.support.tiny_bert import random_tensors, write_tiny_bert

NOMIC: dict[str, Any] = {
    "architectures": ["NomicBertModel"], "activation_function": "swiglu", "n_embd": 32, "n_head": 2, "n_inner": 256,
    "n_layer": 2, "n_positions": 8192, "qkv_proj_bias": False, "mlp_fc1_bias": False, "mlp_fc2_bias": False,
    "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0,
}  # fmt: skip
DISTILBERT: dict[str, Any] = {
    "architectures": ["DistilBertModel"], "dim": 32, "n_heads": 2, "hidden_dim": 48, "n_layers": 2, "activation": "gelu",
}  # fmt: skip


def read(directory: Path) -> Source:
    return architectures.read_source(open_checkpoint(directory))


def header(directory: Path) -> dict[str, Any]:
    return {key: entry.value for key, entry in read(directory).header.items()}


def test_the_header_of_an_encoder(tmp_path: Path) -> None:
    source = read(write_tiny_bert(tmp_path / "bert"))
    assert source.shape.is_encoder
    assert source.shape.kv_bytes(40) == 0
    found = header(tmp_path / "bert")
    assert found["bert.attention.causal"] is False
    assert (found["bert.context_length"], found["tokenizer.ggml.token_type_count"]) == (40, 2)
    assert [path.name for path in source.checkpoint.files[-2:]] == ["modules.json", "config.json"]


def test_old_names_give_the_same_file(tmp_path: Path) -> None:
    tensors = random_tensors()
    old = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): values
        for name, values in tensors.items()
    }
    old["bert.embeddings.position_ids"] = np.arange(40, dtype=np.int64)[np.newaxis]
    old["bert.pooler.dense.weight"] = np.ones((32, 32), dtype=np.float32)
    old["cls.predictions.transform.LayerNorm.gamma"] = np.ones(32, dtype=np.float32)
    old["cls.seq_relationship.weight"] = np.ones((2, 32), dtype=np.float32)
    head = {"architectures": ["BertForPreTraining"]}
    directories = [
        write_tiny_bert(tmp_path / "a" / "m"),
        write_tiny_bert(tmp_path / "b" / "m", head, tensors=old),
    ]
    files = [tiny_models.write_f32(tiny_models.read_source(d), d.parent / "model.gguf") for d in directories]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert pipeline.read_source(open_checkpoint(files[1])).shape.is_encoder
    assert "head of BertForPreTraining is left out" in read(directories[1]).notes[-1]


@pytest.mark.parametrize(
    ("pooling", "number"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, 1),
        ({"pooling_mode_cls_token": True}, 2),
        ({"pooling_mode_lasttoken": True}, 3),
        ({"pooling_mode": "cls"}, 2),
        ({"pooling_mode": "mean", "pooling_mode_mean_tokens": True}, 1),
    ],
)
def test_how_tokens_are_pooled(tmp_path: Path, pooling: dict[str, Any], number: int) -> None:
    assert header(write_tiny_bert(tmp_path / "bert", pooling=pooling))["bert.pooling_type"] == number


def test_without_a_pooling_the_choice_is_left_open(tmp_path: Path) -> None:
    directory = write_tiny_bert(tmp_path / "bert")
    (directory / "modules.json").unlink()
    assert "bert.pooling_type" not in header(directory)
    assert "no modules.json" in read(directory).notes[-1]


def test_a_prompt_that_is_not_pooled_is_noted(tmp_path: Path) -> None:
    pooling = {"pooling_mode_mean_tokens": True, "include_prompt": False}
    assert "leaves its prompt out" in read(write_tiny_bert(tmp_path / "bert", pooling=pooling)).notes[-1]


@pytest.mark.parametrize(
    ("pooling", "error", "said"),
    [
        ({"pooling_mode_max_tokens": True}, UnsupportedError, "pooling is max"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, UnsupportedError, "mean_sqrt_len_tokens"),
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            UnsupportedError,
            "mean \\+ cls",
        ),
        ({"pooling_mode": "max"}, UnsupportedError, "pooling is max"),
        ({"pooling_mode": ["cls", "mean"]}, BadInputError, "pooling_mode is an array of 2"),
        ({"pooling_mode_mean_tokens": False}, BadInputError, "no pooling mode is set"),
        (
            {"pooling_mode_mean_tokens": 1},
            BadInputError,
            "pooling_mode_mean_tokens is 1, expected true or false",
        ),
    ],
)
def test_a_pooling_that_cannot_be(
    tmp_path: Path, pooling: dict[str, Any], error: type[EdgeLLMError], said: str
) -> None:
    with pytest.raises(error, match=said) as caught:
        read(write_tiny_bert(tmp_path / "bert", pooling=pooling))
    assert error is BadInputError or "ONNX" in str(caught.value.hint)


def step(kind: str, path: str = "", package: str = "sentence_transformers.models") -> dict[str, str]:
    return {"type": f"{package}.{kind}", "path": path}


@pytest.mark.parametrize(
    ("steps", "error", "said"),
    [
        (
            [step("Transformer"), step("Dense", "2_Dense")],
            UnsupportedError,
            "step 1 is 'sentence_transformers.models.D",
        ),
        ([step("Transformer")], UnsupportedError, "no step is a Pooling"),
        ([step("SpladePooling")], UnsupportedError, "SpladePooling"),
        ([step("Transformer", package="custom_st")], UnsupportedError, "custom_st.Transformer"),
        ([step("Pooling", "1_Pooling")] * 2, BadInputError, "second Pooling"),
        ([step("Pooling", "../1_Pooling")], BadInputError, "leaves|outside|\\.\\."),
        ([step("Pooling", "/etc")], BadInputError, "absolute|outside|plain|leaves"),
        ([step("Pooling", "2_Pooling")], MissingInputError, "2_Pooling"),
        ([step("Pooling", "1_Pooling")] * 17, BadInputError, "17 steps"),
        (["Pooling"], BadInputError, "step 0 is not an object"),
        ([{"type": 3}], BadInputError, "step 0 type is 3"),
        ([{"type": "sentence_transformers.models.Pooling"}], BadInputError, "path is missing"),
        ({"0": step("Pooling")}, BadInputError, "top level is an object"),
    ],
)
def test_steps_that_cannot_be(tmp_path: Path, steps: Any, error: type[EdgeLLMError], said: str) -> None:
    with pytest.raises(error, match=said):
        read(write_tiny_bert(tmp_path / "bert", steps=steps))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is true"),
        ({**DISTILBERT, "activation": "relu"}, "activation is 'relu'"),
        ({**DISTILBERT, "dim": 33}, "2 heads of 16 with an embedding of 33"),
        ({"num_attention_heads": 3}, "3 heads of 10 with an embedding of 32"),
        ({**NOMIC, "n_embd": 33}, "2 heads of 16 with an embedding of 33"),
        ({**NOMIC, "activation_function": "gelu"}, "activation_function is 'gelu'"),
        ({**NOMIC, "activation_function": None}, "activation_function is 'gelu_new'"),
        ({**NOMIC, "prenorm": True}, "prenorm is true"),
        ({**NOMIC, "causal": True}, "causal is true"),
        ({**NOMIC, "use_rms_norm": True}, "use_rms_norm is true"),
        ({**NOMIC, "norm_mlp": True}, "norm_mlp is true"),
        ({**NOMIC, "parallel_block": True}, "parallel_block is true"),
        ({**NOMIC, "rotary_emb_interleaved": True}, "rotary_emb_interleaved is true"),
        ({**NOMIC, "rotary_emb_fraction": 0.5}, "rotary_emb_fraction is 0.5"),
        ({**NOMIC, "rotary_emb_fraction": 0.0}, "rotary_emb_fraction is 0"),
        ({**NOMIC, "rotary_emb_scale_base": 512}, "rotary_emb_scale_base is set"),
        ({**NOMIC, "qkv_proj_bias": True}, "qkv_proj_bias is true"),
        ({**NOMIC, "mlp_fc1_bias": True}, "mlp_fc1_bias is true"),
        ({**NOMIC, "num_heads_kv": 1}, "num_heads_kv is 1"),
        ({**NOMIC, "moe_every_n_layers": 2}, "moe_every_n_layers"),
    ],
)
def test_what_llama_cpp_does_not_compute(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedError, match=said) as caught:
        read(write_tiny_bert(tmp_path / "bert", config))
    assert "ONNX" in str(caught.value.hint)


def test_an_absent_bias_key_of_nomic_bert_means_biases(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="qkv_proj_bias is true"):
        read(write_tiny_bert(tmp_path / "bert", {k: v for k, v in NOMIC.items() if not k.endswith("_bias")}))


@pytest.mark.parametrize(
    "config",
    [
        {"type_vocab_size": 0}, {"type_vocab_size": 1 << 40}, {"type_vocab_size": "2"}, {"type_vocab_size": 3},
        {"max_position_embeddings": 41}, {"max_position_embeddings": -1}, {"layer_norm_eps": -1.0},
        {"layer_norm_eps": "0"}, {"num_attention_heads": 0}, {"position_embedding_type": 3}, {"is_decoder": 1},
        {**DISTILBERT, "n_heads": -2}, {**DISTILBERT, "hidden_dim": 1 << 60},
        {**NOMIC, "n_inner": 1 << 60}, {**NOMIC, "n_layer": 100_000}, {**NOMIC, "rotary_emb_base": 0},
        {**NOMIC, "max_trained_positions": 0}, {**NOMIC, "pad_vocab_size_multiple": 1 << 40},
        {**NOMIC, "moe_every_n_layers": "2"}, {**NOMIC, "type_vocab_size": -1}, {**NOMIC, "rotary_emb_fraction": 1.5},
        {**NOMIC, "prenorm": "no"},
    ],
)  # fmt: skip
def test_numbers_that_cannot_be(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(BadInputError):
        read(write_tiny_bert(tmp_path / "bert", config))


@pytest.mark.parametrize(
    "name",
    [
        "BertForSequenceClassification",
        "BertForTokenClassification",
        "BertForQuestionAnswering",
        "DistilBertForSequenceClassification",
        "NomicBertForSequenceClassification",
    ],
)
def test_heads_that_llama_cpp_has_not_go_to_onnx(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{name} cannot be converted to GGUF: ") as caught:
        read(write_tiny_bert(tmp_path / "bert", {"architectures": [name]}))
    assert "ONNX" in str(caught.value.hint)


def test_the_context_of_nomic_bert_is_what_it_was_trained_for(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    shapes: dict[str, tuple[int, ...]] = {"embeddings.word_embeddings.weight": (64, 32)}
    norms = ["emb_ln"]
    for i in range(2):
        layer = f"encoder.layers.{i}."
        shapes |= {
            f"{layer}attn.Wqkv.weight": (96, 32),
            f"{layer}attn.out_proj.weight": (32, 32),
            f"{layer}mlp.fc11.weight": (256, 32),
            f"{layer}mlp.fc12.weight": (256, 32),
            f"{layer}mlp.fc2.weight": (32, 256),
        }
        norms += [f"{layer}norm1", f"{layer}norm2"]
    shapes |= {f"{norm}.{part}": (32,) for norm in norms for part in ("weight", "bias")}
    tensors = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    # The model's code rounds the width up to 256 and the vocabulary up to a multiple of 64.
    config = {**NOMIC, "n_inner": 200, "vocab_size": 60, "pad_vocab_size_multiple": 64, "type_vocab_size": 0}
    directory = write_tiny_bert(tmp_path / "nomic", config, tensors=tensors)
    found = header(directory)
    assert found["nomic-bert.context_length"] == 2048
    assert found["nomic-bert.feed_forward_length"] == 256
    assert found["tokenizer.ggml.token_type_count"] == 1
    file = tiny_models.write_f32(tiny_models.read_source(directory), tmp_path / "model.gguf")
    assert tiny_models.our_embeddings(file, [1, 2, 63]).states.shape == (3, 32)


def test_a_table_of_positions_of_another_length(tmp_path: Path) -> None:
    directory = write_tiny_bert(tmp_path / "bert")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 39}))
    with pytest.raises(BadInputError, match="position_embeddings"):
        read(directory)

"""GPT-2, GPT-NeoX, Bloom, Falcon, StableLM, StarCoder2 and Phi: what is refused, and what old repositories hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgellm.errors import BadInputError, UnsupportedError
from tests.support import blank_models

COMMON = {
    "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"], "vocab_size": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8,
    },
    "gpt_neox": {**COMMON, "architectures": ["GPTNeoXForCausalLM"]},
    "bloom": {"architectures": ["BloomForCausalLM"], "vocab_size": 32, "n_embed": 16, "n_layer": 1, "n_head": 2},
    "falcon": {**COMMON, "architectures": ["FalconForCausalLM"]},
    "stablelm": {**COMMON, "architectures": ["StableLmForCausalLM"], "partial_rotary_factor": 0.5},
    "starcoder2": {**COMMON, "architectures": ["Starcoder2ForCausalLM"]},
    "phi": {**COMMON, "architectures": ["PhiForCausalLM"]},
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0}
LONGROPE = {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}
ROTARY = ("gpt_neox", "falcon", "stablelm", "starcoder2", "phi")
UNSUPPORTED: list[tuple[str, dict[str, Any], str]] = [
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is false"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is true"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention is true"),
    ("gpt2", {"activation_function": "relu"}, "activation_function is 'relu'"),
    ("gpt2", {"head_dim": 16}, "2 heads of 16 with an embedding of 16"),
    ("gpt_neox", {"attention_bias": False}, "attention_bias is false"),
    ("gpt_neox", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
    ("bloom", {"apply_residual_connection_post_layernorm": True}, "post_layernorm is true"),
    ("falcon", {"alibi": True}, "alibi is true"),
    ("falcon", {"bias": True}, "bias is true"),
    ("falcon", {"parallel_attn": False}, "parallel_attn is false"),
    ("falcon", {"activation": "silu"}, "activation is 'silu'"),
    ("falcon", {"partial_rotary_factor": 0.5}, "4 of 8 columns of a head rotate"),
    ("stablelm", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ("starcoder2", {"use_bias": False}, "use_bias is false"),
    ("starcoder2", {"partial_rotary_factor": 0.5}, "4 of 8 columns of a head rotate"),
    ("starcoder2", {"head_dim": 16}, "2 heads of 16 with an embedding of 16"),
    ("phi", {"qk_layernorm": True}, "qk_layernorm is true"),
    *((name, {"rope_scaling": LLAMA3}, "rope scaling 'llama3'; llama.cpp runs") for name in ROTARY),
    *((name, {"rope_scaling": LONGROPE}, "rope scaling 'longrope'; llama.cpp runs") for name in ROTARY),
]
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("gpt2", {"n_layer": -1}, "n_layer is -1"),
    ("gpt2", {"n_head": "2"}, "n_head is '2'"),
    ("gpt2", {"n_inner": 1 << 40}, "n_inner is 1099511627776"),
    ("gpt2", {"n_positions": 0}, "n_positions is 0"),
    ("gpt_neox", {"rotary_pct": 1.5}, "rotary_pct is 1.5"),
    ("gpt_neox", {"rotary_pct": 0.1}, "0.1 of a head of 8 rotates"),
    ("gpt_neox", {"rotary_emb_base": -1}, "rotary_emb_base is -1"),
    ("gpt_neox", {"use_parallel_residual": "yes"}, "use_parallel_residual is 'yes'"),
    ("bloom", {"n_embed": 10**30}, "n_embed is 1000000000000000000000000000000"),
    ("bloom", {"seq_length": -5}, "seq_length is -5"),
    ("falcon", {"num_ln_in_parallel_attn": 3}, "num_ln_in_parallel_attn is 3"),
    ("falcon", {"num_kv_heads": 0}, "num_kv_heads is 0"),
    ("falcon", {"new_decoder_architecture": 1}, "new_decoder_architecture is 1"),
    ("stablelm", {"qk_layernorm": 1}, "qk_layernorm is 1"),
    ("stablelm", {"norm_eps": "small"}, "norm_eps is 'small'"),
    ("starcoder2", {"num_key_value_heads": 3}, "num_key_value_heads is 3"),
    ("phi", {"partial_rotary_factor": [0.5]}, "partial_rotary_factor is an array"),
]


def ids(case: object) -> str:
    return "-".join(case) if isinstance(case, dict) else str(case)[:30]


@pytest.mark.parametrize(("family", "change", "words"), UNSUPPORTED, ids=ids)
def test_what_llama_cpp_does_not_compute_is_refused(
    tmp_path: Path, family: str, change: dict[str, Any], words: str
) -> None:
    message = blank_models.refusal(UnsupportedError, tmp_path / "m", {**CONFIGS[family], **change})
    assert words in message
    assert "llama.cpp" in message


@pytest.mark.parametrize(("family", "change", "words"), BAD, ids=ids)
def test_hostile_numbers_are_refused(tmp_path: Path, family: str, change: dict[str, Any], words: str) -> None:
    assert words in blank_models.refusal(BadInputError, tmp_path / "m", {**CONFIGS[family], **change})


GPT2_LAYER = {
    "attn.c_attn": (16, 48), "attn.c_proj": (16, 16), "mlp.c_fc": (16, 64), "mlp.c_proj": (64, 16), "ln_1": (16,),
    "ln_2": (16,),
}  # fmt: skip


def gpt2_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (32, 16), "wpe.weight": (8, 16)}
    for name, shape in {
        **{f"h.0.{name}": shape for name, shape in GPT2_LAYER.items()},
        "ln_f": (16,),
    }.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[-1:]}
    return shapes


def test_masks_of_old_repositories_are_skipped_whatever_their_type(tmp_path: Path) -> None:
    masks = {"h.0.attn.bias:BOOL": (1, 1, 8, 8), "h.0.attn.masked_bias:F32": ()}
    source = blank_models.read(tmp_path / "m", CONFIGS["gpt2"], gpt2_shapes() | masks)
    assert (
        source.shape.tensors
        == blank_models.read(tmp_path / "n", CONFIGS["gpt2"], gpt2_shapes()).shape.tensors
    )
    assert source.shape.tensors["blk.0.attn_qkv.weight"] == (48, 16)


def test_a_matrix_that_is_not_stored_transposed_is_named(tmp_path: Path) -> None:
    wrong = gpt2_shapes() | {"h.0.attn.c_attn.weight": (48, 16)}
    with pytest.raises(BadInputError, match=r"c_attn.weight' has shape \[48, 16\].*\[48, 16\], transposed"):
        blank_models.read(tmp_path / "m", CONFIGS["gpt2"], wrong)


def test_positions_must_be_as_many_as_the_context_is_long(tmp_path: Path) -> None:
    with pytest.raises(
        BadInputError, match=r"'wpe.weight' has shape \[8, 16\], config.json implies \[9, 16\]"
    ):
        blank_models.read(tmp_path / "m", {**CONFIGS["gpt2"], "n_positions": 9}, gpt2_shapes())


@pytest.mark.parametrize(
    ("activation", "n_notes"),
    [("gelu", 1), ("gelu_python", 1), ("gelu_new", 0), ("gelu_pytorch_tanh", 0), ("gelu_fast", 0)],
)
def test_the_exact_gelu_is_noted(tmp_path: Path, activation: str, n_notes: int) -> None:
    config = {**CONFIGS["gpt2"], "activation_function": activation}
    assert len(blank_models.read(tmp_path / "m", config, gpt2_shapes()).notes) == n_notes


STABLELM_LAYER = {
    "self_attn.q_proj": (16, 16), "self_attn.k_proj": (16, 16), "self_attn.v_proj": (16, 16),
    "self_attn.o_proj": (16, 16), "mlp.gate_proj": (24, 16), "mlp.up_proj": (24, 16), "mlp.down_proj": (16, 24),
    "input_layernorm": (16,),
}  # fmt: skip
SECOND_NORM = {f"model.layers.0.post_attention_layernorm.{kind}": (16,) for kind in ("weight", "bias")}
QKV_BIASES = {f"model.layers.0.self_attn.{x}_proj.bias": (16,) for x in "qkv"}
HEAD_NORMS = {f"model.layers.0.self_attn.{x}_layernorm.norms.{j}.weight": (8,) for x in "qk" for j in (0, 1)}


def stablelm_shapes() -> dict[str, tuple[int, ...]]:
    return {
        "model.embed_tokens.weight": (32, 16), "model.norm.weight": (16,), "model.norm.bias": (16,),
        "lm_head.weight": (32, 16), "model.layers.0.input_layernorm.bias": (16,),
        **{f"model.layers.0.{name}.weight": shape for name, shape in STABLELM_LAYER.items()},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "tensors"),
    [
        ({}, SECOND_NORM),
        ({"use_parallel_residual": True}, {}),
        ({"use_qkv_bias": True}, SECOND_NORM | QKV_BIASES),
        ({"qk_layernorm": True}, SECOND_NORM | HEAD_NORMS),
    ],
    ids=ids,
)
def test_the_configuration_says_which_tensors_a_stablelm_has(
    tmp_path: Path, flags: dict[str, Any], tensors: dict[str, tuple[int, ...]]
) -> None:
    config = {**CONFIGS["stablelm"], **flags}
    assert blank_models.read(tmp_path / "m", config, stablelm_shapes() | tensors)
    fewer = dict(list((stablelm_shapes() | tensors).items())[:-1])
    with pytest.raises(BadInputError, match="1 tensors are missing"):
        blank_models.read(tmp_path / "fewer", config, fewer)
    more = stablelm_shapes() | SECOND_NORM | QKV_BIASES | HEAD_NORMS
    with pytest.raises(BadInputError, match=r"is there, and by config\.json the model has none"):
        blank_models.read(tmp_path / "more", config, more)


def falcon_shapes(qkv_rows: int, norms: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    layer = "transformer.h.0"
    return {
        "transformer.word_embeddings.weight": (32, 16), "transformer.ln_f.weight": (16,), "transformer.ln_f.bias": (16,),
        f"{layer}.self_attention.query_key_value.weight": (qkv_rows, 16), f"{layer}.self_attention.dense.weight": (16, 16),
        f"{layer}.mlp.dense_h_to_4h.weight": (64, 16), f"{layer}.mlp.dense_4h_to_h.weight": (16, 64),
        **{f"{layer}.{norm}.{kind}": (16,) for norm in norms for kind in ("weight", "bias")},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "qkv_rows", "norms", "n_kv_heads"),
    [
        # As the 7B's file has it, whose number of key/value heads means nothing.
        ({"num_kv_heads": 2, "multi_query": True}, 32, ("input_layernorm",), 1),
        ({"multi_query": False}, 48, ("input_layernorm",), 2),
        ({"new_decoder_architecture": True, "num_kv_heads": 1}, 32, ("ln_attn", "ln_mlp"), 1),
        ({"n_head_kv": 2}, 48, ("ln_attn", "ln_mlp"), 2),
        (
            {"new_decoder_architecture": True, "num_kv_heads": 1, "num_ln_in_parallel_attn": 1},
            32,
            ("input_layernorm",),
            1,
        ),
    ],
    ids=ids,
)
def test_the_configuration_says_how_a_falcon_is_built(
    tmp_path: Path, change: dict[str, Any], qkv_rows: int, norms: tuple[str, ...], n_kv_heads: int
) -> None:
    config = {**CONFIGS["falcon"], "intermediate_size": None, **change}
    source = blank_models.read(tmp_path / "m", config, falcon_shapes(qkv_rows, norms))
    assert source.header["falcon.attention.head_count_kv"].value == n_kv_heads
    assert ("blk.0.attn_norm_2.weight" in source.shape.tensors) == (len(norms) == 2)
    with pytest.raises(BadInputError, match="query_key_value"):
        blank_models.read(tmp_path / "wrong", config, falcon_shapes(80 - qkv_rows, norms))

"""Nomic BERT (nomic-embed-text v1 and v1.5): BERT with rotary positions, a gated feed-forward layer and no biases."""

from __future__ import annotations

import dataclasses

from edgellm.convert.architectures.bert import (
    MAX_TOKEN_TYPES,
    POOLER,
    TABLES,
    encoder_header,
    head_note,
    vectors,
)
from edgellm.convert.architectures.family import Family, Header
from edgellm.convert.architectures.hyper import (
    MAX_WIDTH,
    Hyper,
    check_activation,
    check_square,
    read_hyper,
    refuse,
)
from edgellm.convert.source import HeaderValue
from edgellm.errors import UnsupportedError
from edgellm.formats.plain_json import Fields

_NAMES = {
    "num_attention_heads": "n_head", "num_hidden_layers": "n_layer", "hidden_size": "n_embd", "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions", "rms_norm_eps": "layer_norm_epsilon", "rope_theta": "rotary_emb_base",
    "num_key_value_heads": "num_heads_kv",
}  # fmt: skip
WIDTH_STEP = 256  # the model's code rounds the feed-forward width up to a multiple
MAX_VOCAB_STEP = 1 << 16
_PLAIN = {
    "prenorm": False, "causal": False, "use_rms_norm": False, "norm_mlp": False, "parallel_block": False,
    "rotary_emb_interleaved": False, "rotary_head_dim": False, "qkv_proj_bias": False, "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
}  # fmt: skip


def _hyper(fields: Fields) -> Hyper:
    hyper = read_hyper(fields, names=_NAMES)
    trained = fields.integer("max_trained_positions", 1, 1 << 30)
    step = fields.integer("pad_vocab_size_multiple", 1, MAX_VOCAB_STEP)
    return dataclasses.replace(
        hyper,
        context_train=min(hyper.context_train, trained),
        feed_forward_size=_round_up(hyper.feed_forward_size, WIDTH_STEP),
        vocab_size=_round_up(hyper.vocab_size, step),
        n_token_types=fields.integer("type_vocab_size", 0, MAX_TOKEN_TYPES),
    )


def _round_up(number: int, step: int) -> int:
    return (number + step - 1) // step * step


def _header(fields: Fields, hyper: Hyper) -> Header:
    return {**encoder_header(fields, hyper), "rope.freq_base": HeaderValue("FLOAT32", hyper.rope_base)}


def _check(fields: Fields, hyper: Hyper) -> list[str]:
    if fields.integer("moe_every_n_layers", 0, MAX_WIDTH, default=0):
        raise UnsupportedError(
            f"{fields.where}: moe_every_n_layers is set; nomic-embed-text v1 and v1.5 can be converted, v2 cannot"
        )
    check_square(fields, hyper)
    refuse(fields, _PLAIN)
    if hyper.n_kv_heads != hyper.n_heads:
        raise UnsupportedError(
            f"{fields.where}: num_heads_kv is {hyper.n_kv_heads}; the model's own code has one per head"
        )
    rotary_share = fields.number("rotary_emb_fraction", 0.0, 1.0)
    if rotary_share != 1:
        raise UnsupportedError(
            f"{fields.where}: rotary_emb_fraction is {rotary_share:g}; llama.cpp runs Nomic BERT with 1"
        )
    if "rotary_emb_scale_base" in fields:
        raise UnsupportedError(
            f"{fields.where}: rotary_emb_scale_base is set; llama.cpp does not scale by it"
        )
    notes = check_activation(fields, "activation_function", "gelu_new", same=("swiglu",))
    return notes + head_note(fields, ("NomicBertForPreTraining",))


def _absent(_fields: Fields, hyper: Hyper) -> tuple[str, ...]:
    return () if hyper.n_token_types else ("token_types.weight",)


FAMILY = Family(
    architecture="nomic-bert",
    classes=("NomicBertModel", "NomicBertForPreTraining"),
    refused={"NomicBertForSequenceClassification": "llama.cpp's graph has no classifier for it"},
    hyper=_hyper,
    defaults={
        "n_positions": 1024,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
        "type_vocab_size": 2,
        "max_trained_positions": 2048,
        "pad_vocab_size_multiple": 1,
        "rotary_emb_fraction": 0.0,
        "rotary_emb_base": 10000.0,
        "qkv_proj_bias": True,
        "mlp_fc1_bias": True,
        "mlp_fc2_bias": True,
    },
    outside={
        "embeddings.word_embeddings.weight": "token_embd.weight",
        "embeddings.token_type_embeddings.weight": "token_types.weight",
    }
    | vectors({"emb_ln": "token_embd_norm"}),
    per_layer={
        "attn.Wqkv.weight": "attn_qkv.weight",
        "attn.out_proj.weight": "attn_output.weight",
        "mlp.fc11.weight": "ffn_up.weight",
        "mlp.fc12.weight": "ffn_gate.weight",
        "mlp.fc2.weight": "ffn_down.weight",
    }
    | vectors({"norm1": "attn_output_norm", "norm2": "layer_output_norm"}),
    header=_header,
    shapes=TABLES,
    absent=_absent,
    ignored=(
        *POOLER,
        "cls.predictions.transform.dense.weight",
        "cls.predictions.transform.layer_norm.weight",
        "cls.predictions.transform.layer_norm.bias",
        "cls.predictions.decoder.weight",
    ),
    layer_prefix="encoder.layers.",
    strip=("bert.",),
    check=_check,
    is_encoder=True,
)

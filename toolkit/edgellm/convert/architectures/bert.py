"""BERT and its kin as encoders: MiniLM, BGE, E5, GTE of sentence-transformers; token states, without any head."""

from __future__ import annotations

import dataclasses

from edgellm.convert.architectures.family import Family, Header
from edgellm.convert.architectures.hyper import (
    EXACT_GELU,
    TANH_GELU,
    Hyper,
    check_activation,
    check_square,
    read_hyper,
)
from edgellm.convert.source import HeaderValue
from edgellm.errors import UnsupportedError
from edgellm.formats.plain_json import Fields

MAX_TOKEN_TYPES = 1 << 16
OUTSIDE = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
}
TABLES: dict[str, tuple[str | int, ...]] = {
    "position_embd.weight": ("context_train", "embedding_size"),
    "token_types.weight": ("n_token_types", "embedding_size"),
}
_LINEAR = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
}
_NORMS = {"attention.output.LayerNorm": "attn_output_norm", "output.LayerNorm": "layer_output_norm"}
# Old checkpoints call the two vectors of a norm gamma and beta.
_VECTORS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
_HEAD = (
    "cls.predictions.bias", "cls.predictions.transform.dense.weight", "cls.predictions.transform.dense.bias",
    "cls.predictions.decoder.weight", "cls.predictions.decoder.bias", "cls.seq_relationship.weight",
    "cls.seq_relationship.bias", *(f"cls.predictions.transform.LayerNorm.{vector}" for vector in _VECTORS),
)  # fmt: skip
POOLER = ("pooler.dense.weight", "pooler.dense.bias")
WITH_HEAD = ("BertForMaskedLM", "BertForPreTraining")
_NO_CLASSIFIER = "its classifier reads the pooler and the type of each token, which llama.cpp's graph has not"


def vectors(names: dict[str, str]) -> dict[str, str]:
    """Weight and bias of norms, under their new and their old names."""
    return {f"{hf}.{old}": f"{gguf}.{new}" for hf, gguf in names.items() for old, new in _VECTORS.items()}


def linear(names: dict[str, str]) -> dict[str, str]:
    """Weight and bias of linear layers."""
    return {f"{hf}.{kind}": f"{gguf}.{kind}" for hf, gguf in names.items() for kind in ("weight", "bias")}


def encoder_header(_fields: Fields, hyper: Hyper) -> Header:
    """What every encoder's header has."""
    return {
        "attention.causal": HeaderValue("BOOL", False),
        "attention.layer_norm_epsilon": HeaderValue("FLOAT32", hyper.norm_epsilon),
    }


def head_note(fields: Fields, classes: tuple[str, ...]) -> list[str]:
    """A note where the checkpoint has a head, which is left out."""
    name = str(fields.values["architectures"][0])
    return [f"the head of {name} is left out: the result gives embeddings"] if name in classes else []


def _hyper(fields: Fields) -> Hyper:
    names = {"rms_norm_eps": "layer_norm_eps"}
    hyper = read_hyper(fields, names=names, default_context=512, default_epsilon=1e-12)
    n_token_types = fields.integer("type_vocab_size", 1, MAX_TOKEN_TYPES, default=2)
    return dataclasses.replace(hyper, n_token_types=n_token_types)


def _check(fields: Fields, hyper: Hyper) -> list[str]:
    check_square(fields, hyper)
    positions = fields.text("position_embedding_type", default="absolute", max_chars=40)
    if positions != "absolute":
        raise UnsupportedError(
            f"{fields.where}: position_embedding_type is {positions!r}; llama.cpp runs BERT with 'absolute'"
        )
    if fields.flag("is_decoder", default=False):
        raise UnsupportedError(f"{fields.where}: is_decoder is true; llama.cpp runs BERT as an encoder")
    notes = check_activation(fields, "hidden_act", "gelu", same=TANH_GELU, near=EXACT_GELU)
    return notes + head_note(fields, WITH_HEAD)


FAMILY = Family(
    architecture="bert",
    classes=("BertModel", *WITH_HEAD),
    refused={
        "BertForSequenceClassification": _NO_CLASSIFIER,
        "BertForTokenClassification": "llama.cpp has no classifier of tokens",
        "BertForQuestionAnswering": "llama.cpp has no head that finds answers",
        "BertLMHeadModel": "llama.cpp runs BERT as an encoder",
    },
    hyper=_hyper,
    outside=OUTSIDE | vectors({"embeddings.LayerNorm": "token_embd_norm"}),
    per_layer=linear(_LINEAR) | vectors(_NORMS),
    header=encoder_header,
    shapes=TABLES,
    ignored=(*POOLER, *_HEAD, "embeddings.position_ids", "embeddings.token_type_ids"),
    layer_prefix="encoder.layer.",
    strip=("bert.",),
    check=_check,
    is_encoder=True,
)

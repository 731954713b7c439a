"""DistilBERT: BERT without token types, under names of its own."""

from __future__ import annotations

from edgellm.convert.architectures.bert import TABLES, encoder_header, head_note, linear, vectors
from edgellm.convert.architectures.family import Family
from edgellm.convert.architectures.hyper import (
    EXACT_GELU,
    TANH_GELU,
    Hyper,
    check_activation,
    check_square,
    read_hyper,
)
from edgellm.formats.plain_json import Fields

_NAMES: dict[str, str | tuple[str, ...]] = {
    "num_attention_heads": ("n_heads", "num_attention_heads"),
    "num_hidden_layers": ("n_layers", "num_hidden_layers"),
    "hidden_size": ("dim", "hidden_size"),
    "intermediate_size": "hidden_dim",
}
_LINEAR = {
    "attention.q_lin": "attn_q", "attention.k_lin": "attn_k", "attention.v_lin": "attn_v",
    "attention.out_lin": "attn_output", "ffn.lin1": "ffn_up", "ffn.lin2": "ffn_down",
}  # fmt: skip
_HEAD = tuple(
    f"vocab_{part}.{vector}"
    for part in ("transform", "layer_norm", "projector")
    for vector in ("weight", "bias")
)
EPSILON = 1e-12  # in the model's code, not in its configuration


def _hyper(fields: Fields) -> Hyper:
    return read_hyper(fields, names=_NAMES, default_context=512, default_epsilon=EPSILON)


def _check(fields: Fields, hyper: Hyper) -> list[str]:
    check_square(fields, hyper)
    notes = check_activation(fields, "activation", "gelu", same=TANH_GELU, near=EXACT_GELU)
    return notes + head_note(fields, ("DistilBertForMaskedLM",))


FAMILY = Family(
    architecture="bert",
    classes=("DistilBertModel", "DistilBertForMaskedLM"),
    refused={
        "DistilBertForSequenceClassification": "its classifier uses ReLU, which llama.cpp's graph has not",
        "DistilBertForTokenClassification": "llama.cpp has no classifier of tokens",
        "DistilBertForQuestionAnswering": "llama.cpp has no head that finds answers",
    },
    hyper=_hyper,
    outside={
        "embeddings.word_embeddings.weight": "token_embd.weight",
        "embeddings.position_embeddings.weight": "position_embd.weight",
    }
    | vectors({"embeddings.LayerNorm": "token_embd_norm"}),
    per_layer=linear(_LINEAR)
    | vectors({"sa_layer_norm": "attn_output_norm", "output_layer_norm": "layer_output_norm"}),
    header=encoder_header,
    shapes=TABLES,
    ignored=(*_HEAD, "embeddings.position_ids"),
    layer_prefix="transformer.layer.",
    strip=("distilbert.",),
    check=_check,
    is_encoder=True,
)

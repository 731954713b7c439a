"""BERT, DistilBERT and Nomic BERT as encoders."""

from __future__ import annotations

from tests.support.families.row import Row, swapped, with_header, zeroed

SMALL = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 256, "initializer_range": 0.05,
}  # fmt: skip
DISTILLED = {
    "vocab_size": 320, "dim": 64, "hidden_dim": 128, "n_layers": 3, "n_heads": 4, "max_position_embeddings": 256,
    "initializer_range": 0.05,
}  # fmt: skip
NOMIC = {
    "vocab_size": 320,
    "n_embd": 64,
    "n_inner": 256,
    "n_layer": 3,
    "n_head": 4,
    "initializer_range": 0.05,
}
CONTROLS = {
    "no positions": zeroed("position_embd.weight"),
    "no bias of the queries": zeroed("attn_q.bias"),
    "no bias of the feed-forward layer": zeroed("ffn_down.bias"),
    "no bias of the first norm": zeroed("token_embd_norm.bias"),
    "norms of a layer in the wrong places": swapped("attn_output_norm.weight", "layer_output_norm.weight"),
}
TYPES = {"no token types": zeroed("token_types.weight")}
OTHER_POOLING = {"pooled by the first token": with_header("pooling_type", 2)}

ROWS = (
    Row(
        "bert",
        "BertModel",
        "BertConfig",
        {**SMALL, "hidden_act": "gelu_new"},
        CONTROLS | TYPES | OTHER_POOLING,
        pooling="mean_tokens",
    ),
    Row(
        "bert-exact-gelu",
        "BertForMaskedLM",
        "BertConfig",
        {**SMALL, "hidden_act": "gelu", "type_vocab_size": 5, "layer_norm_eps": 1e-2},
        {**CONTROLS, **TYPES, "other epsilon": with_header("attention.layer_norm_epsilon", 1e-12)},
        pooling="cls_token",
    ),
    Row(
        "distilbert",
        "DistilBertModel",
        "DistilBertConfig",
        {**DISTILLED, "activation": "gelu"},
        CONTROLS | OTHER_POOLING,
        pooling="mean_tokens",
    ),
    Row(
        "nomic-bert",
        "NomicBertModel",
        "NomicBertConfig",
        NOMIC,
        {
            **TYPES,
            **OTHER_POOLING,
            "other rope base": with_header("rope.freq_base", 10000.0),
            "gate and up in the wrong places": swapped("ffn_gate.weight", "ffn_up.weight"),
            "no bias of the first norm": zeroed("token_embd_norm.bias"),
        },
        pooling="mean_tokens",
        reference="nomic_bert",
    ),
)

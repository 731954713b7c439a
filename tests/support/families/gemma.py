"""Gemma 2 and 3."""

from __future__ import annotations

import dataclasses

from tests.support.families.llama import SMALL
from tests.support.families.row import Row, not_added, with_header, without_header, zeroed

GEMMA = {**SMALL, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 48}
CONTROLS = {
    "norms less one": not_added("attn_norm.weight"),
    "other window": with_header("attention.sliding_window", 96),
    "other rope base": with_header("rope.freq_base", 500.0),
    "no norm behind attention": zeroed("post_attention_norm.weight"),
    "norms behind feed-forward less one": not_added("post_ffw_norm.weight"),
}
LISTED = ["full_attention", "sliding_attention", "sliding_attention"]
ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
}
WITHOUT_SCALING = {"without scaling": without_header("rope.scaling.type", "rope.scaling.factor")}
LINEAR = {"rope_type": "linear", "factor": 8.0}
ORDER = {"layers in the usual order": without_header("attention.sliding_window_pattern")}
VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip

_SEES = Row(
    "gemma3-vision",
    "Gemma3ForConditionalGeneration",
    "Gemma3Config",
    {
        "text_config": {**GEMMA, "num_hidden_layers": 7}, "vision_config": VISION, "mm_tokens_per_image": 4,
        "image_token_index": 319, "boi_token_index": 318, "eoi_token_index": 317,
    },
    {"norms less one": not_added("ffn_norm.weight"), "other rope base": with_header("rope.freq_base", 500.0)},
)  # fmt: skip

ROWS = (
    Row(
        "gemma2",
        "Gemma2ForCausalLM",
        "Gemma2Config",
        {**GEMMA, "num_hidden_layers": 3},
        CONTROLS,
        saved={"layer_types": None},
    ),
    Row(
        "gemma2-listed",
        "Gemma2ForCausalLM",
        "Gemma2Config",
        {
            **GEMMA, "num_hidden_layers": 3, "num_key_value_heads": 1, "layer_types": LISTED, "rope_scaling": LINEAR,
            "attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0,
        },
        {
            **ORDER,
            **WITHOUT_SCALING,
            "scores capped higher": with_header("attn_logit_softcapping", 50.0),
            "logits capped higher": with_header("final_logit_softcapping", 30.0),
        },
    ),
    Row(
        "gemma3",
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {**GEMMA, "num_hidden_layers": 7, "rope_local_base_freq": 1e3, "rope_theta": 1e5, "rope_scaling": LINEAR},
        {
            **CONTROLS,
            **WITHOUT_SCALING,
            "other rope base of sliding layers": with_header("rope.freq_base_swa", 1e5),
            "query norms less one": not_added("attn_q_norm.weight"),
        },
        saved={"layer_types": None},
    ),
    Row(
        "gemma3-listed-untied",
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {
            **GEMMA, "num_hidden_layers": 3, "num_key_value_heads": 4, "layer_types": LISTED, "tie_word_embeddings": False,
            "final_logit_softcapping": 3.0, "rope_theta": 1e5, "rope_scaling": LINEAR, "rope_local_base_freq": 1e3,
        },
        {**ORDER, "logits without a cap": without_header("final_logit_softcapping")},
        saved={"rope_parameters": ROPES, "rope_scaling": None, "rope_theta": None, "rope_local_base_freq": None},
    ),
    Row(
        "gemma3-full",
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {**GEMMA, "sliding_window_pattern": 1},
        {"other rope base": with_header("rope.freq_base", 500.0)},
        saved={"layer_types": None, "sliding_window_pattern": 1},
    ),
    _SEES,
    dataclasses.replace(_SEES, name="gemma3-vision-newer-names", renamed=("language_model.model.", "model.language_model.")),
)  # fmt: skip

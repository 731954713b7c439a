"""Llama, Mistral and their scalings."""

from __future__ import annotations

from tests.support.families.row import Row, unordered, with_header, without, without_header, zeroed

SMALL = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.05, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
ROTARY_CONTROLS = {
    "query rows in halves": unordered("attn_q.weight"),
    "key rows in halves": unordered("attn_k.weight"),
    "other rope base": with_header("rope.freq_base", 500.0),
}

ROWS = (
    Row("llama", "LlamaForCausalLM", "LlamaConfig", {**SMALL, "tie_word_embeddings": False}, ROTARY_CONTROLS),
    Row(
        "llama-tied-biased",
        "LlamaForCausalLM",
        "LlamaConfig",
        {**SMALL, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
        {
            "query bias": zeroed("attn_q.bias"),
            "query bias order": unordered("attn_q.bias"),
            "down bias": zeroed("ffn_down.bias"),
        },
    ),
    Row(
        "llama3",
        "LlamaForCausalLM",
        "LlamaConfig",
        {**SMALL, "rope_scaling": LLAMA3, "tie_word_embeddings": True},
        {"without factors": without("rope_freqs.weight")},
    ),
    Row(
        "llama-linear",
        "LlamaForCausalLM",
        "LlamaConfig",
        {**SMALL, "rope_scaling": LINEAR},
        {"without scaling": without_header("rope.scaling.type", "rope.scaling.factor")},
    ),
    Row(
        "llama-yarn",
        "LlamaForCausalLM",
        "LlamaConfig",
        {**SMALL, "rope_scaling": YARN},
        {"without scaling": without_header("rope.scaling.type", "rope.scaling.factor")},
    ),
    Row(
        "mistral",
        "MistralForCausalLM",
        "MistralConfig",
        {**SMALL, "sliding_window": None, "head_dim": 32},
        ROTARY_CONTROLS,
    ),
)

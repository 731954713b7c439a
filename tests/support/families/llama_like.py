"""SmolLM3, Granite and OLMo 2."""

from __future__ import annotations

from tests.support.families.llama import LINEAR, LLAMA3, ROTARY_CONTROLS, SMALL, YARN
from tests.support.families.row import Row, unordered, with_header, without, without_header, zeroed

OTHER_BASE = {"other rope base": with_header("rope.freq_base", 500.0)}
WITHOUT_SCALING = {"without scaling": without_header("rope.scaling.type", "rope.scaling.factor")}
MULTIPLIERS = {
    "embedding_multiplier": 3.0, "attention_multiplier": 0.1, "residual_multiplier": 0.4, "logits_scaling": 2.0,
}  # fmt: skip

ROWS = (
    Row(
        "smollm3",
        "SmolLM3ForCausalLM",
        "SmolLM3Config",
        {**SMALL, "num_hidden_layers": 5, "rope_theta": 1e4},
        {**ROTARY_CONTROLS, "no norm before attention": zeroed("attn_norm.weight")},
    ),
    Row(
        "smollm3-untied-yarn",
        "SmolLM3ForCausalLM",
        "SmolLM3Config",
        {
            **SMALL, "num_hidden_layers": 4, "num_key_value_heads": 1, "tie_word_embeddings": False, "rope_scaling": YARN,
        },
        WITHOUT_SCALING,
    ),
    Row(
        "smollm3-window",
        "SmolLM3ForCausalLM",
        "SmolLM3Config",
        {**SMALL, "num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 64},
        {"query rows in halves": unordered("attn_q.weight")},
        theirs={"smollm3.context_length": "the context ends with the window, which llama.cpp does not run"},
        n_tokens=64,
    ),
    Row(
        "granite",
        "GraniteForCausalLM",
        "GraniteConfig",
        {**SMALL, **MULTIPLIERS},
        {
            **ROTARY_CONTROLS,
            "scores scaled as usual": without_header("attention.scale"),
            "embedding unscaled": without_header("embedding_scale"),
            "residual unscaled": without_header("residual_scale"),
            "logits unscaled": with_header("logit_scale", 1.0),
        },
    ),
    Row(
        "granite-tied-biased-linear",
        "GraniteForCausalLM",
        "GraniteConfig",
        {
            **SMALL, "num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True,
            "attention_multiplier": 0.2, "rope_scaling": LINEAR,
        },
        {
            **WITHOUT_SCALING,
            "output bias": zeroed("attn_output.bias"),
            "gate bias": zeroed("ffn_gate.bias"),
            "key bias order": unordered("attn_k.bias"),
        },
    ),
    Row(
        "granite-llama3",
        "GraniteForCausalLM",
        "GraniteConfig",
        {**SMALL, "attention_multiplier": 0.2, "rope_scaling": LLAMA3},
        {"without factors": without("rope_freqs.weight")},
        theirs_fails="it has no name for the factors in this family; llama.cpp reads them",
    ),
    Row(
        "olmo2",
        "Olmo2ForCausalLM",
        "Olmo2Config",
        SMALL,
        {
            **OTHER_BASE,
            "no query norm": zeroed("attn_q_norm.weight"),
            "no norm behind attention": zeroed("post_attention_norm.weight"),
            "no norm behind feed-forward": zeroed("post_ffw_norm.weight"),
        },
    ),
    Row(
        "olmo2-tied-linear",
        "Olmo2ForCausalLM",
        "Olmo2Config",
        {
            **SMALL, "num_key_value_heads": 1, "tie_word_embeddings": True,
            "rope_scaling": {"type": "linear", "factor": 4.0},
        },
        WITHOUT_SCALING,
        theirs={"output.weight": "llama.cpp wants a head, and its converter gives none"},
    ),
)  # fmt: skip

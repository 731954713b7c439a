"""Phi 3 to 4: both lists of rope factors, the window that llama.cpp ignores, partial rope, a tied head."""

from __future__ import annotations

import numpy as np

from tests.support.families.row import Row, rolled, with_header, without, zeroed

SMALL = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "original_max_position_embeddings": 512,
    "initializer_range": 0.05, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
LONGROPE = {
    "type": "longrope",
    "short_factor": np.linspace(1.0, 2.0, 8).tolist(),
    "long_factor": np.linspace(1.5, 12.0, 8).tolist(),
}
PARTIAL = {
    "type": "longrope",
    "short_factor": np.linspace(1.0, 2.0, 6).tolist(),
    "long_factor": np.linspace(1.5, 12.0, 6).tolist(),
}
ROPE = {"other rope base": with_header("rope.freq_base", 500.0)}
ORIGINAL = "rope.scaling.original_context_length"

ROWS = (
    Row(
        "phi3",
        "Phi3ForCausalLM",
        "Phi3Config",
        {**SMALL, "num_key_value_heads": 4},
        ROPE
        | {
            "up before gate": rolled("ffn_up.weight"),
            "keys before queries": rolled("attn_qkv.weight"),
            "norm": zeroed("ffn_norm.weight"),
        },
    ),
    Row(
        "phi3-longrope-short",
        "Phi3ForCausalLM",
        "Phi3Config",
        {**SMALL, "rope_scaling": LONGROPE, "original_max_position_embeddings": 256},
        {
            "the long factors": with_header(ORIGINAL, 64),
            "without factors": without("rope_factors_short.weight"),
            "attention not scaled": with_header("rope.scaling.attn_factor", 1.0),
        },
    ),
    Row(
        "phi3-longrope-long",
        "Phi3ForCausalLM",
        "Phi3Config",
        {**SMALL, "rope_scaling": LONGROPE, "original_max_position_embeddings": 64},
        {"the short factors": with_header(ORIGINAL, 512)},
        saved={"rope_scaling": {**LONGROPE, "type": "su"}},
    ),
    Row(
        "phi4-mini",
        "Phi3ForCausalLM",
        "Phi3Config",
        {
            **SMALL, "rope_scaling": PARTIAL, "original_max_position_embeddings": 64, "partial_rotary_factor": 0.75,
            "num_key_value_heads": 1, "tie_word_embeddings": True,
        },
        ROPE | {"the short factors": with_header(ORIGINAL, 512)},
    ),
    Row(
        "phi3-window",
        "Phi3ForCausalLM",
        "Phi3Config",
        {**SMALL, "sliding_window": 96},
        ROPE,
        n_tokens=96,
        theirs={"phi3.context_length": "theirs is longer than the window, which llama.cpp ignores"},
    ),
)  # fmt: skip

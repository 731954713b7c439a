"""Mistral with its window, and Mixtral."""

from __future__ import annotations

from tests.support.families.llama import LLAMA3, ROTARY_CONTROLS, SMALL
from tests.support.families.row import Row, backwards, unordered, with_header, without, zeroed

EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

ROWS = (
    Row(
        "mistral-window",
        "MistralForCausalLM",
        "MistralConfig",
        {**SMALL, "sliding_window": 96},
        {"query rows in halves": unordered("attn_q.weight")},
        theirs={"llama.context_length": "the context ends with the window, which llama.cpp does not run"},
        n_tokens=96,
    ),
    Row(
        "mixtral",
        "MixtralForCausalLM",
        "MixtralConfig",
        {**SMALL, **EXPERTS},
        {
            **ROTARY_CONTROLS,
            "experts backwards": backwards("ffn_down_exps.weight"),
            "one expert": with_header("expert_used_count", 1),
            "router": zeroed("ffn_gate_inp.weight"),
        },
    ),
    Row(
        "mixtral-tied-llama3",
        "MixtralForCausalLM",
        "MixtralConfig",
        {
            **SMALL, "num_key_value_heads": 4, "head_dim": 32, "num_local_experts": 3, "num_experts_per_tok": 1,
            "tie_word_embeddings": True, "rope_scaling": LLAMA3, "sliding_window": 4096,
        },
        {"without factors": without("rope_freqs.weight"), "experts backwards": backwards("ffn_up_exps.weight")},
    ),
)  # fmt: skip

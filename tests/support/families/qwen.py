"""Qwen 2 and 3, dense and with experts."""

from __future__ import annotations

from tests.support.families.llama import LINEAR, SMALL, YARN
from tests.support.families.row import (
    Row,
    backwards,
    shifted,
    with_header,
    without_header,
    zeroed,
)

OTHER_BASE = {"other rope base": with_header("rope.freq_base", 500.0)}
WITHOUT_SCALING = {"without scaling": without_header("rope.scaling.type", "rope.scaling.factor")}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
OTHER_EXPERTS = {
    "experts backwards": backwards("ffn_down_exps.weight"),
    "no router": zeroed("ffn_gate_inp.weight"),
    "one expert": with_header("expert_used_count", 1),
}
WINDOW = {"use_sliding_window": True, "sliding_window": 64}
CAPPED = "the context ends with the window, which llama.cpp does not run"

ROWS = (
    Row(
        "qwen2",
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {**SMALL, "rope_theta": 1e6, "use_sliding_window": False, "sliding_window": 32},
        {
            **OTHER_BASE,
            "query bias": zeroed("attn_q.bias"),
            "value bias": zeroed("attn_v.bias"),
            "feed-forward norm": zeroed("ffn_norm.weight"),
        },
    ),
    Row(
        "qwen2-tied-yarn",
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {**SMALL, "num_key_value_heads": 1, "tie_word_embeddings": True, "rope_scaling": YARN},
        {**WITHOUT_SCALING, "key bias": zeroed("attn_k.bias")},
    ),
    Row(
        "qwen2-window",
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {**SMALL, **WINDOW, "max_window_layers": 1},
        {**OTHER_BASE},
        theirs={"qwen2.context_length": CAPPED},
        n_tokens=64,
    ),
    Row(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        {**SMALL, **EXPERTS, "shared_expert_intermediate_size": 80},
        {
            **OTHER_BASE,
            **OTHER_EXPERTS,
            "gate of the shared expert": shifted("ffn_gate_inp_shexp.weight"),
            "no shared expert": zeroed("ffn_down_shexp.weight"),
            "key bias": zeroed("attn_k.bias"),
        },
    ),
    Row(
        "qwen2_moe-tied",
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        {
            **SMALL, **EXPERTS, "num_experts_per_tok": 1, "shared_expert_intermediate_size": 48, "qkv_bias": False,
            "tie_word_embeddings": True, "rope_scaling": LINEAR,
        },
        {**WITHOUT_SCALING, "experts backwards": backwards("ffn_gate_exps.weight")},
        theirs={"output.weight": "llama.cpp wants a head, and its converter gives none"},
    ),
    Row(
        "qwen3",
        "Qwen3ForCausalLM",
        "Qwen3Config",
        {**SMALL, "head_dim": 32, "rope_theta": 1e6, "sliding_window": None},
        {
            **OTHER_BASE,
            "query norm": zeroed("attn_q_norm.weight"),
            "key norm": zeroed("attn_k_norm.weight"),
            "attention norm": zeroed("attn_norm.weight"),
        },
    ),
    Row(
        "qwen3-tied-linear",
        "Qwen3ForCausalLM",
        "Qwen3Config",
        {**SMALL, "head_dim": 16, "num_key_value_heads": 1, "tie_word_embeddings": True, "rope_scaling": LINEAR},
        WITHOUT_SCALING,
    ),
    Row(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {**SMALL, **EXPERTS, "head_dim": 32, "norm_topk_prob": True},
        {**OTHER_BASE, **OTHER_EXPERTS, "key norm": zeroed("attn_k_norm.weight")},
    ),
    Row(
        "qwen3_moe-tied-yarn",
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {
            **SMALL, **EXPERTS, "head_dim": 16, "norm_topk_prob": True, "tie_word_embeddings": True,
            "rope_scaling": {**YARN, "attention_factor": 1.5}, "num_experts": 3, "num_experts_per_tok": 3,
        },
        {**WITHOUT_SCALING, "the paper's attention factor": without_header("rope.scaling.attn_factor")},
        theirs={"qwen3moe.rope.scaling.yarn_attn_factor": "llama.cpp does not heed this key"},
    ),
)  # fmt: skip

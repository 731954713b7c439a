"""The families with layer norms: GPT-2, GPT-NeoX, Bloom, Falcon, StableLM, StarCoder2, Phi."""

from __future__ import annotations

from tests.support.families.llama import YARN
from tests.support.families.row import (
    Row,
    backwards,
    rolled,
    unordered,
    untransposed,
    with_header,
    without_header,
    zeroed,
)

GPT2 = {
    "vocab_size": 320, "n_positions": 256, "n_embd": 64, "n_layer": 2, "n_head": 4, "initializer_range": 0.05,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
BLOOM = {
    "vocab_size": 320, "hidden_size": 64, "n_layer": 2, "n_head": 4, "initializer_range": 0.05, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
SMALL = {
    "vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.05,
    "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GATED = {**SMALL, "intermediate_size": 96, "num_key_value_heads": 2}
TANH = "gelu_pytorch_tanh"

FUSED = {
    "heads as they are": unordered("attn_qkv.weight"),
    "second norm": zeroed("ffn_norm.bias"),
    "output bias": zeroed("attn_output.bias"),
}
ROPE = {"other rope base": with_header("rope.freq_base", 500.0)}
OTHER_SHARE = {"less rotates": with_header("rope.dimension_count", 4)}
FALCON = {**ROPE, "keys before queries": rolled("attn_qkv.weight"), "norm bias": zeroed("attn_norm.bias")}
GROUPED = {"groups as they are": unordered("attn_qkv.weight")}
FALCON_CONTEXT = {"falcon.context_length": "theirs is always 2048"}
OLD_FALCON = {
    "architectures": ["RWForCausalLM"], "model_type": "RefinedWebModel", "num_attention_heads": None, "n_head": 4,
    "num_hidden_layers": None, "n_layer": 2, "num_kv_heads": None, "new_decoder_architecture": None,
    "multi_query": None, "ffn_hidden_size": None, "max_position_embeddings": None, "activation": None,
}  # fmt: skip

ROWS = (
    Row(
        "gpt2",
        "GPT2LMHeadModel",
        "GPT2Config",
        GPT2,
        {
            "not transposed": untransposed("attn_output.weight"),
            "no positions": zeroed("position_embd.weight"),
            "qkv bias": zeroed("attn_qkv.bias"),
            "norm bias": zeroed("ffn_norm.bias"),
        },
        saved={"n_ctx": 256},
    ),
    Row(
        "gpt2-untied-narrow",
        "GPT2LMHeadModel",
        "GPT2Config",
        {**GPT2, "n_inner": 96, "tie_word_embeddings": False, "reorder_and_upcast_attn": True},
        {"up bias": zeroed("ffn_up.bias")},
        saved={"n_ctx": 256},
        renamed=("transformer.", ""),
        theirs={"gpt2.feed_forward_length": "theirs is always four times the embedding"},
    ),
    Row(
        "gpt2-exact-gelu",
        "GPT2LMHeadModel",
        "GPT2Config",
        {**GPT2, "activation_function": "gelu"},
        {"not transposed": untransposed("attn_output.weight")},
        saved={"n_ctx": 256},
    ),
    Row(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        {**SMALL, "intermediate_size": 96, "rotary_pct": 0.5, "hidden_act": TANH},
        FUSED
        | ROPE
        | OTHER_SHARE
        | {
            "bias as it is": unordered("attn_qkv.bias"),
            "one after the other": with_header("use_parallel_residual", False),
        },
    ),
    Row(
        "gpt_neox-sequential",
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        {
            **SMALL, "intermediate_size": 96, "rotary_pct": 1.0, "hidden_act": "gelu_fast", "rotary_emb_base": 500,
            "use_parallel_residual": False, "rope_scaling": YARN,
        },
        {
            "at once": with_header("use_parallel_residual", True),
            "without scaling": without_header("rope.scaling.type", "rope.scaling.factor"),
        },
    ),
    Row(
        "gpt_neox-exact-gelu",
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        {**SMALL, "intermediate_size": 96, "rotary_pct": 0.25, "hidden_act": "gelu"},
        {"heads as they are": unordered("attn_qkv.weight")},
    ),
    Row(
        "bloom",
        "BloomForCausalLM",
        "BloomConfig",
        BLOOM,
        FUSED
        | {"bias as it is": unordered("attn_qkv.bias"), "embedding's norm": zeroed("token_embd_norm.bias")},
        saved={"seq_length": 2048},
    ),
    Row(
        "bloom-old-six-heads",
        "BloomForCausalLM",
        "BloomConfig",
        {**BLOOM, "hidden_size": 96, "n_head": 6},
        {"heads as they are": unordered("attn_qkv.weight")},
        saved={
            "seq_length": 2048, "hidden_size": None, "n_embed": 96, "n_head": None, "num_attention_heads": 6,
            "architectures": ["BloomModel"],
        },
        renamed=("transformer.", ""),
    ),
    Row(
        "falcon-7b",
        "FalconForCausalLM",
        "FalconConfig",
        {**SMALL, "activation": TANH},
        FALCON,
        saved={"num_kv_heads": 1},
        theirs=FALCON_CONTEXT,
    ),
    Row(
        "falcon-7b-old-exact-gelu",
        "FalconForCausalLM",
        "FalconConfig",
        {**SMALL, "multi_query": True},
        FALCON,
        saved=OLD_FALCON,
    ),
    Row(
        "falcon-40b-old-exact-gelu",
        "FalconForCausalLM",
        "FalconConfig",
        {**SMALL, "new_decoder_architecture": True, "num_kv_heads": 2},
        FALCON | GROUPED | {"other norm's bias": zeroed("attn_norm_2.bias")},
        saved={**OLD_FALCON, "model_type": "RefinedWeb", "n_head_kv": 2},
    ),
    Row(
        "falcon2",
        "FalconForCausalLM",
        "FalconConfig",
        {
            **SMALL, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1,
            "rope_theta": 500.0, "tie_word_embeddings": False, "activation": TANH,
        },
        {**GROUPED, "without rope base": without_header("rope.freq_base")},
        theirs=FALCON_CONTEXT,
    ),
    Row(
        "falcon-without-groups",
        "FalconForCausalLM",
        "FalconConfig",
        {**SMALL, "multi_query": False, "activation": TANH},
        GROUPED,
        theirs=FALCON_CONTEXT,
    ),
    Row(
        "stablelm",
        "StableLmForCausalLM",
        "StableLmConfig",
        {**GATED, "use_qkv_bias": True, "partial_rotary_factor": 0.25},
        ROPE
        | {
            "all rotates": with_header("rope.dimension_count", 16),
            "query bias": zeroed("attn_q.bias"),
            "norm bias": zeroed("ffn_norm.bias"),
        },
    ),
    Row(
        "stablelm-head-norms-parallel",
        "StableLmForCausalLM",
        "StableLmConfig",
        {**GATED, "qk_layernorm": True, "use_parallel_residual": True},
        {
            "query norms backwards": backwards("attn_q_norm.weight"),
            "key norms backwards": backwards("attn_k_norm.weight"),
        },
        reference="stablelm",
        theirs_fails="it stacks the norms of heads in a generator that nothing reads",
    ),
    Row(
        "stablelm-old-tied",
        "StableLmForCausalLM",
        "StableLmConfig",
        {**GATED, "partial_rotary_factor": 0.5, "tie_word_embeddings": True},
        ROPE,
        saved={
            "architectures": ["StableLMEpochForCausalLM"], "layer_norm_eps": None, "norm_eps": 1e-5,
            "use_parallel_residual": None, "use_qkv_bias": None, "qk_layernorm": None,
        },
        theirs={"output.weight": "theirs has none, which llama.cpp refuses"},
    ),
    Row(
        "starcoder2",
        "Starcoder2ForCausalLM",
        "Starcoder2Config",
        GATED,
        ROPE | {"output bias": zeroed("attn_output.bias"), "up bias": zeroed("ffn_up.bias")},
    ),
    Row(
        "starcoder2-untied-window",
        "Starcoder2ForCausalLM",
        "Starcoder2Config",
        {**GATED, "num_key_value_heads": 1, "sliding_window": 96, "tie_word_embeddings": False},
        {"value bias": zeroed("attn_v.bias"), **ROPE},
        n_tokens=96,
        theirs={"starcoder2.context_length": "theirs is longer than the window, which llama.cpp ignores"},
    ),
    Row(
        "phi",
        "PhiForCausalLM",
        "PhiConfig",
        {**SMALL, "intermediate_size": 256, "partial_rotary_factor": 0.5},
        ROPE
        | {
            "head's bias": zeroed("output.bias"),
            "query bias": zeroed("attn_q.bias"),
            "norm bias": zeroed("attn_norm.bias"),
            "all rotates": with_header("rope.dimension_count", 16),
        },
    ),
    Row(
        "phi-grouped-tied",
        "PhiForCausalLM",
        "PhiConfig",
        {**GATED, "tie_word_embeddings": True, "hidden_act": TANH},
        {"head's bias": zeroed("output.bias")},
        theirs={
            "output.weight": "theirs has none, which llama.cpp refuses",
            "phi2.feed_forward_length": "theirs is always four times the embedding",
            "phi2.attention.head_count_kv": "theirs is that of the query heads",
        },
    ),
)  # fmt: skip

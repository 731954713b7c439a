"""Random llama and mixtral models of a few megabytes as GGUF files that llama.cpp runs and quantizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from tests.support.gguf_files import GPT2_TOKENS

N_LAYERS, WIDTH, HIDDEN, N_HEADS, N_KV_HEADS = 2, 256, 512, 4, 2
Shapes = dict[str, tuple[int, ...]]


def shapes(*, n_experts: int = 0, n_layers: int = N_LAYERS) -> Shapes:
    """Tensor name -> shape, rows first."""
    kv = WIDTH // N_HEADS * N_KV_HEADS
    found: Shapes = {
        "token_embd.weight": (len(GPT2_TOKENS), WIDTH),
        "output.weight": (len(GPT2_TOKENS), WIDTH),
        "output_norm.weight": (WIDTH,),
    }
    experts, suffix = ((n_experts,), "_exps") if n_experts else ((), "")
    for i in range(n_layers):
        layer: Shapes = {
            "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,), "attn_q": (WIDTH, WIDTH), "attn_k": (kv, WIDTH),
            "attn_v": (kv, WIDTH), "attn_output": (WIDTH, WIDTH), f"ffn_gate{suffix}": (*experts, HIDDEN, WIDTH),
            f"ffn_up{suffix}": (*experts, HIDDEN, WIDTH), f"ffn_down{suffix}": (*experts, WIDTH, HIDDEN),
        }  # fmt: skip
        if n_experts:
            layer["ffn_gate_inp"] = (n_experts, WIDTH)
        found |= {f"blk.{i}.{part}.weight": shape for part, shape in layer.items()}
    return found


def random_weights(name: str, shape: tuple[int, ...], seed: int) -> npt.NDArray[np.float32]:
    """The same every time; large enough that experts are chosen by the text and not by rounding."""
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return 1 + np.float32(0.1) * values if "norm" in name else np.float32(0.1) * values


def write_tiny_gguf(
    path: Path, *, n_experts: int = 0, n_layers: int = N_LAYERS, type_name: str = "F32"
) -> Path:
    """A byte-level model without merges to speak of: a token for each byte of a text.

    Args:
        n_experts: 0 for a dense model; 2 of them are used for each token.
        type_name: F32, F16 or BF16, of matrices; vectors and gates are F32.
    """
    writer: Any = gguf.GGUFWriter(path, "llama")
    for key, value in {
        "block_count": n_layers, "context_length": 1024, "embedding_length": WIDTH, "feed_forward_length": HIDDEN,
        "attention.head_count": N_HEADS, "attention.head_count_kv": N_KV_HEADS, "vocab_size": len(GPT2_TOKENS),
        "rope.dimension_count": WIDTH // N_HEADS,
    }.items():  # fmt: skip
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    if n_experts:
        writer.add_uint32("llama.expert_count", n_experts)
        writer.add_uint32("llama.expert_used_count", 2)
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "gpt-2")
    writer.add_token_list(GPT2_TOKENS)
    writer.add_token_types([3] + [1] * (len(GPT2_TOKENS) - 1))
    writer.add_token_merges(["t h"])
    writer.add_uint32("tokenizer.ggml.bos_token_id", 0)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 0)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    kind = gguf.GGMLQuantizationType[type_name]
    for seed, (name, shape) in enumerate(shapes(n_experts=n_experts, n_layers=n_layers).items()):
        values = random_weights(name, shape, seed)
        if len(shape) > 1 and "ffn_gate_inp" not in name:
            packed: Any = gguf.quantize(values, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

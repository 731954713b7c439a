"""A real Hugging Face checkpoint of SmolLM2-135M-Instruct, rebuilt offline from the embedded GGUF.

Weights are dequantized to BF16. Each is moved off its Q4_1 grid by a fixed-seed dither of up to half a step: on the
grid, quantizing to Q4_1 again would lose nothing, and comparing quantization types would mean nothing.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, dequantize
from safetensors.numpy import save_file

VERSION = "1"
HEADS = {"attn_q": 9, "attn_k": 3}
NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "hidden_act": "silu", "hidden_size": 576,
    "initializer_range": 0.041666666666666664, "intermediate_size": 1536, "max_position_embeddings": 8192,
    "mlp_bias": False, "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 100000,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 49152,
}  # fmt: skip


def cached_checkpoint(source: Path, cache: Path) -> Path:
    """The checkpoint directory, built once per cache and version; safe when two test runs build it at once."""
    final = cache / f"smollm2-hf-{VERSION}"
    if not final.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=cache))
        write_checkpoint(source, building)
        try:
            building.rename(final)
        except OSError:
            shutil.rmtree(building)
    return final


def write_checkpoint(source: Path, directory: Path) -> None:
    """Write config.json, model.safetensors, tokenizer.json and tokenizer_config.json."""
    reader = GGUFReader(source)
    save_file(_tensors(reader), directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors").chmod(0o644)

    def field(key: str) -> Any:
        return reader.fields[key].contents()

    tokens, merges = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.merges")
    special = [i for i, kind in enumerate(field("tokenizer.ggml.token_type")) if kind == 3]
    added = [
        {"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for i in special
    ]  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    files = {
        "tokenizer.json": {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
            "post_processor": None, "decoder": dict(byte_level, add_prefix_space=True),
            "model": {
                "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                "vocab": {t: i for i, t in enumerate(tokens)}, "merges": [m.split(" ", 1) for m in merges],
            },
        },
        "tokenizer_config.json": {
            "add_prefix_space": False, "bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>", "clean_up_tokenization_spaces": False,
            "chat_template": field("tokenizer.chat_template"), "model_max_length": 8192, "tokenizer_class": "GPT2Tokenizer",
            "added_tokens_decoder": {str(a["id"]): {k: v for k, v in a.items() if k != "id"} for a in added},
        },
        "config.json": CONFIG,
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
    }  # fmt: skip
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def _tensors(reader: GGUFReader) -> dict[str, Any]:
    rng = np.random.default_rng(135)
    tensors = {}
    for tensor in reader.tensors:
        weights = dequantize(tensor.data, tensor.tensor_type)
        if tensor.tensor_type == GGMLQuantizationType.Q4_1:
            steps = tensor.data.reshape(-1, 20)[:, :2].copy().view(np.float16).astype(np.float32)
            noise = rng.uniform(-0.5, 0.5, (steps.shape[0], 32)).astype(np.float32) * np.abs(steps)
            weights = weights + noise.reshape(weights.shape)
        name = _name(tensor.name)
        if name is None:
            continue
        part = tensor.name.split(".")[2] if tensor.name.startswith("blk.") else ""
        if part in HEADS:
            weights = _to_rotary_halves(weights, HEADS[part])
        tensors[name] = np.ascontiguousarray(weights).astype(ml_dtypes.bfloat16)
    return tensors


def _name(name: str) -> str | None:
    if not name.startswith("blk."):
        outside = {
            "token_embd.weight": "model.embed_tokens.weight",
            "output_norm.weight": "model.norm.weight",
        }
        return outside.get(name)
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{NAMES[part]}.weight"


def _to_rotary_halves(weights: Any, n_heads: int) -> Any:
    rows, columns = weights.shape
    pairs = weights.reshape(n_heads, rows // n_heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)

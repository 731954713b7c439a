"""Random llama models of a few hundred kilobytes as Hugging Face directories, and what they answer.

Their weights are several times larger than at initialization: at the usual scale a wrong rope base or a wrong row
order hardly moves the output.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from edgellm.checkpoint import open_checkpoint
from edgellm.convert import pipeline, tokenizer, writer
from edgellm.convert.source import Source
from edgellm.native.llama import LlamaModel, LlamaOptions
from edgellm.protocols import Feed
from tests.support import oracle
from tests.support.gguf_files import byte_alphabet

Array = npt.NDArray[Any]
TYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
VOCAB_SIZE = 320
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGED = ("th", "in", "er", "Ġt")
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "vocab_size": VOCAB_SIZE, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "rope_scaling": None, "tie_word_embeddings": False, "attention_bias": False,
    "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "torch_dtype": "float32",
}  # fmt: skip


def write_tiny_llama(
    directory: Path,
    config: dict[str, Any] | None = None,
    *,
    dtype: str = "F32",
    n_shards: int = 1,
    tensors: Mapping[str, Array | None] | None = None,
) -> Path:
    """Write config.json, safetensors and tokenizer.json.

    Args:
        config: keys that differ from `CONFIG`.
        n_shards: more than one makes shards with an index.
        tensors: replace (or with None leave out) tensors by their Hugging Face names.
    """
    directory.mkdir(parents=True, exist_ok=True)
    whole = {**CONFIG, **(config or {})}
    made: dict[str, Any] = {**random_tensors(whole, TYPES[dtype]), **(tensors or {})}
    kept = {name: array for name, array in made.items() if array is not None}
    (directory / "config.json").write_text(json.dumps(whole))
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "bos_token": "<|im_start|>",
                "eos_token": "<|im_end|>",
                "tokenizer_class": "PreTrainedTokenizerFast",
            }
        )
    )
    if n_shards == 1:
        save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})
        return directory
    weight_map: dict[str, str] = {}
    for i in range(n_shards):
        shard = f"model-{i + 1:05}-of-{n_shards:05}.safetensors"
        part = dict(list(kept.items())[i::n_shards])
        save_file(part, directory / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {"total_size": sum(a.nbytes for a in kept.values())}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def random_tensors(config: dict[str, Any], dtype: np.dtype[Any]) -> dict[str, Array]:
    """All tensors of such a model, by Hugging Face name; the same every time."""
    rng = np.random.default_rng(7)
    size, hidden, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    width, kv_width = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    attention: dict[str, tuple[int, ...]] = {
        "q_proj": (width, size),
        "k_proj": (kv_width, size),
        "v_proj": (kv_width, size),
        "o_proj": (size, width),
    }
    mlp: dict[str, tuple[int, ...]] = {
        "gate_proj": (hidden, size),
        "up_proj": (hidden, size),
        "down_proj": (size, hidden),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], size)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for group, parts, biased in (
            ("self_attn", attention, config["attention_bias"]), ("mlp", mlp, config["mlp_bias"]),
        ):  # fmt: skip
            for part, shape in parts.items():
                shapes[f"{layer}{group}.{part}.weight"] = shape
                if biased:
                    shapes[f"{layer}{group}.{part}.bias"] = shape[:1]
        shapes[f"{layer}input_layernorm.weight"] = shapes[f"{layer}post_attention_layernorm.weight"] = (size,)
    shapes["model.norm.weight"] = (size,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], size)
    made = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape, dtype=np.float32)
        made[name] = (1 + 0.1 * values if "norm" in name else 0.15 * values).astype(dtype)
    return made


def tokenizer_json() -> dict[str, Any]:
    """A byte-level BPE tokenizer of 263 tokens; the model has more rows than that."""
    texts = [*SPECIAL, *byte_alphabet(), *MERGED]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [
            {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True} for i, text in enumerate(SPECIAL)
        ],
        "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {text: i for i, text in enumerate(texts)}, "merges": [list(m) for m in MERGED]},
    }  # fmt: skip


def read_source(directory: Path) -> Source:
    """The directory as a source with a vocabulary, without asking which pre-tokenizer fits."""
    source = pipeline.read_source(open_checkpoint(directory))
    vocabulary = tokenizer.read_vocabulary(source.checkpoint, source.shape.vocab_size)
    return dataclasses.replace(source, header={**source.header, **vocabulary.header("gpt-2", None)})


def write_f32(source: Source, path: Path) -> Path:
    """The source as a GGUF in F32."""
    types = {tensor.name: "F32" for tensor in source.tensors}
    writer.write_gguf(path, source, types, source.header, n_workers=2)
    return path


def our_logits(path: Path, ids: list[int]) -> Array:
    """(n_tokens, n_vocab) logits of a GGUF by llama.cpp, with an F32 cache and without flash attention."""
    model = LlamaModel(path, LlamaOptions(n_threads=1, kv_type="F32", flash_attention="off"))
    batcher = model.open(context=len(ids))
    logits = batcher.step([Feed(sequence=0, tokens=ids, want="all")])[0].logits
    batcher.close()
    model.close()
    assert logits is not None
    return logits


def reference_logits(directories: list[Path], ids: list[int], folder: Path) -> dict[str, Array]:
    """Logits of each directory by transformers in FP32, by the directory's name; one child for all."""
    oracle.transformers(
        """
import numpy, torch
from transformers import AutoModelForCausalLM
ids = torch.tensor([spec["ids"]])
for name, directory in spec["models"].items():
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        logits = model(ids, attention_mask=torch.ones_like(ids)).logits[0]
    numpy.save(f"{spec['out']}/{name}.npy", logits.numpy())
print("true")
""",
        ids=ids, models={d.name: str(d) for d in directories}, out=str(folder),
    )  # fmt: skip
    return {d.name: np.load(folder / f"{d.name}.npy") for d in directories}


def kl_divergence(reference: Array, seen: Array) -> float:
    """Mean KL(reference || seen) over tokens, in nats."""
    logs = []
    for logits in (reference, seen):
        shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        logs.append(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
    return float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=1).mean())

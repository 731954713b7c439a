"""Random BERT models of a few kilobytes as sentence-transformers directories, written without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers.processors import BertProcessing

from tests.support import tiny_tokenizers
from tests.support.tiny_llama import Array
from tests.support.tiny_models import WORDPIECE, write_pooling

VOCAB_SIZE, WIDTH, HIDDEN, N_LAYERS, CONTEXT = 64, 32, 48, 2, 40
CONFIG: dict[str, Any] = {
    "architectures": ["BertModel"], "hidden_act": "gelu", "hidden_size": WIDTH, "intermediate_size": HIDDEN,
    "layer_norm_eps": 1e-12, "max_position_embeddings": CONTEXT, "num_attention_heads": 2,
    "num_hidden_layers": N_LAYERS, "position_embedding_type": "absolute", "type_vocab_size": 2,
    "vocab_size": VOCAB_SIZE,
}  # fmt: skip


def write_tiny_bert(
    directory: Path,
    config: Mapping[str, Any] | None = None,
    *,
    pooling: Mapping[str, Any] | None = None,
    steps: Any = None,
    tensors: Mapping[str, Array] | None = None,
) -> Path:
    """Write config.json, model.safetensors, a tokenizer and the pooling.

    Args:
        config: keys that differ from `CONFIG`.
        pooling: what 1_Pooling/config.json holds; the mean by default.
        steps: what modules.json lists, where it is not the usual.
        tensors: all of them, where they are not those of `random_tensors`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
    (directory / "tokenizer.json").write_text(json.dumps(WORDPIECE))
    write_pooling(directory, {"pooling_mode_mean_tokens": True} if pooling is None else {**pooling}, steps)
    save_file(dict(tensors or random_tensors()), directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def write_readable_bert(
    directory: Path, *, width: int = WIDTH, hidden: int = HIDDEN, context: int = CONTEXT
) -> Path:
    """The same with a tokenizer that is trained on text, and llama.cpp's own activation."""
    tokenizer = tiny_tokenizers.wordpiece()
    cls, sep = ((name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]"))
    tokenizer.post_processor = BertProcessing(sep, cls)
    n_tokens = tokenizer.get_vocab_size()
    config = {
        "hidden_act": "gelu_new", "hidden_size": width, "intermediate_size": hidden, "max_position_embeddings": context,
        "vocab_size": n_tokens,
    }  # fmt: skip
    tensors = random_tensors(width, hidden, context, n_tokens)
    for name in [name for name in tensors if "LayerNorm" in name]:
        if name.endswith("weight"):
            tensors[name] += 1
        else:  # else every text would have nearly the same embedding: the last bias
            tensors[name] *= np.float32(0.1)
    write_tiny_bert(directory, config, tensors=tensors)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def random_tensors(
    width: int = WIDTH, hidden: int = HIDDEN, context: int = CONTEXT, vocab_size: int = VOCAB_SIZE
) -> dict[str, Array]:
    """All tensors of such a model, by Hugging Face name; the same every time."""
    rng = np.random.default_rng(5)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (vocab_size, width),
        "embeddings.position_embeddings.weight": (context, width),
        "embeddings.token_type_embeddings.weight": (2, width),
    }
    linear = {f"attention.self.{part}": (width, width) for part in ("query", "key", "value")} | {
        "attention.output.dense": (width, width),
        "intermediate.dense": (hidden, width),
        "output.dense": (width, hidden),
    }
    norms = ["embeddings.LayerNorm"]
    for i in range(N_LAYERS):
        layer = f"encoder.layer.{i}."
        for name, shape in linear.items():
            shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
        norms += [f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm"]
    shapes |= {f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}
    return {name: 0.2 * rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}

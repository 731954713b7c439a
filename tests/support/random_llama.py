"""Random-weight llama models of any size in BF16, written to disk tensor by tensor: for time and memory, not for text."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np

CONFIGS: dict[str, dict[str, Any]] = {
    "0.45B": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
              "num_key_value_heads": 16},
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8},
}  # fmt: skip
_CHUNK_WEIGHTS = 1 << 22


def write_random_llama(directory: Path, like: Path, **sizes: int) -> Path:
    """A tied llama with the tokenizer and vocabulary of `like`, another checkpoint directory.

    Args:
        sizes: keys of config.json that differ from those of `like`.
    """
    directory.mkdir(parents=True)
    config = {**json.loads((like / "config.json").read_text()), **sizes, "tie_word_embeddings": True}
    (directory / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(like / name, directory / name)
    shapes = _shapes(config)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    packed = json.dumps(header).encode()
    packed += b" " * (-len(packed) % 8)
    rng = np.random.default_rng(5)
    with (directory / "model.safetensors").open("wb") as out:
        out.write(struct.pack("<Q", len(packed)) + packed)
        for name, shape in shapes.items():
            left = int(np.prod(shape))
            while left:
                n = min(left, _CHUNK_WEIGHTS)
                values = rng.standard_normal(n, dtype=np.float32) * np.float32(0.02)
                values += np.float32("norm" in name)
                out.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())
                left -= n
    return directory


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    size, hidden = config["hidden_size"], config["intermediate_size"]
    kv = size // config["num_attention_heads"] * config["num_key_value_heads"]
    layer = {
        "self_attn.q_proj": (size, size), "self_attn.k_proj": (kv, size), "self_attn.v_proj": (kv, size),
        "self_attn.o_proj": (size, size), "mlp.gate_proj": (hidden, size), "mlp.up_proj": (hidden, size),
        "mlp.down_proj": (size, hidden), "input_layernorm": (size,), "post_attention_layernorm": (size,),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], size)}
    for i in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    return shapes | {"model.norm.weight": (size,)}

"""GGUF files for tests: small valid ones by the `gguf` package, and broken ones byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

TYPES = {
    "UINT8": (0, "B"), "INT8": (1, "b"), "UINT16": (2, "H"), "INT16": (3, "h"), "UINT32": (4, "I"),
    "INT32": (5, "i"), "FLOAT32": (6, "f"), "BOOL": (7, "?"), "STRING": (8, ""), "ARRAY": (9, ""),
    "UINT64": (10, "Q"), "INT64": (11, "q"), "FLOAT64": (12, "d"),
}  # fmt: skip


def string(text: str | bytes) -> bytes:
    """A GGUF string: its length and its bytes."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def scalar(type_name: str, value: Any) -> bytes:
    """The bytes of one value, without its type."""
    return string(value) if type_name == "STRING" else struct.pack("<" + TYPES[type_name][1], value)


def key(name: str | bytes, type_name: str, value: Any) -> bytes:
    """One metadata entry with a scalar value."""
    return string(name) + struct.pack("<I", TYPES[type_name][0]) + scalar(type_name, value)


def array(name: str | bytes, element_type: str, values: Sequence[Any]) -> bytes:
    """One metadata entry with an array."""
    head = string(name) + struct.pack("<IIQ", 9, TYPES[element_type][0], len(values))
    return head + b"".join(scalar(element_type, value) for value in values)


def tensor(
    name: str | bytes, ne: Sequence[int], type_number: int = 0, offset: int = 0, n_dims: int | None = None
) -> bytes:
    """One tensor description; `ne` in ggml's order, the row first."""
    count = len(ne) if n_dims is None else n_dims
    shape = struct.pack(f"<{len(ne)}q", *ne)
    return string(name) + struct.pack("<I", count) + shape + struct.pack("<IQ", type_number, offset)


def gguf_bytes(
    keys: Iterable[bytes] = (),
    tensors: Iterable[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_keys: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file from ready entries; counts can be made to lie."""
    keys, tensors = list(keys), list(tensors)
    counts = struct.pack(
        "<QQ",
        len(tensors) if n_tensors is None else n_tensors,
        len(keys) if n_keys is None else n_keys,
    )
    head = magic + struct.pack("<I", version) + counts + b"".join(keys) + b"".join(tensors)
    if tensors:
        head += bytes(-len(head) % alignment)
    return head + data


def byte_alphabet() -> list[str]:
    """The 256 characters by which byte-level vocabularies write bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


GPT2_TOKENS = ["<|endoftext|>", *byte_alphabet(), "th"]
SPM_TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁the"]
SPM_TYPES = [2, 3, 3, *[6] * 256, 1]


def write_model(
    path: Path,
    *,
    metadata: Mapping[str, tuple[str, Any]] | None = None,
    without: Sequence[str] = (),
    architecture: str = "llama",
    vocab: str | None = "gpt2",
    embedding_size: int = 8,
    n_layers: int = 2,
) -> Path:
    """A tiny model with a whole header, written by the `gguf` package.

    Args:
        metadata: key -> (type name, value) to add or replace; an array's type is `ARRAY:` and its element's.
        without: keys to leave out.
    """
    values: dict[str, tuple[str, Any]] = {
        f"{architecture}.block_count": ("UINT32", n_layers),
        f"{architecture}.context_length": ("UINT32", 64),
        f"{architecture}.embedding_length": ("UINT32", embedding_size),
        f"{architecture}.feed_forward_length": ("UINT32", 16),
        f"{architecture}.attention.head_count": ("UINT32", 2),
        f"{architecture}.attention.layer_norm_rms_epsilon": ("FLOAT32", 1e-5),
    }
    tokens: list[Any] = []
    if vocab == "gpt2":
        tokens = GPT2_TOKENS
        values["tokenizer.ggml.model"] = ("STRING", "gpt2")
        values["tokenizer.ggml.tokens"] = ("ARRAY:STRING", tokens)
        values["tokenizer.ggml.token_type"] = ("ARRAY:INT32", [3] + [1] * (len(tokens) - 1))
        values["tokenizer.ggml.merges"] = ("ARRAY:STRING", ["t h"])
        values["tokenizer.ggml.eos_token_id"] = ("UINT32", 0)
    elif vocab == "llama":
        tokens = SPM_TOKENS
        values["tokenizer.ggml.model"] = ("STRING", "llama")
        values["tokenizer.ggml.tokens"] = ("ARRAY:STRING", tokens)
        values["tokenizer.ggml.token_type"] = ("ARRAY:INT32", SPM_TYPES)
        values["tokenizer.ggml.scores"] = ("ARRAY:FLOAT32", [0.0] * len(tokens))
    values |= metadata or {}
    tokens = values["tokenizer.ggml.tokens"][1] if "tokenizer.ggml.tokens" in values else tokens
    writer = gguf.GGUFWriter(path, architecture)
    for name, (type_name, value) in values.items():
        if name in without:
            continue
        if type_name.startswith("ARRAY:"):
            element = gguf.GGUFValueType[type_name.removeprefix("ARRAY:")]
            writer.add_key_value(name, value, gguf.GGUFValueType.ARRAY, sub_type=element)
        else:
            writer.add_key_value(name, value, gguf.GGUFValueType[type_name])
    rng = np.random.default_rng(1)
    n_rows = len(tokens) or 4
    writer.add_tensor("token_embd.weight", rng.standard_normal((n_rows, embedding_size), dtype=np.float32))
    for layer in range(n_layers):
        name = f"blk.{layer}.attn_q.weight"
        writer.add_tensor(name, rng.standard_normal((embedding_size, embedding_size)).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

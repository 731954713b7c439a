"""The hyper-parameters in a GGUF file, bounded, as far as edgellm needs them or llama.cpp aborts over them.

Source of the keys and of the assertions: load_hparams in src/llama-model.cpp of llama.cpp, as in
llama-cpp-python 0.3.36. What only makes llama.cpp refuse a model with a message is mostly left to it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from edgellm.errors import BadInputError
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.gguf_vocab import MAX_TOKENS
from edgellm.formats.plain_json import Fields

MAX_LAYERS = 512
MAX_EXPERTS = 1024
MAX_HEADS = 1 << 16
MAX_WIDTH = 1 << 24
MAX_CONTEXT = 1 << 31
MAX_POOLING_TYPE = 4

# Families whose blocks have a state in place of attention heads.
RECURRENT = frozenset(["mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7", "wavtokenizer-dec"])
# Families that give embeddings and for which llama.cpp keeps no KV cache.
ENCODERS = frozenset(
    ["bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert", "eurobert",
     "gemma-embedding"]
)  # fmt: skip

_ARCHITECTURE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
_OTHER_KINDS = {
    "adapter": (
        "a LoRA adapter, not a model",
        "load the model that it was made for, with adapters={name: this file}",
    ),
    "imatrix": ("an importance matrix, not a model", "give it to edgellm convert --imatrix"),
    "mmproj": ("a multimodal projector, not a language model", "give the language model that it belongs to"),
}


class Hyperparameters(NamedTuple):
    """What a GGUF file says about its model.

    Attributes:
        architecture: llama.cpp's name of the family.
        n_layers: transformer blocks.
        n_heads, n_kv_heads: the largest of any layer; 0 for a recurrent model.
        head_size_k, head_size_v: width of one key and one value head; 0 for a recurrent model.
        embedding_size, feed_forward: widths; feed_forward is the largest of any layer, 0 where there is none.
        context_train: tokens of the longest context seen in training.
        vocab_size: tokens.
        n_experts, n_experts_used: 0 for a dense model.
        window: tokens a sliding-window layer sees; None where the file names no window.
    """

    architecture: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_size_k: int
    head_size_v: int
    embedding_size: int
    feed_forward: int
    context_train: int
    vocab_size: int
    n_experts: int
    n_experts_used: int
    window: int | None


def read_hyperparameters(file: GGUFFile) -> Hyperparameters:
    """Read and bound the hyper-parameters of a language model or an encoder.

    Raises:
        BadInputError: the file is no such model, or a value is missing, out of range, in contradiction to
            another one or to the embedding's shape, or such that llama.cpp would abort.
    """
    architecture = _architecture(file)
    prefix = f"{architecture}."
    fields = Fields(
        {
            key.removeprefix(prefix): value.value
            for key, value in file.metadata.items()
            if key.startswith(prefix)
        },
        file.path.name,
        prefix,
    )
    n_layers = fields.integer("block_count", 1, MAX_LAYERS)
    fields.integer("nextn_predict_layers", 0, n_layers, default=0)
    embedding_size = fields.integer("embedding_length", 1, MAX_WIDTH)
    n_heads, n_kv_heads, first_heads = _heads(fields, n_layers, architecture in RECURRENT)
    head_size_k, head_size_v = _head_sizes(fields, embedding_size, first_heads)
    n_experts, n_experts_used = _experts(fields, n_layers, architecture)
    if architecture in ENCODERS and head_size_k != head_size_v:  # the graph asserts it
        raise fields.wrong("attention.value_length", head_size_v, f"{head_size_k}, as the keys")
    _check_numbers(fields)
    vocab_size = _vocab_size(file, fields)
    _check_embedding(file, vocab_size, embedding_size)
    window = fields.integer("attention.sliding_window", 0, MAX_CONTEXT, default=0)
    return Hyperparameters(
        architecture=architecture,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_size_k=head_size_k,
        head_size_v=head_size_v,
        embedding_size=embedding_size,
        feed_forward=max(_per_layer(fields, "feed_forward_length", MAX_WIDTH, n_layers, 0)),
        context_train=fields.integer("context_length", 1, MAX_CONTEXT),
        vocab_size=vocab_size,
        n_experts=n_experts,
        n_experts_used=n_experts_used,
        window=window or None,
    )


def _architecture(file: GGUFFile) -> str:
    where = file.path.name
    kind = file.get("general.type", str, "model")
    architecture = file.fields.text("general.architecture", max_chars=64)
    if architecture == "clip":
        kind = "mmproj"
    if kind in _OTHER_KINDS:
        said, hint = _OTHER_KINDS[kind]
        raise BadInputError(f"{where}: {said} (general.type {kind!r})", hint=hint)
    if not _ARCHITECTURE.fullmatch(architecture):
        raise BadInputError(f"{where}: general.architecture is {architecture!r}, expected a plain name")
    return architecture


def _per_layer(fields: Fields, name: str, high: int, n_layers: int, default: int | None = None) -> list[int]:
    """A value for each layer, from a scalar or from an array of exactly that length."""
    value = fields.values.get(name)
    if not isinstance(value, np.ndarray):
        if default is None:
            return [fields.integer(name, 0, high)] * n_layers
        return [fields.integer(name, 0, high, default=default)] * n_layers
    expected = f"{n_layers} integers from 0 to {high}, one for each layer"
    if len(value) != n_layers or value.dtype.kind not in "iu":
        raise fields.wrong(name, value.tolist()[: n_layers + 1], expected)
    layers: list[int] = value.tolist()
    for item in layers:
        if not 0 <= item <= high:
            raise fields.wrong(name, item, expected)
    return layers


def _heads(fields: Fields, n_layers: int, recurrent: bool) -> tuple[int, int, int]:
    """Query heads and key/value heads, the largest of any layer; query heads of the first layer with any."""
    heads = _per_layer(fields, "attention.head_count", MAX_HEADS, n_layers, 0 if recurrent else None)
    if not max(heads):
        if recurrent:
            return 0, 0, 0
        raise fields.wrong("attention.head_count", 0, f"an integer from 1 to {MAX_HEADS}")
    kv_name = "attention.head_count_kv"
    kv_heads = _per_layer(fields, kv_name, MAX_HEADS, n_layers) if kv_name in fields else heads
    if not max(kv_heads):
        raise fields.wrong(kv_name, 0, f"an integer from 1 to {MAX_HEADS}")
    for n_heads, n_kv_heads in zip(heads, kv_heads, strict=True):
        # ggml_mul_mat asserts that key heads divide query heads.
        if n_kv_heads and n_heads % n_kv_heads:
            raise fields.wrong(kv_name, n_kv_heads, f"a divisor of the {n_heads} query heads")
    return max(heads), max(kv_heads), next(count for count in heads if count)


def _head_sizes(fields: Fields, embedding_size: int, n_heads: int) -> tuple[int, int]:
    """Width of one key head and of one value head."""
    if not n_heads:
        return 0, 0
    default = embedding_size // n_heads
    if "attention.key_length" not in fields and (embedding_size % n_heads or not default):
        raise fields.wrong("embedding_length", embedding_size, f"a multiple of the {n_heads} heads")
    size_k = fields.integer("attention.key_length", 1, MAX_WIDTH, default=default)
    size_v = fields.integer("attention.value_length", 1, MAX_WIDTH, default=default)
    n_rotated = fields.integer("rope.dimension_count", 0, size_k, default=0)
    if n_rotated % 2:  # ggml_rope asserts it
        raise fields.wrong("rope.dimension_count", n_rotated, "an even number")
    return size_k, size_v


def _experts(fields: Fields, n_layers: int, architecture: str) -> tuple[int, int]:
    """Experts and experts used by a token; load_hparams asserts all of this."""
    n_experts = fields.integer("expert_count", 0, MAX_EXPERTS, default=0)
    used = max(_per_layer(fields, "expert_used_count", MAX_EXPERTS, n_layers, 0))
    n_groups = fields.integer("expert_group_count", 0, MAX_EXPERTS, default=0)
    n_groups_used = fields.integer("expert_group_used_count", 0, MAX_EXPERTS, default=0)
    if architecture.startswith("hunyuan") and n_experts <= 1:
        n_experts = used = 0
    if not n_experts:
        if used or n_groups:
            raise fields.wrong("expert_count", 0, f"more than {used} used experts and {n_groups} groups")
        return 0, 0
    if not 1 <= used <= n_experts:
        raise fields.wrong("expert_used_count", used, f"an integer from 1 to {n_experts}")
    if n_groups >= n_experts or (n_groups > 1 and n_experts % n_groups):
        raise fields.wrong(
            "expert_group_count", n_groups, f"a divisor of the {n_experts} experts, below them"
        )
    if n_groups > 1 and not 1 <= n_groups_used < n_groups:
        raise fields.wrong("expert_group_used_count", n_groups_used, f"an integer from 1 to {n_groups - 1}")
    return n_experts, used


def _check_numbers(fields: Fields) -> None:
    """Numbers that ggml or llama.cpp assert about."""
    for name in ("layer_norm_epsilon", "layer_norm_rms_epsilon", "group_norm_epsilon"):
        fields.number(f"attention.{name}", 0.0, 1.0, default=0.0)
    fields.number("rope.freq_base", 0.0, 1e12, default=1e4)
    fields.integer("pooling_type", 0, MAX_POOLING_TYPE, default=0)
    scaling = fields.text("rope.scaling.type", default="none", max_chars=64)
    if scaling not in _ROPE_SCALINGS:
        raise fields.wrong("rope.scaling.type", scaling, f"one of {', '.join(_ROPE_SCALINGS)}")


def _vocab_size(file: GGUFFile, fields: Fields) -> int:
    tokens: list[str] = file.get("tokenizer.ggml.tokens", list, [])
    embedding = file.tensors.get("token_embd.weight")
    known = len(tokens) or (embedding.shape[0] if embedding else 0)
    if known and "vocab_size" not in fields:
        return known
    return fields.integer("vocab_size", 1, MAX_TOKENS)


def _check_embedding(file: GGUFFile, vocab_size: int, embedding_size: int) -> None:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is not None and embedding.shape != (vocab_size, embedding_size):
        raise BadInputError(
            f"{file.path.name}: token_embd.weight has shape {embedding.shape}, "
            f"expected ({vocab_size}, {embedding_size})"
        )

"""ModelShape: what a model's tensors look like, without their values. The only module that counts model bytes.

Everything here is arithmetic on names and shapes; nothing is read from disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from edgellm.formats import ggml_types, gguf_model
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.records import Record

Shape = tuple[int, ...]
UBATCH_TOKENS = 512
# The interpreter, the libraries and the vocabulary: measured on x86-64 Linux with SmolLM2, rounded up.
PROGRAM_BYTES = 128 * 1024**2


class Memory(NamedTuple):
    """What a model needs in memory while it runs, in bytes.

    Attributes:
        weights: all tensors.  kv: the cache of one sequence.  compute: the engine's buffers for one batch.
        program: everything that does not depend on the model.
    """

    weights: int
    kv: int
    compute: int
    program: int = PROGRAM_BYTES

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv + self.compute + self.program


class ModelShape(Record):
    """The shape of a decoder or encoder.

    Attributes:
        architecture: llama.cpp's name of the family, for example `llama`.
        tensors: name -> shape, rows first: (n_out, n_in), or (n_experts, n_out, n_in).
        n_layers: transformer blocks.
        n_heads, n_kv_heads: query heads, and key/value heads (fewer under grouped-query attention).
        head_size: width of one key head; `value_head_size` of one value head (0: the same).
        window: tokens a sliding-window layer sees; None where every layer sees all.
        n_window_layers: how many layers slide.
        n_experts, n_experts_used: 0 for a dense model.
        vocab_size, context_train: tokens in the vocabulary; the longest context seen in training.
        is_encoder: gives embeddings and keeps no KV cache.
    """

    architecture: str
    tensors: dict[str, Shape]
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_size: int
    vocab_size: int
    context_train: int
    embedding_size: int
    value_head_size: int = 0
    window: int | None = None
    n_window_layers: int = 0
    n_experts: int = 0
    n_experts_used: int = 0
    is_encoder: bool = False

    @property
    def n_params(self) -> int:
        """Weights in all tensors; a tied head counts once."""
        return sum(n_elements(shape) for shape in self.tensors.values())

    @property
    def n_gqa(self) -> int:
        """Query heads per key/value head."""
        return self.n_heads // self.n_kv_heads if self.n_kv_heads else 0

    def weight_bytes(self, types: Mapping[str, str]) -> int:
        """Bytes of all tensors when stored as `types` says (tensor name -> ggml type name), without padding.

        Raises:
            KeyError: a tensor has no type.  ValueError: a row is not a multiple of its type's block.
        """
        return sum(tensor_bytes(shape, types[name]) for name, shape in self.tensors.items())

    def kv_bytes(self, context: int, kv_type: str = "F16", *, batch_tokens: int = 0) -> int:
        """Bytes of one sequence's KV cache at `context` tokens.

        Definition: sum over layers of tokens kept * n_kv_heads * (key + value head size) * bytes per element;
        a sliding layer keeps at most `window` tokens, and `batch_tokens` that are being computed. An encoder keeps none.
        """
        if self.is_encoder:
            return 0
        value_size = self.value_head_size or self.head_size
        kind = ggml_types.BY_NAME[kv_type]
        per_token = (
            kind.block_bytes * self.n_kv_heads * self.head_size // kind.block
            + kind.block_bytes * self.n_kv_heads * value_size // kind.block
        )
        kept = min(context, self.window + batch_tokens) if self.window else context
        full_layers = self.n_layers - self.n_window_layers
        return per_token * (context * full_layers + kept * self.n_window_layers)

    def compute_bytes(self, context: int, n_ubatch: int = UBATCH_TOKENS) -> int:
        """Bytes of llama.cpp's compute buffer on a CPU with flash attention.

        Definition: float32 for each of n_ubatch tokens of what is alive at the widest point of the graph: the logits
        and two hidden states, or a feed-forward layer (three arrays per expert used) with four hidden states and the
        attention mask. Equal to what llama.cpp reports for llama, qwen2 and mixture shapes from 0.1 to 70 billion
        weights.

        An encoder sees the whole context at once, so n_ubatch is the context: a feed-forward layer (three arrays where
        it is gated, else one) with three hidden states, or the attention, and the mask. Equal to what llama.cpp reports
        for MiniLM, BERT base and large, and Nomic BERT.
        """
        widths = [shape[-1] for name, shape in self.tensors.items() if "ffn_down" in name and len(shape) > 1]
        hidden = max(widths, default=0) * max(1, self.n_experts_used)
        if self.is_encoder:
            arrays = 3 if any("ffn_gate" in name for name in self.tensors) else 1
            halves = (
                11 if "position_embd.weight" in self.tensors else 15
            )  # rotated queries and keys are copies
            widest = max(arrays * hidden + 3 * self.embedding_size, halves * self.embedding_size // 2)
            return 4 * context * (widest + context // 2)
        head = self.vocab_size + 2 * self.embedding_size
        layer = 3 * hidden + 4 * self.embedding_size + context // 2
        return 4 * n_ubatch * max(head, layer)

    def memory(self, types: Mapping[str, str], context: int, kv_type: str = "F16") -> Memory:
        """What running the model needs, with its tensors stored as `types` says."""
        cache = self.kv_bytes(context, kv_type, batch_tokens=UBATCH_TOKENS)
        return Memory(self.weight_bytes(types), cache, self.compute_bytes(context))

    def bytes_per_token(self, types: Mapping[str, str], depth: int, kv_type: str = "F16") -> int:
        """Bytes that one decode step must read: the weights it uses and the KV cache so far.

        Of the input embedding one row is read, unless it is also the output head; of the experts, the used ones.
        """
        tied = "output.weight" not in self.tensors
        total = 0
        for name, shape in self.tensors.items():
            size = tensor_bytes(shape, types[name])
            if name == "token_embd.weight" and not tied:
                size //= shape[0]
            elif len(shape) == 3 and self.n_experts:
                size = size * self.n_experts_used // self.n_experts
            total += size
        return total + self.kv_bytes(depth, kv_type)


def shape_of_gguf(file: GGUFFile) -> ModelShape:
    """The shape of the model in a GGUF file, tensors in the order of the file.

    Raises:
        BadInputError: no language model or encoder, or its hyper-parameters are out of bounds.
    """
    hyper = gguf_model.read_hyperparameters(file)
    return ModelShape(
        architecture=hyper.architecture,
        tensors={name: tensor.shape for name, tensor in file.tensors.items()},
        n_layers=hyper.n_layers,
        n_heads=hyper.n_heads,
        n_kv_heads=hyper.n_kv_heads,
        head_size=hyper.head_size_k,
        value_head_size=hyper.head_size_v,
        vocab_size=hyper.vocab_size or 0,
        context_train=hyper.context_train,
        embedding_size=hyper.embedding_size,
        window=hyper.window,
        n_experts=hyper.n_experts,
        n_experts_used=hyper.n_experts_used,
        is_encoder=hyper.architecture in gguf_model.ENCODERS,
    )


def n_elements(shape: Shape) -> int:
    """Product of the dimensions."""
    product = 1
    for length in shape:
        product *= length
    return product


def tensor_bytes(shape: Shape, type_name: str) -> int:
    """Bytes of one tensor in a ggml type; the last dimension is the row."""
    kind = ggml_types.BY_NAME[type_name]
    rows = n_elements(shape[:-1])
    return rows * kind.row_bytes(shape[-1])

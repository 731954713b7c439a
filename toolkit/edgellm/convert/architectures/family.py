"""How a family is described, and how a description becomes a `Source`.

A family names its tensors (Hugging Face name -> GGUF name), says which rows are in rotary order, and gives its
hyper-parameters. Every number is bounded, and every shape is checked against the configuration before it is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from edgellm.checkpoint import Checkpoint
from edgellm.convert.source import HeaderValue, PlannedTensor, Source, in_file_order
from edgellm.errors import BadInputError, UnsupportedError
from edgellm.formats.plain_json import Fields
from edgellm.shape import ModelShape

MAX_LAYERS = 1024
MAX_WIDTH = 1 << 20
MAX_VOCAB = 1 << 21


@dataclasses.dataclass(frozen=True)
class Hyper:
    """Hyper-parameters every decoder family has."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_size: int
    embedding_size: int
    feed_forward_size: int
    vocab_size: int
    context_train: int
    rope_base: float
    norm_epsilon: float
    tied: bool


@dataclasses.dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
        architecture: llama.cpp's name.  classes: Hugging Face class names.
        outside, per_layer: HF name -> GGUF name; `{i}` in neither: layers are prefixed by `layer_prefix`.
        rotary: GGUF layer tensors whose rows are in rotary order -> whether they have the KV heads' count.
        expected_shapes: (GGUF name, Hyper) -> the shape it must have, or None where any will do.
        header: hyper-parameters beyond the common ones.
        computed: tensors made from the configuration.
        ignored: HF name endings that hold nothing needed.
    """

    architecture: str
    classes: tuple[str, ...]
    outside: Mapping[str, str]
    per_layer: Mapping[str, str]
    rotary: Mapping[str, bool]
    expected_shapes: Callable[[str, Hyper], tuple[int, ...] | None]
    header: Callable[[Fields, Hyper], dict[str, HeaderValue]]
    computed: Callable[[Fields, Hyper], list[PlannedTensor]]
    ignored: tuple[str, ...] = ()
    layer_prefix: str = "model.layers."

    def read(self, checkpoint: Checkpoint) -> Source:
        """The checkpoint as a `Source` without vocabulary."""
        where = str(checkpoint.path / "config.json")
        fields = Fields(checkpoint.config, where)
        hyper = read_hyper(fields)
        tensors = in_file_order(self._tensors(checkpoint, hyper) + self.computed(fields, hyper))
        shape = ModelShape(
            architecture=self.architecture,
            tensors={t.name: t.shape for t in tensors},
            n_layers=hyper.n_layers,
            n_heads=hyper.n_heads,
            n_kv_heads=hyper.n_kv_heads,
            head_size=hyper.head_size,
            vocab_size=hyper.vocab_size,
            context_train=hyper.context_train,
            embedding_size=hyper.embedding_size,
        )
        header = {
            "general.architecture": HeaderValue("STRING", self.architecture),
            "general.type": HeaderValue("STRING", "model"),
            "general.name": HeaderValue("STRING", checkpoint.name),
        }
        if checkpoint.licence:
            header["general.license"] = HeaderValue("STRING", checkpoint.licence)
        header |= self._common_header(hyper) | self.header(fields, hyper)
        return Source(checkpoint, shape, tensors, header)

    def _tensors(self, checkpoint: Checkpoint, hyper: Hyper) -> list[PlannedTensor]:
        wanted = {hf: (gguf, gguf) for hf, gguf in self.outside.items()}
        for i in range(hyper.n_layers):
            for hf, gguf in self.per_layer.items():
                wanted[f"{self.layer_prefix}{i}.{hf}"] = (f"blk.{i}.{gguf}", gguf)
        planned = []
        for name, tensor in checkpoint.tensors.items():
            if name.endswith(self.ignored) and self.ignored:
                continue
            if name not in wanted:
                raise UnsupportedError(
                    f"{tensor.path}: tensor {name!r} is not part of a {self.architecture} model of {hyper.n_layers} layers",
                    hint="the checkpoint is of another family, or was changed; check config.json",
                )
            gguf_name, kind = wanted[name]
            if kind == "output.weight" and hyper.tied:
                continue
            expected = self.expected_shapes(kind, hyper)
            if expected is not None and tensor.shape != expected:
                raise BadInputError(
                    f"{tensor.path}: tensor {name!r} has shape {list(tensor.shape)}, config.json implies {list(expected)}"
                )
            heads = 0
            if kind in self.rotary:
                heads = hyper.n_kv_heads if self.rotary[kind] else hyper.n_heads
            vector = len(tensor.shape) == 1 or kind.endswith("_norm.weight")
            planned.append(
                PlannedTensor(gguf_name, tensor.shape, tensor, rotary_heads=heads, always_f32=vector)
            )
        self._check_complete({t.name for t in planned}, hyper, checkpoint)
        return planned

    def _check_complete(self, names: set[str], hyper: Hyper, checkpoint: Checkpoint) -> None:
        needed = {"token_embd.weight", "output_norm.weight"} | (set() if hyper.tied else {"output.weight"})
        needed |= {
            f"blk.{i}.{kind}"
            for i in range(hyper.n_layers)
            for kind in self.per_layer.values()
            if kind.endswith(".weight")
        }
        missing = sorted(needed - names)
        if missing:
            raise BadInputError(
                f"{checkpoint.path}: {len(missing)} tensors are missing, the first is {missing[0]!r}"
            )

    def _common_header(self, hyper: Hyper) -> dict[str, HeaderValue]:
        numbers = {
            "block_count": hyper.n_layers,
            "context_length": hyper.context_train,
            "embedding_length": hyper.embedding_size,
            "feed_forward_length": hyper.feed_forward_size,
            "attention.head_count": hyper.n_heads,
            "attention.head_count_kv": hyper.n_kv_heads,
            "vocab_size": hyper.vocab_size,
        }
        return {f"{self.architecture}.{key}": HeaderValue("UINT32", value) for key, value in numbers.items()}


def read_hyper(fields: Fields) -> Hyper:
    """The common hyper-parameters of a config.json, bounded and consistent.

    Raises:
        BadInputError: a number is missing, out of bounds, or contradicts another.
    """
    n_heads = fields.integer("num_attention_heads", 1, MAX_WIDTH)
    embedding_size = fields.integer("hidden_size", 1, MAX_WIDTH)
    n_kv_heads = fields.integer("num_key_value_heads", 1, n_heads, default=n_heads)
    head_size = fields.integer("head_dim", 1, 1 << 16, default=embedding_size // n_heads)
    if n_heads % n_kv_heads or head_size % 2:
        raise BadInputError(
            f"{fields.where}: {n_heads} heads, {n_kv_heads} key/value heads and a head size of {head_size} do not fit together"
        )
    return Hyper(
        n_layers=fields.integer("num_hidden_layers", 1, MAX_LAYERS),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_size=head_size,
        embedding_size=embedding_size,
        feed_forward_size=fields.integer("intermediate_size", 1, MAX_WIDTH),
        vocab_size=fields.integer("vocab_size", 1, MAX_VOCAB),
        context_train=fields.integer("max_position_embeddings", 1, 1 << 30, default=2048),
        rope_base=fields.number("rope_theta", 1e-3, 1e12, default=10000.0),
        norm_epsilon=fields.number("rms_norm_eps", 0.0, 1.0, default=1e-6),
        tied=fields.flag("tie_word_embeddings", default=False),
    )

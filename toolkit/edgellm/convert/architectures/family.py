"""How a family is described, and how a description becomes a `Source`.

A family names its tensors (Hugging Face name -> GGUF name), says which rows change places, and gives its
hyper-parameters. Every number is bounded, and every shape is checked against the configuration before it is used.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping

from edgellm.checkpoint import Checkpoint, SourceTensor
from edgellm.convert.architectures.hyper import Hyper
from edgellm.convert.architectures.pooling import read_pooling
from edgellm.convert.architectures.transforms import Transform
from edgellm.convert.source import FLOATS, HeaderValue, Part, PlannedTensor, Source, in_file_order
from edgellm.errors import BadInputError, UnsupportedError
from edgellm.formats.plain_json import Fields
from edgellm.shape import ModelShape, n_elements

Header = dict[str, HeaderValue]

# The usual shape of each kind of tensor, in names of `Hyper`'s attributes; a bias has its weight's first dimension.
SHAPES: dict[str, tuple[str, ...]] = {
    "token_embd.weight": ("vocab_size", "embedding_size"),
    "output.weight": ("vocab_size", "embedding_size"),
    "output.bias": ("vocab_size",),
    "attn_q.weight": ("q_size", "embedding_size"),
    "attn_k.weight": ("kv_size", "embedding_size"),
    "attn_v.weight": ("kv_size", "embedding_size"),
    "attn_qkv.weight": ("qkv_size", "embedding_size"),
    "attn_output.weight": ("embedding_size", "q_size"),
    "ffn_gate.weight": ("feed_forward_size", "embedding_size"),
    "ffn_up.weight": ("feed_forward_size", "embedding_size"),
    "ffn_down.weight": ("embedding_size", "feed_forward_size"),
    "ffn_gate_inp.weight": ("n_experts", "embedding_size"),
    "ffn_gate_exps.weight": ("n_experts", "expert_feed_forward_size", "embedding_size"),
    "ffn_up_exps.weight": ("n_experts", "expert_feed_forward_size", "embedding_size"),
    "ffn_down_exps.weight": ("n_experts", "embedding_size", "expert_feed_forward_size"),
}
_NORMS = (
    "attn_norm", "attn_norm_2", "ffn_norm", "output_norm", "token_embd_norm", "post_attention_norm", "post_ffw_norm",
    "attn_output_norm", "layer_output_norm",
)  # fmt: skip
SHAPES |= {f"{norm}.weight": ("embedding_size",) for norm in _NORMS}
_ALWAYS_F32 = (
    "ffn_gate_inp.weight",
    "ffn_gate_inp_shexp.weight",
    "position_embd.weight",
    "token_types.weight",
)
NO_TRANSFORM = Transform()


def _nothing(_fields: Fields, _hyper: Hyper) -> list[PlannedTensor]:
    return []


def _no_notes(_fields: Fields, _hyper: Hyper) -> list[str]:
    return []


def _none_absent(_fields: Fields, _hyper: Hyper) -> tuple[str, ...]:
    return ()


@dataclasses.dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
        architecture: llama.cpp's name.  classes: Hugging Face class names.
        refused: class names of the family that cannot be converted -> why.
        hyper: reads the hyper-parameters of config.json.
        defaults: what an absent key of config.json means, as in the configuration class of transformers.
        section: the part of config.json that describes the text model, where it is not the whole.
        outside, per_layer: HF name -> GGUF name; layers are prefixed by `layer_prefix`. Where an HF name holds `{j}`,
            the tensors j = 0, 1, ... are stacked: as many as `stacked` says.
        header: hyper-parameters beyond the common ones, without the architecture's prefix.
        transforms: GGUF kind -> what happens to its rows.
        shapes: kinds whose shape is not the usual one of `SHAPES`.
        stacked: GGUF kind -> the `Hyper` attribute that says how many are stacked.
        computed: tensors made from the configuration.
        optional: GGUF kinds, all biases, that a checkpoint may lack; all others must be there.
        absent: GGUF kinds that a model of this configuration does not have.
        own_head: llama.cpp wants an output head even where it is the input embedding.
        ignored: HF name endings that hold nothing needed.
        ignored_prefixes: HF name beginnings of what is no part of the text model.
        strip: prefixes that some repositories put before every name.
        prefixes: beginning of an HF name -> what stands there in `outside` and `per_layer`.
        check: refuses what llama.cpp cannot run, and returns notes where the result will differ from the source.
        slides: llama.cpp runs this family's sliding windows; where it does not, the context ends with the window.
        is_encoder: gives embeddings and has no output head.
    """

    architecture: str
    classes: tuple[str, ...]
    hyper: Callable[[Fields], Hyper]
    outside: Mapping[str, str]
    per_layer: Mapping[str, str]
    header: Callable[[Fields, Hyper], Header]
    transforms: Mapping[str, Transform] = dataclasses.field(default_factory=dict)
    shapes: Mapping[str, tuple[str | int, ...]] = dataclasses.field(default_factory=dict)
    stacked: Mapping[str, str] = dataclasses.field(default_factory=dict)
    computed: Callable[[Fields, Hyper], list[PlannedTensor]] = _nothing
    optional: tuple[str, ...] = ()
    absent: Callable[[Fields, Hyper], tuple[str, ...]] = _none_absent
    own_head: bool = False
    ignored: tuple[str, ...] = ()
    ignored_prefixes: tuple[str, ...] = ()
    defaults: Mapping[str, object] = dataclasses.field(default_factory=dict)
    section: str | None = None
    layer_prefix: str = "model.layers."
    strip: tuple[str, ...] = ()
    prefixes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    check: Callable[[Fields, Hyper], list[str]] = _no_notes
    slides: bool = False
    is_encoder: bool = False
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def read(self, checkpoint: Checkpoint) -> Source:
        """The checkpoint as a `Source` without vocabulary."""
        fields = self._fields(checkpoint)
        hyper = self.hyper(fields)
        notes = self.check(fields, hyper)
        described = hyper
        if hyper.window and not self.slides:
            if hyper.window < hyper.context_train:
                notes.append(
                    f"llama.cpp runs {self.architecture} without its sliding window of {hyper.window} tokens: the context "
                    "ends there, where both are still the same"
                )
            context = min(hyper.window, hyper.context_train)
            hyper = dataclasses.replace(hyper, context_train=context, window=None)
        own = common_header(hyper) | self.header(fields, described)
        found, remarks = self._tensors(checkpoint, hyper, self.absent(fields, hyper))
        notes += remarks
        tensors = in_file_order(found + self.computed(fields, hyper))
        header = {
            "general.architecture": HeaderValue("STRING", self.architecture),
            "general.type": HeaderValue("STRING", "model"),
            "general.name": HeaderValue("STRING", checkpoint.name),
        }
        if checkpoint.licence:
            header["general.license"] = HeaderValue("STRING", checkpoint.licence)
        if self.is_encoder:
            pooling = read_pooling(checkpoint.path)
            checkpoint = dataclasses.replace(checkpoint, files=(*checkpoint.files, *pooling.files))
            notes += pooling.notes
            own |= pooling.header
            # One row for every token where the model has no table: llama.cpp wants a count.
            header["tokenizer.ggml.token_type_count"] = HeaderValue("UINT32", max(1, hyper.n_token_types))
        header |= {f"{self.architecture}.{key}": value for key, value in own.items()}
        return Source(checkpoint, self._shape(hyper, tensors), tensors, header, tuple(notes))

    def _fields(self, checkpoint: Checkpoint) -> Fields:
        whole = Fields(checkpoint.config, str(checkpoint.path / "config.json"))
        own = whole.section(self.section) if self.section else whole
        return Fields({**self.defaults, **own.values}, own.where, own.prefix)

    def _shape(self, hyper: Hyper, tensors: tuple[PlannedTensor, ...]) -> ModelShape:
        return ModelShape(
            architecture=self.architecture,
            tensors={t.name: t.shape for t in tensors},
            n_layers=hyper.n_layers,
            n_heads=hyper.n_heads,
            n_kv_heads=hyper.n_kv_heads,
            head_size=hyper.head_size,
            vocab_size=hyper.vocab_size,
            context_train=hyper.context_train,
            embedding_size=hyper.embedding_size,
            window=hyper.window,
            n_window_layers=hyper.n_window_layers,
            n_experts=hyper.n_experts,
            n_experts_used=hyper.n_experts_used,
            is_encoder=self.is_encoder,
        )

    def _wanted(self, hyper: Hyper, absent: tuple[str, ...]) -> dict[str, tuple[str, str, int]]:
        """HF name -> (GGUF name, GGUF kind, place in its stack)."""
        wanted = {hf: (gguf, gguf, 0) for hf, gguf in self.outside.items() if gguf not in absent}
        per_layer = {hf: gguf for hf, gguf in self.per_layer.items() if gguf not in absent}
        for i in range(hyper.n_layers):
            for hf, gguf in per_layer.items():
                count = getattr(hyper, self.stacked[gguf]) if gguf in self.stacked else 1
                for j in range(count):
                    name = f"{self.layer_prefix}{i}.{hf}".replace("{j}", str(j))
                    wanted[name] = (f"blk.{i}.{gguf}", gguf, j)
        return wanted

    def _tensors(
        self, checkpoint: Checkpoint, hyper: Hyper, absent: tuple[str, ...]
    ) -> tuple[list[PlannedTensor], list[str]]:
        """The tensors of the output, and what of the checkpoint and of config.json it leaves out."""
        wanted = self._wanted(hyper, absent)
        found: dict[str, dict[int, SourceTensor]] = {}
        kinds: dict[str, str] = {}
        notes = []
        for name, tensor in checkpoint.tensors.items():
            bare = self.bare(name)
            if bare.endswith(self.ignored) or name.startswith(self.ignored_prefixes):
                continue
            if bare not in wanted:
                raise self._not_part(tensor, hyper)
            gguf_name, kind, place = wanted[bare]
            if kind == "output.weight" and hyper.tied:
                notes.append(f"{name} is not used: config.json ties the output head to the embedding")
                continue
            stack = found.setdefault(gguf_name, {})
            if place in stack:
                raise BadInputError(
                    f"{tensor.path}: tensor {name!r} is there twice, also as {stack[place].name!r}"
                )
            stack[place], kinds[gguf_name] = tensor, kind
        self._check_complete(found, wanted, hyper, checkpoint)
        unseen = sum(name not in found for name, kind, _ in wanted.values() if kind in self.optional)
        if unseen:
            notes.append(f"{unseen} biases that config.json announces are not there: they count as zero")
        if hyper.tied and self.own_head:
            found["output.weight"], kinds["output.weight"] = found["token_embd.weight"], "output.weight"
        return [self._plan(name, kinds[name], stack, hyper) for name, stack in found.items()], notes

    def _not_part(self, tensor: SourceTensor, hyper: Hyper) -> BadInputError | UnsupportedError:
        """The error for a tensor that the output would not have: never is one dropped in silence."""
        if self.bare(tensor.name) in self._wanted(hyper, ()):
            return BadInputError(
                f"{tensor.path}: tensor {tensor.name!r} is there, and by config.json the model has none",
                hint="set the key that announces it (such as attention_bias) where the model uses it, or remove it",
            )
        layer = re.match(re.escape(self.layer_prefix) + "([0-9]{1,6})", self.bare(tensor.name))
        if layer and int(layer[1]) >= hyper.n_layers:
            return BadInputError(
                f"{tensor.path}: tensor {tensor.name!r} is of layer {int(layer[1])}, config.json implies layers 0 to "
                f"{hyper.n_layers - 1}"
            )
        return UnsupportedError(
            f"{tensor.path}: tensor {tensor.name!r} is not part of a {self.architecture} model of {hyper.n_layers} layers",
            hint="the checkpoint is of another family, or was changed; check config.json",
        )

    def bare(self, name: str) -> str:
        """An HF name as `outside` and `per_layer` have it."""
        for prefix in self.strip:
            name = name.removeprefix(prefix)
        for old, new in self.prefixes.items():
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name

    def _plan(self, name: str, kind: str, stack: dict[int, SourceTensor], hyper: Hyper) -> PlannedTensor:
        transform = self.transforms.get(kind) or self.transforms.get(
            kind.replace(".bias", ".weight"), NO_TRANSFORM
        )
        if kind.endswith(".bias"):
            transform = transform.for_bias()
        parts = []
        expected = self._expected_shape(kind, hyper)
        for place in range(len(stack)):
            tensor = stack[place]
            if tensor.type_name not in FLOATS:
                raise BadInputError(
                    f"{tensor.path}: tensor {tensor.name!r} has type {tensor.type_name}; F32, F16 and BF16 can be converted"
                )
            shape = tensor.shape[::-1] if transform.transposed else tensor.shape
            whole = (len(stack), *shape) if kind in self.stacked else shape
            if expected is not None and whole != expected:
                raise BadInputError(
                    f"{tensor.path}: tensor {tensor.name!r} has shape {list(tensor.shape)}, config.json implies "
                    f"{list(expected)}{' in all' if kind in self.stacked else ''}"
                    f"{', transposed' if transform.transposed else ''}"
                )
            order, group_rows = transform.order(hyper, shape[0]) if transform.order else (None, 1)
            rows = n_elements(shape) if len(shape) == 1 and order else n_elements(shape[:-1])
            parts.append(Part(tensor, rows, order, group_rows, transform.transposed))
        vector = len(shape) == 1 or kind.endswith("_norm.weight") or kind in _ALWAYS_F32
        return PlannedTensor(name, whole, tuple(parts), plus=transform.plus, always_f32=vector)

    def _expected_shape(self, kind: str, hyper: Hyper) -> tuple[int, ...] | None:
        named = self.shapes.get(kind) or SHAPES.get(kind)
        if named is None and kind.endswith(".bias"):
            weight = kind.replace(".bias", ".weight")
            of_weight = self.shapes.get(weight) or SHAPES.get(weight)
            named = of_weight[:1] if of_weight else None
        if named is None:
            return None
        return tuple(getattr(hyper, name) if isinstance(name, str) else name for name in named)

    def _check_complete(
        self,
        found: dict[str, dict[int, SourceTensor]],
        wanted: dict[str, tuple[str, str, int]],
        hyper: Hyper,
        checkpoint: Checkpoint,
    ) -> None:
        missing = [
            hf
            for hf, (name, kind, place) in wanted.items()
            if place not in found.get(name, {})
            and not (kind in self.optional and name not in found)
            and not (kind == "output.weight" and hyper.tied)
        ]
        # Two HF names may stand for one tensor; the one that is there will do.
        present = {(name, place) for name, stack in found.items() for place in stack}
        missing = [hf for hf in missing if (wanted[hf][0], wanted[hf][2]) not in present]
        if missing:
            raise BadInputError(
                f"{checkpoint.path}: {len(missing)} tensors are missing, the first is {missing[0]!r}"
            )


def common_header(hyper: Hyper) -> Header:
    """What every architecture's header has, without prefix."""
    numbers = {
        "block_count": hyper.n_layers,
        "context_length": hyper.context_train,
        "embedding_length": hyper.embedding_size,
        "feed_forward_length": hyper.feed_forward_size,
        "attention.head_count": hyper.n_heads,
        "attention.head_count_kv": hyper.n_kv_heads,
        "vocab_size": hyper.vocab_size,
    }
    if hyper.n_experts:
        numbers |= {"expert_count": hyper.n_experts, "expert_used_count": hyper.n_experts_used}
    return {key: HeaderValue("UINT32", value) for key, value in numbers.items()}

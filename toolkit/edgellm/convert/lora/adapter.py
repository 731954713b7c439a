"""A PEFT adapter as lazily read data: its configuration, and the two halves of every product.

Nothing here runs code from a repository: the configuration is plain JSON, the tensors are safetensors. Every value is
looked at once, a slab at a time, so that NaN and infinity are refused before anything is written.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgellm.checkpoint import PICKLES, SourceTensor
from edgellm.convert import hints, rows
from edgellm.convert.lora.config import MAX_NAME_CHARS, MERGE_WITH_PEFT, AdapterConfig, read_config
from edgellm.errors import BadInputError, MissingInputError, UnsafeInputError, UnsupportedError
from edgellm.formats import safetensors
from edgellm.formats.paths import safe_join
from edgellm.native import ggml

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_MODULE = r"(?P<module>[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)"
_LINEAR = re.compile(rf"{re.escape(_PREFIX)}{_MODULE}\.lora_(?P<half>[AB])\.weight")
_EMBEDDING = re.compile(rf"{re.escape(_PREFIX)}{_MODULE}\.lora_embedding_(?P<half>[AB])")
_COPY = re.compile(rf"{re.escape(_PREFIX)}{_MODULE}(?:\.base_layer)?\.weight")
# Names of tensors that belong to something else, and the key of the configuration that asks for it.
_OTHER_KEYS = (
    ("lora_magnitude_vector", "use_dora"), (".modules_to_save.", "modules_to_save"), (".bias", "bias"),
    ("trainable_tokens", "trainable_token_indices"),
)  # fmt: skip
_FLOATS = ("F32", "F16", "BF16")
_SLAB_VALUES = 1 << 20


class Pair(NamedTuple):
    """The product that is added to one module's weight: scale * b @ a.

    Attributes:
        module: its name in the base, without `.weight`.
        a: (rank, n_in).  b: (n_out, rank). For an embedding n_in counts tokens.
        embedding: the weight is a table of rows, so that what is added is the product's transpose.
    """

    module: str
    a: SourceTensor
    b: SourceTensor
    scale: float
    embedding: bool = False

    @property
    def rank(self) -> int:
        """Width of the product."""
        return self.a.shape[0]

    @property
    def weight_shape(self) -> tuple[int, int]:
        """Shape of the weight it fits: (n_out, n_in), or (n_tokens, n_out) for an embedding."""
        n_in, n_out = self.a.shape[1], self.b.shape[0]
        return (n_in, n_out) if self.embedding else (n_out, n_in)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A LoRA adapter.

    Attributes:
        pairs: by module, in name order.
        copies: weights of the base that PEFT saved beside the adapter, by name; they must equal the base's.
        files: what was read, for provenance.
    """

    name: str
    path: Path
    config: AdapterConfig
    pairs: dict[str, Pair]
    copies: dict[str, SourceTensor]
    files: tuple[Path, ...]

    def describe(self) -> str:
        """Modules, rank and scale in one line."""
        ranks = sorted({pair.rank for pair in self.pairs.values()})
        scales = sorted({pair.scale for pair in self.pairs.values()})
        return f"{len(self.pairs)} modules, rank {_range(ranks)}, scale {_range(scales)}"


def _range(values: list[int] | list[float]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"


@hints.of(BadInputError, "download all files of the adapter again, or save it again with PEFT")
def read_adapter(directory: Path) -> Adapter:
    """Read an adapter that PEFT saved.

    Raises:
        MissingInputError: no adapter there.
        UnsafeInputError: its weights are pickles, or a name leads out of the directory.
        UnsupportedError: not LoRA, or a kind that cannot be converted; the message names the key.
        BadInputError: malformed, incomplete, shapes that contradict the configuration, NaN or infinity.
    """
    if not directory.is_dir():
        raise MissingInputError(
            f"no adapter at {str(directory)!r}", hint=f"give the directory that holds {CONFIG_NAME}"
        )
    config_path, weights_path = safe_join(directory, CONFIG_NAME), safe_join(directory, WEIGHTS_NAME)
    if not config_path.is_file():
        raise MissingInputError(
            f"{directory}: no {CONFIG_NAME}, so not a PEFT adapter",
            hint=f"give the directory that holds {CONFIG_NAME} and {WEIGHTS_NAME}",
        )
    config = read_config(config_path)
    if not weights_path.is_file():
        raise _no_weights(directory)
    halves, copies = _sort_tensors(weights_path)
    pairs = {module: _pair(module, halves[module], config) for module in sorted(halves)}
    if not pairs:
        raise BadInputError(f"{weights_path}: no LoRA tensors in it")
    _check_finite(pairs)
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", directory.resolve().name).strip(".") or "adapter"
    return Adapter(name, directory, config, pairs, copies, (config_path, weights_path))


def _no_weights(directory: Path) -> MissingInputError | UnsafeInputError:
    pickles = sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))
    if pickles:
        return UnsafeInputError(
            f"{directory}: its only weights are pickles ({', '.join(pickles[:3])}), which can run code when read",
            hint="load it with PEFT and save it again: PEFT writes safetensors",
        )
    return MissingInputError(f"{directory}: no {WEIGHTS_NAME}", hint="download all files of the adapter")


Halves = dict[str, SourceTensor]


def _sort_tensors(path: Path) -> tuple[dict[str, Halves], dict[str, SourceTensor]]:
    """Module -> its tensors by `A`, `B` (or `EA`, `EB` of an embedding), and the copies of base weights by name."""
    halves: dict[str, Halves] = {}
    copies = {}
    for view in safetensors.read_safetensors(path).tensors.values():
        where = f"{path}: tensor {view.name!r:.{MAX_NAME_CHARS}}"
        if view.dtype not in _FLOATS:
            raise BadInputError(f"{where} has type {view.dtype}; F32, F16 and BF16 can be converted")
        tensor = SourceTensor(view.name, view.dtype, view.shape, path, view.offset, view.n_bytes)
        if len(view.name) > MAX_NAME_CHARS:
            raise BadInputError(
                f"{path}: tensor {view.name[:60]!r}... has a name of {len(view.name)} characters"
            )
        if found := _LINEAR.fullmatch(view.name):
            halves.setdefault(found["module"], {})[found["half"]] = tensor
        elif found := _EMBEDDING.fullmatch(view.name):
            halves.setdefault(found["module"], {})["E" + found["half"]] = tensor
        elif (found := _COPY.fullmatch(view.name)) and not re.search(r"\.(lora_|modules_to_save)", view.name):
            copies[f"{found['module'].removesuffix('.base_layer')}.weight"] = tensor
        else:
            raise _unexpected(where, view.name)
    return halves, copies


def _unexpected(where: str, name: str) -> BadInputError | UnsupportedError:
    for part, key in _OTHER_KEYS:
        if part in name:
            return UnsupportedError(
                f"{where} belongs to {key}, which cannot be converted", hint=MERGE_WITH_PEFT
            )
    return BadInputError(f"{where} is no LoRA tensor; expected names like {_PREFIX}MODULE.lora_A.weight")


def _pair(module: str, halves: Halves, config: AdapterConfig) -> Pair:
    first = next(iter(halves.values()))
    where = f"{first.path}: module {module!r}"
    embedding = first.name.endswith(("lora_embedding_A", "lora_embedding_B"))
    wanted = ("EA", "EB") if embedding else ("A", "B")
    if set(halves) != set(wanted):
        names = sorted(tensor.name.removeprefix(f"{_PREFIX}{module}.") for tensor in halves.values())
        raise BadInputError(f"{where} has only {' and '.join(names)}; lora_A and lora_B are needed")
    a, b = (halves[half] for half in wanted)
    rank = config.rank_of(module)
    for tensor, at, what in ((a, 0, "rows"), (b, -1, "columns")):
        if len(tensor.shape) != 2 or min(tensor.shape) < 1 or tensor.shape[at] != rank:
            raise BadInputError(
                f"{tensor.path}: tensor {tensor.name!r} has shape {list(tensor.shape)}, {CONFIG_NAME} implies {rank} {what}"
            )
    if key := config.why_not(module):
        raise BadInputError(
            f"{where} has tensors, but {key} of {CONFIG_NAME} leaves it out",
            hint="tensors and configuration are of different adapters; get both from one place",
        )
    return Pair(module, a, b, config.scale_of(module), embedding)


def _check_finite(pairs: dict[str, Pair]) -> None:
    with rows.Readers() as readers:
        for pair in pairs.values():
            for tensor in (pair.a, pair.b):
                item_bytes = tensor.n_bytes // (tensor.shape[0] * tensor.shape[1])
                step = _SLAB_VALUES * item_bytes
                for low in range(0, tensor.n_bytes, step):
                    data = readers.read(tensor.path, tensor.offset + low, min(step, tensor.n_bytes - low))
                    values = ggml.dequantize_rows(
                        data.reshape(1, -1), tensor.type_name, len(data) // item_bytes
                    )
                    if not np.isfinite(values).all():
                        raise BadInputError(f"{tensor.path}: tensor {tensor.name!r} holds NaN or infinity")

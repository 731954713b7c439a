"""What a conversion reads: every output tensor with its origin, and the header it will stand under.

An architecture file turns a Hugging Face checkpoint into a `Source`; a GGUF already is one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from edgellm.checkpoint import Checkpoint, SourceTensor
from edgellm.errors import UnsupportedError
from edgellm.formats import gguf
from edgellm.formats.records import replace
from edgellm.shape import ModelShape, n_elements, shape_of_gguf

FLOATS = ("F32", "F16", "BF16")
_BLOCK = re.compile(r"blk\.([0-9]+)")
RowOrder = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]]
ValueType = Literal["UINT32", "INT32", "FLOAT32", "STRING", "BOOL", "UINT64"]


class LowRank(NamedTuple):
    """A product that is added to the rows of a matrix: scale * left @ right.

    Attributes:
        left: (n_rows of the origin, rank).  right: (rank, n_columns).
        transposed: both are stored the other way round.
    """

    left: SourceTensor
    right: SourceTensor
    scale: float
    transposed: bool = False


class Part(NamedTuple):
    """Consecutive output rows that come from one place.

    Attributes:
        origin: where the values are, or the values themselves (float32) if they are computed.
        n_rows: output rows it gives.
        order: output row of this part -> row of the origin; None where both have the same order.
        group_rows: rows among which `order` moves rows; slabs are cut between groups.
        transposed: the origin is stored (n_in, n_out), so that an output row is one of its columns.
        low_rank: added to the rows, in the order of the origin's outputs.
    """

    origin: SourceTensor | npt.NDArray[np.float32]
    n_rows: int
    order: RowOrder | None = None
    group_rows: int = 1
    transposed: bool = False
    low_rank: LowRank | None = None

    @property
    def type_name(self) -> str:
        """ggml type of the values where they come from."""
        return "F32" if isinstance(self.origin, np.ndarray) else self.origin.type_name

    @property
    def stored(self) -> bool:
        """Whether the values stand in a file as they are."""
        return not isinstance(self.origin, np.ndarray) and self.low_rank is None

    def source_rows(self, low: int, high: int) -> npt.NDArray[np.int64]:
        """Where this part's rows low..high-1 stand in the origin."""
        rows = np.arange(low, high, dtype=np.int64)
        return rows if self.order is None else self.order(rows)


class PlannedTensor(NamedTuple):
    """One tensor of the output.

    Attributes:
        name, shape: in GGUF's terms, rows first.
        parts: where its rows come from, one part after the other.
        plus: a constant added to every value.
        always_f32: kept in F32 whatever the recipe says (vectors, norms, routers).
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    plus: float = 0.0
    always_f32: bool = False

    @property
    def source_type(self) -> str:
        """ggml type of the values where they come from; F32 where the parts differ."""
        kinds = {part.type_name for part in self.parts}
        return kinds.pop() if len(kinds) == 1 else "F32"

    @property
    def n_columns(self) -> int:
        """Weights that stay together; a vector whose elements change places is moved one by one."""
        one_by_one = len(self.shape) == 1 and (len(self.parts) > 1 or self.parts[0].order is not None)
        return 1 if one_by_one else self.shape[-1]

    @property
    def n_rows(self) -> int:
        """Rows, all experts together."""
        return n_elements(self.shape) // self.n_columns

    def copied_as(self, type_name: str) -> bool:
        """Whether rows of that type are the origins' own bytes: nothing is rounded."""
        same = self.source_type == type_name and not self.plus
        return same and all(part.stored for part in self.parts)

    @property
    def reordered(self) -> bool:
        """Whether rows change places."""
        return any(part.order is not None for part in self.parts)


def planned(
    name: str, origin: SourceTensor | npt.NDArray[np.float32], *, always_f32: bool = False
) -> PlannedTensor:
    """A tensor that is one origin as it stands."""
    shape = tuple(origin.shape)
    n_rows = n_elements(shape[:-1])
    return PlannedTensor(name, shape, (Part(origin, n_rows),), always_f32=always_f32)


class HeaderValue(NamedTuple):
    """A value of the GGUF header; `element_type` for arrays."""

    type: str
    value: Any
    element_type: str | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """Everything a recipe needs to know and a writer needs to read.

    Attributes:
        shape: lists the tensors in the same order as `tensors`.
        notes: where the result will differ from the source model, for the user to know.
    """

    checkpoint: Checkpoint
    shape: ModelShape
    tensors: tuple[PlannedTensor, ...]
    header: dict[str, HeaderValue]
    notes: tuple[str, ...] = ()

    def base_types(self) -> dict[str, str]:
        """The type each tensor has before a recipe changes it: F32 for vectors and norms, else the source's."""
        return {t.name: "F32" if t.always_f32 else t.source_type for t in self.tensors}


def from_gguf(checkpoint: Checkpoint) -> Source:
    """A GGUF as the source of another: same tensors, same header."""
    file = checkpoint.gguf
    if file is None:
        raise ValueError("not a GGUF checkpoint")
    shape = shape_of_gguf(file)
    tensors = in_file_order([planned(t.name, t) for t in checkpoint.tensors.values()])
    unreadable = next((t for t in tensors if t.source_type in {"I8", "I16", "I32", "I64", "F64"}), None)
    if unreadable:
        raise UnsupportedError(
            f"{checkpoint.path}: tensor {unreadable.name!r} has type {unreadable.source_type}, which cannot be converted",
            hint="convert the Hugging Face model that it was made from",
        )
    shape = replace(shape, tensors={t.name: t.shape for t in tensors})
    # The writer aligns by the default, and writes one file.
    kept = {k: v for k, v in file.metadata.items() if k != "general.alignment" and not k.startswith("split.")}
    header = {key: _carry(value) for key, value in kept.items()}
    return Source(checkpoint, shape, tensors, header, _trailing(file))


def _trailing(file: gguf.GGUFFile) -> tuple[str, ...]:
    """A note on bytes behind the last tensor and its padding."""
    n_bytes = file.trailing_bytes
    return (f"{n_bytes} bytes behind the last tensor of the source are left out",) if n_bytes else ()


def in_file_order(tensors: list[PlannedTensor]) -> tuple[PlannedTensor, ...]:
    """llama.cpp's order: tensors outside the blocks first, then block by block, by name."""

    def key(tensor: PlannedTensor) -> tuple[int, str]:
        block = _BLOCK.match(tensor.name)
        return (int(block[1]) if block else -1, tensor.name)

    return tuple(sorted(tensors, key=key))


def _carry(value: gguf.GGUFValue) -> HeaderValue:
    return HeaderValue(value.type, value.value, value.element_type)

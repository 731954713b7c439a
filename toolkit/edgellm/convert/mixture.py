"""llama.cpp's named mixes: which type each tensor gets under a name such as Q4_K_M.

The rules follow llama.cpp's src/llama-quant.cpp (MIT), so that a name means here what it means there: counters run
in the order of layers and names, and grouped-query attention, experts and a tied head matter. The tests compare
every tensor with `llama-quantize --dry-run`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from edgellm.errors import SpecError
from edgellm.formats import ggml_types
from edgellm.registry import lookup
from edgellm.shape import ModelShape, Shape


@dataclasses.dataclass(frozen=True)
class Quant:
    """A quantization name: llama.cpp's file type number and the type most tensors get."""

    name: str
    file_type: int
    base: str


QUANTS: dict[str, Quant] = {
    row[0]: Quant(*row)
    for row in (
        ("F32", 0, "F32"), ("F16", 1, "F16"), ("BF16", 32, "BF16"),
        ("Q8_0", 7, "Q8_0"), ("Q6_K", 18, "Q6_K"),
        ("Q5_K_M", 17, "Q5_K"), ("Q5_K_S", 16, "Q5_K"), ("Q5_1", 9, "Q5_1"), ("Q5_0", 8, "Q5_0"),
        ("Q4_K_M", 15, "Q4_K"), ("Q4_K_S", 14, "Q4_K"), ("Q4_1", 3, "Q4_1"), ("Q4_0", 2, "Q4_0"),
        ("Q3_K_L", 13, "Q3_K"), ("Q3_K_M", 12, "Q3_K"), ("Q3_K_S", 11, "Q3_K"),
        ("Q2_K", 10, "Q2_K"),
    )
}  # fmt: skip

# Parts of names; of RWKV's time_mix_* the small ones only.
_KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj",
    "position_embd", "token_types.weight", "ssm_conv1d", "shortconv.conv.weight", "attn_rel_b.weight",
    "indexer.k_proj.weight", "indexer.q_proj.weight", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd",
    ".patch_merger", "a.rvq.codebook", "mm.a.code_embd", "time_mix_first.weight", "time_mix_lerp_fused.weight",
    *(f"time_mix_{part}.weight" for part in ("w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2")),
    *(f"time_mix_decay_{part}.weight" for part in ("w1", "w2")),
)  # fmt: skip
_SIZE_70B = {"llama": 80, "qwen2": 80, "olmo": 80, "deci": 80, "jais2": 68}  # layers
_FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def find(name: str) -> Quant:
    """The quantization of that name, in any case.

    Raises:
        SpecError: there is none; the hint lists all.
    """
    return lookup(QUANTS, name.upper(), "quantization type")


def named_mix(
    quant: Quant, shape: ModelShape, base_types: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Type of every tensor, in the order of `shape.tensors`, and the tensors whose type had to fall back.

    Args:
        base_types: type of each tensor before quantization; what is not quantized keeps it.

    Raises:
        SpecError: a float type was asked for a tensor that cannot have it.
    """
    rules = _Rules(quant, shape)
    types: dict[str, str] = {}
    fallbacks: list[str] = []
    for name, tensor_shape in shape.tensors.items():
        if not quantizable(name, tensor_shape):
            types[name] = base_types[name]
            continue
        if not ggml_types.BY_NAME[quant.base].quantized:
            types[name] = quant.base
            continue
        wanted = rules.choose(name)
        types[name] = _fit(wanted, tensor_shape[-1])
        if types[name] != wanted:
            fallbacks.append(name)
    return types, fallbacks


def quantizable(name: str, shape: Shape) -> bool:
    """Whether a mix may change this tensor: matrices called *weight, but for norms, gates and small tables."""
    significant = list(shape)
    while len(significant) > 1 and significant[0] == 1:
        significant.pop(0)
    if len(significant) < 2 or not name.endswith("weight"):
        return False
    return not any(part in name for part in _KEPT)


def _fit(kind: str, n_columns: int) -> str:
    """The type itself where a row is a multiple of its block, else the nearest that fits."""
    if n_columns % ggml_types.BY_NAME[kind].block == 0:
        return kind
    fallback = _FALLBACK.get(kind, kind)
    return fallback if n_columns % ggml_types.BY_NAME[fallback].block == 0 else "F16"


def _category(name: str) -> str:
    if name == "output.weight":
        return "output"
    if name in {"token_embd.weight", "per_layer_token_embd.weight"}:
        return "token_embd"
    for part in ("attn_qkv", "attn_kv_b", "attn_v", "attn_k", "attn_q", "attn_output"):
        if f"{part}.weight" in name:
            return part
    return next((part for part in ("ffn_up", "ffn_gate", "ffn_down") if part in name), "other")


_VALUE_LIKE = {"attn_v", "attn_qkv", "attn_kv_b"}


class _Rules:
    """Counters and facts that the rules look at, for one model."""

    def __init__(self, quant: Quant, shape: ModelShape) -> None:
        self.quant = quant
        self.name = quant.name
        self.falcon = shape.architecture == "falcon"
        self.n_gqa = shape.n_gqa
        self.n_experts = max(1, shape.n_experts)
        self.n_layers = shape.n_layers
        self.tied = "output.weight" not in shape.tensors
        self.n_value = sum(_category(name) in _VALUE_LIKE for name in shape.tensors)
        self.i_value = 0
        self.i_down = 0
        self.columns = {name: s[-1] for name, s in shape.tensors.items()}
        self.is_70b = _SIZE_70B.get(shape.architecture) == shape.n_layers and (
            shape.architecture != "llama" or (shape.n_heads != shape.n_kv_heads and self.n_experts != 8)
        )

    def choose(self, name: str) -> str:
        category = _category(name)
        if category == "output" or (self.tied and category == "token_embd"):
            return self._head(name)
        if category in _VALUE_LIKE:
            kind = self._value_like(category)
            self.i_value += 1
            return kind
        if category == "attn_k" and self.n_experts == 8:
            return "Q8_0"
        if category == "ffn_down":
            kind = self._down(self._layer(name))
            self.i_down += 1
            return kind
        if category == "attn_output":
            return self._attention_output()
        return self.quant.base

    def _head(self, name: str) -> str:
        base = self.quant.base
        if self.falcon or self.columns[name] % ggml_types.BY_NAME[base].block:
            return "Q8_0"
        return base if base == "Q8_0" else "Q6_K"

    def _value_like(self, category: str) -> str:
        kind = self.quant.base
        if self.name == "Q2_K":
            kind = "Q4_K" if self.n_gqa >= 4 else "Q3_K"
        elif self.name == "Q3_K_M":
            kind = "Q5_K" if self.i_value < 2 else "Q4_K"
        elif self.name == "Q3_K_L":
            kind = "Q5_K"
        elif self.name in {"Q4_K_M", "Q5_K_M"} and _use_more_bits(self.i_value, self.n_value):
            kind = "Q6_K"
        elif self.name == "Q4_K_S" and self.i_value < 4:
            kind = "Q5_K"
        if self.is_70b and kind in {"Q3_K", "Q4_K"}:
            kind = "Q5_K"
        return "Q8_0" if self.n_experts == 8 else kind

    def _layer(self, name: str) -> int:
        if self.n_experts == 1:
            return self.i_down
        match = re.match(r"blk\.(\d+)\.", name)
        if not match or int(match[1]) >= self.n_layers:
            raise SpecError(f"tensor {name!r} is in no layer from 0 to {self.n_layers - 1}")
        return int(match[1])

    def _down(self, layer: int) -> str:
        n = self.n_layers
        more = _use_more_bits(layer, n)
        if self.name == "Q2_K":
            return "Q3_K"
        if self.name == "Q3_K_M":
            return "Q5_K" if layer < n // 16 else "Q4_K" if not self.falcon or more else "Q3_K"
        if self.name == "Q3_K_L":
            return "Q4_K" if self.falcon else "Q5_K"
        if self.name == "Q4_K_M":
            if self.falcon:
                return "Q6_K" if layer < n // 16 else "Q5_K" if more else "Q4_K"
            return "Q6_K" if more else "Q4_K"
        if self.name == "Q5_K_M" and more:
            return "Q6_K"
        if self.name == "Q4_K_S" and not self.falcon and layer < n // 8:
            return "Q5_K"
        return self.quant.base

    def _attention_output(self) -> str:
        if self.falcon:
            return "Q4_K" if self.name == "Q3_K_L" else self.quant.base
        if self.n_experts == 8:
            sharper = {"Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M"}
            return "Q5_K" if self.name in sharper else self.quant.base
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(self.name, self.quant.base)


def _use_more_bits(layer: int, n_layers: int) -> bool:
    return layer < n_layers // 8 or layer >= 7 * n_layers // 8 or (layer - n_layers // 8) % 3 == 2

"""Which type a tensor gets under a named mix of llama.cpp.

The choices follow llama.cpp's src/llama-quant.cpp (MIT): counters run in the order of layers and names, and
grouped-query attention, experts, a tied head and the presence of an importance matrix matter.
"""

from __future__ import annotations

import re

from edgellm.errors import SpecError
from edgellm.formats import ggml_types
from edgellm.shape import ModelShape

EMBEDDINGS = {"token_embd.weight", "per_layer_token_embd.weight"}
_SIZE_70B = {"llama": 80, "qwen2": 80, "olmo": 80, "deci": 80, "jais2": 68}  # layers
_VALUE_LIKE = {"attn_v", "attn_qkv", "attn_kv_b"}
_LOWEST = {"IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_S", "IQ1_M"}
_EMBEDDING_TYPES = {
    "IQ2_XXS": "Q2_K", "IQ2_XS": "Q2_K", "IQ1_S": "Q2_K", "IQ1_M": "Q2_K", "IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S",
    "IQ3_XXS": "IQ3_S", "TQ1_0": "Q4_K", "TQ2_0": "Q4_K",
}  # fmt: skip
_OUTPUT_OF_8_EXPERTS = {  # attention outputs that become Q5_K
    "Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M", "IQ4_NL", "IQ4_XS",
}  # fmt: skip
_ATTENTION_OUTPUT = {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}


class Rules:
    """Counters and facts that the rules look at, for one model."""

    def __init__(
        self, name: str, base: str, shape: ModelShape, *, has_imatrix: bool, output_type: str | None
    ) -> None:
        self.name = name
        self.base = base
        self.has_imatrix = has_imatrix
        self.output_type = output_type
        self.architecture = shape.architecture
        self.falcon = shape.architecture == "falcon"
        self.n_gqa = shape.n_gqa
        self.n_experts = max(1, shape.n_experts)
        self.n_layers = shape.n_layers
        self.tied = "output.weight" not in shape.tensors
        self.n_value = sum(_category(name) in _VALUE_LIKE for name in shape.tensors)
        self.counts = dict.fromkeys(("value", "ffn_down", "ffn_gate", "ffn_up"), 0)
        self.shapes = shape.tensors
        self.is_70b = _SIZE_70B.get(shape.architecture) == shape.n_layers and (
            shape.architecture != "llama" or (shape.n_heads != shape.n_kv_heads and self.n_experts != 8)
        )

    def choose(self, name: str) -> str:
        """The mix's type for one tensor; called once for each, in file order."""
        category, base = _category(name), self.base
        if self.architecture == "glm5-next" and any(
            part in name for part in ("attn_q_a", "attn_q_b", "nextn.eh_proj")
        ):
            return "Q8_0"
        if category == "output" or (self.tied and category == "token_embd"):
            return self.output_type or self._head(name)
        if self.name == "MXFP4_MOE":
            return self._mxfp4(name, category)
        if category == "token_embd":
            return _EMBEDDING_TYPES.get(self.name, base)
        if self.name in _LOWEST:
            return self._lowest(category)
        if category in _VALUE_LIKE:
            return self._value_like(self._count("value"))
        if category in {"attn_k", "attn_q"}:
            if category == "attn_k" and self.n_experts == 8:
                return "Q8_0"
            return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(self.name, base)
        if category == "ffn_down":
            return self._down(self._layer(name, self._count(category)))
        if category in {"ffn_gate", "ffn_up"}:
            layer, n = self._layer(name, self._count(category)), self.n_layers
            return "IQ3_XXS" if self.name == "IQ3_XS" and n // 8 <= layer < 7 * n // 8 else base
        return self._attention_output() if category == "attn_output" else base

    def _count(self, what: str) -> int:
        self.counts[what] += 1
        return self.counts[what] - 1

    def _head(self, name: str) -> str:
        base = self.base
        if self.name == "MXFP4_MOE" or self.falcon or self.shapes[name][-1] % ggml_types.BY_NAME[base].block:
            return "Q8_0"
        if self.name in _LOWEST or self.name == "IQ3_XXS":
            return "Q5_K"
        return base if base == "Q8_0" else "Q6_K"

    def _mxfp4(self, name: str, category: str) -> str:
        """Experts only; in bailingmoe3 other tensors have three dimensions as well."""
        has_experts = len(self.shapes[name]) > 2 and self.shapes[name][-3] > 1
        if self.architecture == "bailingmoe3":
            has_experts = has_experts and category in {"ffn_up", "ffn_gate", "ffn_down"}
        return "MXFP4" if has_experts else "Q8_0"

    def _lowest(self, category: str) -> str:
        better = self.name in {"IQ2_S", "IQ2_M"}
        if category in _VALUE_LIKE:
            return "Q4_K" if self.n_gqa >= 4 or self.n_experts >= 4 else "IQ3_S" if better else "Q2_K"
        if category == "attn_k" and self.n_experts == 8:
            return "Q4_K"
        if category == "ffn_down" and self._count(category) < self.n_layers // 8:
            return "IQ3_S" if better else "Q2_K"
        if category == "attn_output":
            if self.n_experts == 8:
                return "Q5_K"
            return "IQ3_S" if better else "IQ2_XXS" if self.name in {"IQ1_S", "IQ1_M"} else self.base
        return self.base

    def _value_like(self, index: int) -> str:
        kind, name, grouped = self.base, self.name, self.n_gqa >= 4
        if name == "Q2_K":
            kind = "Q4_K" if grouped else "Q3_K"
        elif name == "IQ3_XXS":
            kind = "Q4_K" if grouped else "IQ3_XXS" if self.has_imatrix else "IQ3_S"
        elif name == "IQ3_M" or (grouped and name in {"Q2_K_S", "IQ3_XS", "IQ3_S"}):
            kind = "Q4_K"
        elif name == "Q3_K_M":
            kind = "Q5_K" if index < 2 else "Q4_K"
        elif name == "Q3_K_L" or (grouped and name in {"IQ4_NL", "IQ4_XS"}):
            kind = "Q5_K"
        elif name in {"Q4_K_M", "Q5_K_M"} and _use_more_bits(index, self.n_value):
            kind = "Q6_K"
        elif name == "Q4_K_S" and index < 4:
            kind = "Q5_K"
        if self.is_70b and kind in {"Q3_K", "Q4_K"}:
            kind = "Q5_K"
        return "Q8_0" if self.n_experts == 8 else kind

    def _layer(self, name: str, index: int) -> int:
        """Experts of one layer may be several tensors, so the name tells; else the how-manieth it is."""
        if self.n_experts == 1:
            return index
        match = re.match(r"blk\.(\d+)\.", name)
        if not match or int(match[1]) >= self.n_layers:
            raise SpecError(f"tensor {name!r} is in no layer from 0 to {self.n_layers - 1}")
        return int(match[1])

    def _down(self, layer: int) -> str:
        n, name, base = self.n_layers, self.name, self.base
        more, early = _use_more_bits(layer, n), layer < n // 8
        if name == "Q2_K":
            return "Q3_K"
        if name == "Q3_K_M":
            return "Q5_K" if layer < n // 16 else "Q4_K" if not self.falcon or more else "Q3_K"
        if name == "Q3_K_L":
            return "Q4_K" if self.falcon else "Q5_K"
        if name == "IQ3_M":
            return "Q4_K" if early or (self.n_experts == 8 and more) else base
        if name == "Q4_K_M":
            if self.falcon:
                return "Q6_K" if layer < n // 16 else "Q5_K" if more else "Q4_K"
            return "Q6_K" if more else "Q4_K"
        if name == "Q5_K_M":
            return "Q6_K" if more else base
        if name == "IQ3_XXS" and not self.has_imatrix:
            return "Q4_K" if early else "Q3_K"
        if not early:
            return base
        if name == "Q4_K_S":
            return base if self.falcon else "Q5_K"
        if name in {"IQ4_NL", "IQ4_XS"}:
            return base if self.has_imatrix else "Q5_K"
        if name in {"Q4_0", "Q5_0"}:
            return {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}[name] if self.has_imatrix else base
        return "Q4_K" if name == "Q2_K_S" else base

    def _attention_output(self) -> str:
        base = self.base
        if self.falcon:
            return "Q4_K" if self.name == "Q3_K_L" else base
        if self.n_experts == 8:
            return "Q5_K" if self.name in _OUTPUT_OF_8_EXPERTS else base
        return _ATTENTION_OUTPUT.get(self.name, base)


def _use_more_bits(layer: int, n_layers: int) -> bool:
    return layer < n_layers // 8 or layer >= 7 * n_layers // 8 or (layer - n_layers // 8) % 3 == 2


def _category(name: str) -> str:
    if name == "output.weight":
        return "output"
    if name in EMBEDDINGS:
        return "token_embd"
    for part in ("attn_qkv", "attn_kv_b", "attn_v", "attn_k", "attn_q", "attn_output"):
        if f"{part}.weight" in name:
            return part
    return next((part for part in ("ffn_up", "ffn_gate", "ffn_down") if part in name), "other")

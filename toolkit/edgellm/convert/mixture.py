"""llama.cpp's named mixes: which type each tensor gets under a name such as Q4_K_M, and what a user changes in that.

What may be quantized, what stands in where rows do not fit a type, and what needs an importance matrix follow
llama.cpp's src/llama-quant.cpp (MIT), as do the choices in `mix_rules`, so that a name means here what it means there.
The tests compare every tensor with `llama-quantize --dry-run`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping

from edgellm.convert import mix_rules, name_patterns
from edgellm.convert.quants import QUANTS as QUANTS
from edgellm.convert.quants import Quant as Quant
from edgellm.errors import SpecError
from edgellm.formats import ggml_types
from edgellm.registry import lookup
from edgellm.shape import ModelShape, Shape

# Name of a mix of our own; its bits per weight follow: MIX_4.83.
MIX = "MIX"
TENSOR_TYPES = tuple(
    name
    for name in ggml_types.BY_NAME
    if name not in {"F64", "I8", "I16", "I32", "I64", "Q8_1", "Q8_K", "NVFP4", "Q1_0"}
)

# What ggml weighs with an importance matrix while rounding; for the others it takes one and looks away.
WEIGHED = frozenset(TENSOR_TYPES) - {"F32", "F16", "BF16", "Q8_0", "MXFP4", "TQ1_0", "TQ2_0"}


@dataclasses.dataclass(frozen=True)
class Overrides:
    """Types that the user gives to tensors instead of the mix, as to llama-quantize.

    Attributes:
        patterns: (regular expression, ggml type) in order; the first that is found in a tensor's name decides.
        output: type of the head, the token embedding if they are one; None leaves it to the mix.
        token_embedding: type of the token embedding, tied or not.
    """

    patterns: tuple[tuple[str, str], ...] = ()
    output: str | None = None
    token_embedding: str | None = None


# Parts of names; of RWKV's time_mix_* the small ones only.
_KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj",
    "position_embd", "token_types.weight", "ssm_conv1d", "shortconv.conv.weight", "attn_rel_b.weight",
    "indexer.k_proj.weight", "indexer.q_proj.weight", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd",
    ".patch_merger", "a.rvq.codebook", "mm.a.code_embd", "time_mix_first.weight", "time_mix_lerp_fused.weight",
    *(f"time_mix_{part}.weight" for part in ("w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2")),
    *(f"time_mix_decay_{part}.weight" for part in ("w1", "w2")),
)  # fmt: skip
_KEPT_GLM5 = (
    "hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj", "indexer_compressor_gate", "indexer_compressor_ape",
    "ssm_f_a.weight", "ssm_f_b.weight", "ssm_g_a.weight", "ssm_g_b.weight", "ssm_beta.weight", "attn_kv_a_mqa.weight",
    "attn_k_b.weight", "attn_v_b.weight",
)  # fmt: skip
_FALLBACK = {
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "TQ1_0": "Q4_0", "TQ2_0": "Q4_0",
    "IQ4_XS": "IQ4_NL", "IQ3_S": "IQ4_NL", "IQ3_XXS": "IQ4_NL", "IQ2_S": "IQ4_NL", "IQ2_XS": "IQ4_NL",
    "IQ2_XXS": "IQ4_NL", "IQ1_M": "IQ4_NL", "IQ1_S": "IQ4_NL",
}  # fmt: skip
# What is garbage without an importance matrix, except for token embedding and head; Q2_K only under Q2_K_S.
_NEED_IMPORTANCE = {"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"}
_NEED_IMPORTANCE_ALWAYS = {"IQ2_XXS", "IQ2_XS", "IQ1_S"}  # ggml's code for these cannot do without


def find(name: str) -> Quant:
    """The quantization of that name, in any case.

    Raises:
        SpecError: there is none; the hint lists all.
    """
    return lookup(QUANTS, name.upper(), "quantization type")


def parse_override(text: str) -> tuple[str, str]:
    """`PATTERN=TYPE`, as `blk\\.0\\.ffn_down=Q6_K`, in its two parts.

    Raises:
        SpecError: there is no such part or type.
    """
    pattern, found, kind = text.rpartition("=")
    if not found or not pattern:
        raise SpecError(f"tensor type {text!r} is not PATTERN=TYPE", hint=r"for example 'ffn_down=Q6_K'")
    return pattern, tensor_type(kind)


def tensor_type(name: str) -> str:
    """The ggml type of that name, in any case, if tensors can be written in it.

    Raises:
        SpecError: there is none; the hint lists all.
    """
    return lookup({kind: kind for kind in TENSOR_TYPES}, name.upper(), "tensor type")


def named_mix(
    quant: Quant,
    shape: ModelShape,
    base_types: Mapping[str, str],
    *,
    has_imatrix: bool = False,
    overrides: Overrides | None = None,
) -> tuple[dict[str, str], list[str]]:
    """Type of every tensor, in the order of `shape.tensors`, and the tensors whose type had to fall back.

    Args:
        base_types: type of each tensor before quantization; what is not quantized keeps it.
        has_imatrix: some mixes give other types to some tensors when an importance matrix is used.

    Raises:
        SpecError: a tensor is in a layer that the model has not; or an override matches nothing, or cannot be had.
    """
    overrides = overrides or Overrides()
    if (
        overrides.output
        and "output.weight" not in shape.tensors
        and not ggml_types.BY_NAME[quant.base].quantized
    ):
        raise SpecError(
            f"an output type under {quant.name}: this model's head is its token embedding",
            hint="use --token-embedding-type",
        )
    rules = mix_rules.Rules(
        quant.name, quant.base, shape, has_imatrix=has_imatrix, output_type=overrides.output
    )
    allowed = [n for n, s in shape.tensors.items() if quantizable(n, s, shape.architecture)]
    chosen = _by_pattern(quant, overrides, allowed)
    types = dict(base_types)
    fallbacks: list[str] = []
    for name in sorted(allowed, key=_file_order):
        n_columns = shape.tensors[name][-1]
        asked = _asked_for(name, overrides, chosen)
        if asked is not None:
            if n_columns % ggml_types.BY_NAME[asked].block:
                raise SpecError(
                    f"{name}: rows of {n_columns} weights cannot be {asked}, whose blocks hold {ggml_types.BY_NAME[asked].block}",
                    hint=f"its rows can be {', '.join(_fitting(n_columns))}",
                )
            types[name] = asked
            continue
        if not ggml_types.BY_NAME[quant.base].quantized:
            types[name] = quant.base
            continue
        wanted = chosen.get(name) or rules.choose(name)
        types[name] = _fit(wanted, n_columns)
        if types[name] != wanted:
            fallbacks.append(name)
    return {name: types[name] for name in shape.tensors}, [n for n in shape.tensors if n in set(fallbacks)]


def need_importance(quant: Quant, shape: ModelShape, types: Mapping[str, str]) -> list[str]:
    """Tensors that must not get their type without an importance matrix, by llama-quantize's rule."""
    found = []
    for name, tensor_shape in shape.tensors.items():
        kind = types[name]
        spared = name in mix_rules.EMBEDDINGS or name == "output.weight"
        low = kind in _NEED_IMPORTANCE or (kind == "Q2_K" and quant.name == "Q2_K_S")
        needed = kind in _NEED_IMPORTANCE_ALWAYS or (low and not spared)
        if needed and quantizable(name, tensor_shape, shape.architecture):
            found.append(name)
    return found


def check_importance(
    quant: Quant, shape: ModelShape, types: Mapping[str, str], available: Collection[str]
) -> None:
    """Refuse a mix that needs importance for a tensor that has none.

    Args:
        available: names in the importance matrix; empty where there is no matrix.

    Raises:
        SpecError: it names the first such tensor and its type.
    """
    missing = [name for name in need_importance(quant, shape, types) if name not in available]
    if not missing:
        return
    others = f" (and {len(missing) - 1} more tensors)" if len(missing) > 1 else ""
    if not available:
        raise SpecError(
            f"{quant.name} needs an importance matrix: {missing[0]} in {types[missing[0]]}{others} is noise without",
            hint="use --imatrix auto, which collects one while converting, or a type from Q2_K on",
        )
    raise SpecError(
        f"the importance matrix has nothing on {missing[0]}, which {quant.name} makes {types[missing[0]]}{others}",
        hint="use --imatrix auto, or a matrix of this very model",
    )


def quantizable(name: str, shape: Shape, architecture: str = "") -> bool:
    """Whether a mix may change this tensor: matrices called *weight, but for norms, gates and small tables."""
    significant = list(shape)
    while len(significant) > 1 and significant[0] == 1:
        significant.pop(0)
    if len(significant) < 2 or not name.endswith("weight"):
        return False
    kept = (*_KEPT, *_KEPT_GLM5) if architecture == "glm5-next" else _KEPT
    return not any(part in name for part in kept)


def _file_order(name: str) -> tuple[int, str]:
    """Layer by layer, names without a layer first: the order in which llama.cpp's counters run."""
    match = re.match(r"blk\.(\d+)\.", name)
    return (int(match[1]) if match else -1, name)


def _by_pattern(quant: Quant, overrides: Overrides, names: list[str]) -> dict[str, str]:
    """Tensor -> type of the first pattern found in its name."""
    if overrides.patterns and not ggml_types.BY_NAME[quant.base].quantized:
        raise SpecError(
            f"tensor types by pattern need a quantized mix to differ from, {quant.name} is none",
            hint="choose another --quant, such as Q8_0",
        )
    chosen: dict[str, str] = {}
    for pattern, kind in overrides.patterns:
        matched = name_patterns.matching(pattern, names)
        if not matched:
            raise SpecError(
                f"pattern {pattern!r} matches no tensor that can be quantized",
                hint=f"names look like {', '.join(names[:3])}" if names else None,
            )
        for name in matched:
            chosen.setdefault(name, kind)
    return chosen


def _asked_for(name: str, overrides: Overrides, chosen: Mapping[str, str]) -> str | None:
    """The type that --token-embedding-type or --output-tensor-type gives; these hold for float mixes too."""
    if name in mix_rules.EMBEDDINGS and not (name.startswith("per_layer") and name in chosen):
        return overrides.token_embedding
    return overrides.output if name == "output.weight" else None


def _fitting(n_columns: int) -> list[str]:
    return [kind for kind in TENSOR_TYPES if n_columns % ggml_types.BY_NAME[kind].block == 0]


def _fit(kind: str, n_columns: int) -> str:
    """The type itself where a row is a multiple of its block, else the nearest that fits."""
    if n_columns % ggml_types.BY_NAME[kind].block == 0:
        return kind
    fallback = _FALLBACK.get(kind, kind)
    return fallback if n_columns % ggml_types.BY_NAME[fallback].block == 0 else "F16"

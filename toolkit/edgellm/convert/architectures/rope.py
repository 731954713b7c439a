"""Rotary position embedding: base, share of the head that rotates, and scaling, for the header and as factors."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from edgellm.convert.architectures.hyper import Hyper
from edgellm.convert.source import HeaderValue, PlannedTensor, planned
from edgellm.errors import BadInputError, UnsupportedError
from edgellm.formats.plain_json import Fields

KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope", "su")
WITHOUT_FACTORS = ("default", "linear", "dynamic", "yarn")


@dataclasses.dataclass(frozen=True)
class Rope:
    """A model's rope, as config.json describes it; `section` holds the scaling's own parameters."""

    kind: str
    base: float
    section: Fields


def read_rope(fields: Fields, hyper: Hyper) -> Rope:
    """The rope of a config.json; newer configurations call the section rope_parameters.

    Raises:
        UnsupportedError: a kind of scaling that is not known, or a rope of its own for each kind of layer.
    """
    for name in ("rope_parameters", "rope_scaling"):
        if name in fields:
            section = fields.section(name)
            if "full_attention" in section or "sliding_attention" in section:
                raise UnsupportedError(
                    f"{fields.where}: {name} has a rope for each kind of layer; llama.cpp runs this family with one for all"
                )
            kind = section.text("rope_type", default=None, max_chars=40) or section.text(
                "type", default=None, max_chars=40
            )
            if kind is None and "factor" in section:
                raise BadInputError(f"{fields.where}: {name} has a factor but no rope_type")
            kind = kind or "default"
            if kind not in KINDS:
                raise UnsupportedError(
                    f"{fields.where}: rope scaling {kind!r} is not supported; known: {', '.join(KINDS)}"
                )
            return Rope(kind, section.number("rope_theta", 1e-3, 1e12, default=hyper.rope_base), section)
    return Rope("default", hyper.rope_base, fields)


def check_rope(fields: Fields, hyper: Hyper, kinds: tuple[str, ...]) -> list[str]:
    """Notes on the scaling; refuses one that llama.cpp's graph of a family does not compute.

    Raises:
        UnsupportedError: the kind is none of `kinds`.
    """
    kind = read_rope(fields, hyper).kind
    if kind not in kinds:
        raise UnsupportedError(
            f"{fields.where}: rope scaling {kind!r}; llama.cpp runs this family with {', '.join(kinds)}"
        )
    if kind == "dynamic":
        return [
            f"llama.cpp has no dynamic rope scaling: the context ends after {hyper.context_train} tokens, where it would begin"
        ]
    return []


def rope_header(fields: Fields, hyper: Hyper) -> dict[str, HeaderValue]:
    """The header's rope keys, without the architecture's prefix.

    A `dynamic` scaling changes nothing within the context the model was trained for, so it is not written.
    """
    rope = read_rope(fields, hyper)
    section = rope.section
    header = {
        "rope.dimension_count": HeaderValue("UINT32", hyper.rotary_size),
        "rope.freq_base": HeaderValue("FLOAT32", rope.base),
    }
    if rope.kind == "linear":
        header |= {
            "rope.scaling.type": HeaderValue("STRING", "linear"),
            "rope.scaling.factor": HeaderValue("FLOAT32", section.number("factor", 1e-3, 1e6)),
        }
    if rope.kind == "yarn":
        header |= _yarn_header(section, hyper)
    if rope.kind in {"longrope", "su"}:
        original = _original_context(fields, section)
        header["rope.scaling.type"] = HeaderValue("STRING", "longrope")
        header["rope.scaling.original_context_length"] = HeaderValue("UINT32", original)
        header["rope.scaling.attn_factor"] = HeaderValue(
            "FLOAT32", _longrope_attention_factor(section, hyper.context_train / original, original)
        )
    return header


def rope_tensors(fields: Fields, hyper: Hyper) -> list[PlannedTensor]:
    """Frequency factors, one per rotary pair: Llama 3's, or the long and short ones of longrope."""
    rope = read_rope(fields, hyper)
    if rope.kind == "llama3":
        return [planned("rope_freqs.weight", _llama3_factors(rope, hyper), always_f32=True)]
    if rope.kind not in {"longrope", "su"}:
        return []
    return [
        planned(
            f"rope_factors_{length}.weight",
            _listed_factors(rope.section, f"{length}_factor", hyper),
            always_f32=True,
        )
        for length in ("long", "short")
    ]


def _yarn_header(section: Fields, hyper: Hyper) -> dict[str, HeaderValue]:
    factor = section.number("factor", 1e-3, 1e6)
    original = section.integer("original_max_position_embeddings", 1, 1 << 30, default=hyper.context_train)
    header = {
        "rope.scaling.type": HeaderValue("STRING", "yarn"),
        "rope.scaling.factor": HeaderValue("FLOAT32", factor),
        "rope.scaling.original_context_length": HeaderValue("UINT32", original),
    }
    if not section.flag("truncate", default=True):
        raise UnsupportedError(
            f"{section.where}: {section.prefix}truncate is false; llama.cpp rounds the range that yarn stretches"
        )
    for key in ("beta_fast", "beta_slow"):
        if section.number(key, 0.0, 1e6, default=0.0):
            header[f"rope.scaling.yarn_{key}"] = HeaderValue("FLOAT32", section.number(key, 0.0, 1e6))
    # llama.cpp scales attention as the paper says, ignores its key for another factor, and multiplies by this one.
    share = _yarn_attention_factor(section, factor) / _yarn_scale(factor, 1.0)
    if not math.isclose(share, 1.0, rel_tol=1e-6):
        header["rope.scaling.attn_factor"] = HeaderValue("FLOAT32", share)
    return header


def _yarn_scale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1.0 else 1.0


def _yarn_attention_factor(section: Fields, factor: float) -> float:
    """Hugging Face's: the section's own, else from `mscale` and `mscale_all_dim` if both are there, else the paper's."""
    given = section.number("attention_factor", 1e-3, 1e3, default=None)
    if given is not None:
        return given
    above = section.number("mscale", 0.0, 1e3, default=0.0)
    below = section.number("mscale_all_dim", 0.0, 1e3, default=0.0)
    if above and below:
        return _yarn_scale(factor, above) / _yarn_scale(factor, below)
    return _yarn_scale(factor, 1.0)


def _original_context(fields: Fields, section: Fields) -> int:
    name = "original_max_position_embeddings"
    if name in fields:
        return fields.integer(name, 1, 1 << 30)
    return section.integer(name, 1, 1 << 30)


def _longrope_attention_factor(section: Fields, scale: float, original: int) -> float:
    """Hugging Face's: the section's own, else from how far the context was stretched."""
    given = section.number("attention_factor", 1e-3, 1e3, default=None)
    if given is not None:
        return given
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1.0 and original > 1 else 1.0


def _listed_factors(section: Fields, name: str, hyper: Hyper) -> npt.NDArray[np.float32]:
    values = section.values.get(name)
    n_pairs = hyper.rotary_size // 2
    if (
        not isinstance(values, list)
        or len(values) != n_pairs
        or not all(type(v) in (int, float) and 1e-6 <= v <= 1e9 for v in values)
    ):
        raise BadInputError(
            f"{section.where}: {section.prefix}{name} is not a list of {n_pairs} positive numbers, one per rotary pair"
        )
    return np.array(values, dtype=np.float32)


def _llama3_factors(rope: Rope, hyper: Hyper) -> npt.NDArray[np.float32]:
    """Long waves are slowed by `factor`, short ones kept, those between blended."""
    section = rope.section
    factor = section.number("factor", 1e-3, 1e6, default=8.0)
    low = section.number("low_freq_factor", 1e-3, 1e6, default=1.0)
    high = section.number("high_freq_factor", 1e-3, 1e6, default=4.0)
    if high <= low:
        raise BadInputError(
            f"{section.where}: {section.prefix}high_freq_factor {high} is not above low_freq_factor {low}"
        )
    old_context = section.integer("original_max_position_embeddings", 1, 1 << 30, default=8192)
    # In float32 and in this order, so that the factors have the bits that llama.cpp's converter writes.
    one = np.float32(1)
    exponents = np.arange(0, hyper.rotary_size, 2, dtype=np.float32) / np.float32(hyper.rotary_size)
    frequencies = one / np.float32(rope.base) ** exponents
    wavelengths = (one / frequencies) * np.float32(2 * math.pi)
    smooth = ((one / wavelengths) * np.float32(old_context) - np.float32(low)) / np.float32(high - low)
    smooth = np.clip(smooth, 0, 1)  # beyond, it is not looked at
    blended = one / ((one - smooth) / np.float32(factor) + smooth)
    slowed = np.where(wavelengths > old_context / low, np.float32(factor), blended)
    factors: npt.NDArray[np.float32] = np.where(wavelengths < old_context / high, one, slowed).astype(
        np.float32
    )
    return factors

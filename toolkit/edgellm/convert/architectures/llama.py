"""The llama family: Llama 1 to 3, SmolLM2, Mistral and their many children."""

from __future__ import annotations

import math

import numpy as np

from edgellm.convert.architectures.family import Family, Hyper
from edgellm.convert.source import HeaderValue, PlannedTensor
from edgellm.errors import UnsupportedError
from edgellm.formats.plain_json import Fields

_ROPE_TYPES = ("default", "linear", "llama3")
_ACTIVATIONS = ("silu", "swish")


def _expected_shape(kind: str, hyper: Hyper) -> tuple[int, ...] | None:
    width, kv_width = hyper.n_heads * hyper.head_size, hyper.n_kv_heads * hyper.head_size
    size, hidden = hyper.embedding_size, hyper.feed_forward_size
    return {
        "token_embd.weight": (hyper.vocab_size, size),
        "output.weight": (hyper.vocab_size, size),
        "output_norm.weight": (size,),
        "attn_norm.weight": (size,),
        "ffn_norm.weight": (size,),
        "attn_q.weight": (width, size),
        "attn_k.weight": (kv_width, size),
        "attn_v.weight": (kv_width, size),
        "attn_output.weight": (size, width),
        "ffn_gate.weight": (hidden, size),
        "ffn_up.weight": (hidden, size),
        "ffn_down.weight": (size, hidden),
        "attn_q.bias": (width,),
        "attn_k.bias": (kv_width,),
        "attn_v.bias": (kv_width,),
        "attn_output.bias": (size,),
        "ffn_gate.bias": (hidden,),
        "ffn_up.bias": (hidden,),
        "ffn_down.bias": (size,),
    }.get(kind)


def _rope(fields: Fields) -> tuple[str, Fields]:
    """The kind of rope scaling and its parameters; newer configs call the section rope_parameters."""
    for name in ("rope_scaling", "rope_parameters"):
        if name in fields:
            section = fields.section(name)
            kind = section.text("rope_type", default=None) or section.text("type", default="default")
            if kind not in _ROPE_TYPES:
                raise UnsupportedError(
                    f"{fields.where}: rope scaling {kind!r} is not supported; known: {', '.join(_ROPE_TYPES)}"
                )
            return kind, section
    return "default", fields


def _header(fields: Fields, hyper: Hyper) -> dict[str, HeaderValue]:
    activation = fields.text("hidden_act", default="silu")
    if activation not in _ACTIVATIONS:
        raise UnsupportedError(
            f"{fields.where}: hidden_act is {activation!r}; llama.cpp runs this family with silu"
        )
    kind, section = _rope(fields)
    base = section.number("rope_theta", 1e-3, 1e12, default=hyper.rope_base)
    header = {
        "llama.rope.dimension_count": HeaderValue("UINT32", hyper.head_size),
        "llama.attention.key_length": HeaderValue("UINT32", hyper.head_size),
        "llama.attention.value_length": HeaderValue("UINT32", hyper.head_size),
        "llama.rope.freq_base": HeaderValue("FLOAT32", base),
        "llama.attention.layer_norm_rms_epsilon": HeaderValue("FLOAT32", hyper.norm_epsilon),
    }
    if kind == "linear":
        header["llama.rope.scaling.type"] = HeaderValue("STRING", "linear")
        header["llama.rope.scaling.factor"] = HeaderValue("FLOAT32", section.number("factor", 1e-3, 1e6))
    return header


def _rope_factors(fields: Fields, hyper: Hyper) -> list[PlannedTensor]:
    """Llama 3's frequency factors, one per rotary pair: long waves are slowed by `factor`, short ones kept."""
    kind, section = _rope(fields)
    if kind != "llama3":
        return []
    factor = section.number("factor", 1e-3, 1e6, default=8.0)
    low = section.number("low_freq_factor", 1e-3, 1e6, default=1.0)
    high = section.number("high_freq_factor", 1e-3, 1e6, default=4.0)
    old_context = section.integer("original_max_position_embeddings", 1, 1 << 30, default=8192)
    base = np.float32(section.number("rope_theta", 1e-3, 1e12, default=hyper.rope_base))
    exponents = np.arange(0, hyper.head_size, 2, dtype=np.float32) / np.float32(hyper.head_size)
    factors = []
    for frequency in (1.0 / base**exponents).tolist():
        wavelength = 2 * math.pi / frequency
        if wavelength < old_context / high:
            factors.append(1.0)
        elif wavelength > old_context / low:
            factors.append(factor)
        else:
            smooth = (old_context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    values = np.array(factors, dtype=np.float32)
    return [PlannedTensor("rope_freqs.weight", values.shape, values, always_f32=True)]


FAMILY = Family(
    architecture="llama",
    classes=("LlamaForCausalLM", "MistralForCausalLM", "LLaMAForCausalLM"),
    outside={
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    },
    per_layer={
        "input_layernorm.weight": "attn_norm.weight",
        "post_attention_layernorm.weight": "ffn_norm.weight",
        "self_attn.q_proj.weight": "attn_q.weight",
        "self_attn.k_proj.weight": "attn_k.weight",
        "self_attn.v_proj.weight": "attn_v.weight",
        "self_attn.o_proj.weight": "attn_output.weight",
        "self_attn.q_proj.bias": "attn_q.bias",
        "self_attn.k_proj.bias": "attn_k.bias",
        "self_attn.v_proj.bias": "attn_v.bias",
        "self_attn.o_proj.bias": "attn_output.bias",
        "mlp.gate_proj.weight": "ffn_gate.weight",
        "mlp.up_proj.weight": "ffn_up.weight",
        "mlp.down_proj.weight": "ffn_down.weight",
        "mlp.gate_proj.bias": "ffn_gate.bias",
        "mlp.up_proj.bias": "ffn_up.bias",
        "mlp.down_proj.bias": "ffn_down.bias",
    },
    rotary={"attn_q.weight": False, "attn_k.weight": True, "attn_q.bias": False, "attn_k.bias": True},
    expected_shapes=_expected_shape,
    header=_header,
    computed=_rope_factors,
    ignored=("rotary_emb.inv_freq",),
)

"""What the families with layer norms, biases and a plain GELU have in common."""

from __future__ import annotations

from collections.abc import Mapping

from edgellm.convert.architectures.family import Header
from edgellm.convert.architectures.hyper import EXACT_GELU, TANH_GELU, Hyper, check_activation, check_square
from edgellm.convert.architectures.rope import WITHOUT_FACTORS, check_rope, rope_header
from edgellm.convert.source import HeaderValue
from edgellm.errors import UnsupportedError
from edgellm.formats.plain_json import Fields

# The feed-forward layer of GPT-NeoX, Bloom and Falcon.
MLP = {"mlp.dense_h_to_4h": "ffn_up", "mlp.dense_4h_to_h": "ffn_down"}


def with_biases(names: Mapping[str, str]) -> dict[str, str]:
    """HF name -> GGUF name of weights and biases, from the names of layers."""
    return {f"{hf}.{kind}": f"{gguf}.{kind}" for kind in ("weight", "bias") for hf, gguf in names.items()}


def norm_header(_fields: Fields, hyper: Hyper) -> Header:
    """The epsilon of the layer norms."""
    return {"attention.layer_norm_epsilon": HeaderValue("FLOAT32", hyper.norm_epsilon)}


def rotary_header(fields: Fields, hyper: Hyper) -> Header:
    """The epsilon of the layer norms, and the rope."""
    return norm_header(fields, hyper) | rope_header(fields, hyper)


def parallel_header(fields: Fields, hyper: Hyper, *, default: bool) -> Header:
    """The same with `use_parallel_residual`; `default` is what an absent key means."""
    parallel = fields.flag("use_parallel_residual", default=default)
    return rotary_header(fields, hyper) | {"use_parallel_residual": HeaderValue("BOOL", parallel)}


def check_rotary(fields: Fields, hyper: Hyper, *, partial: bool) -> list[str]:
    """Notes on heads and rope; refuses what llama.cpp's graph of a family does not compute.

    Args:
        partial: it can rotate a part of each head.
    """
    check_square(fields, hyper)
    if not partial and hyper.rotary_size != hyper.head_size:
        raise UnsupportedError(
            f"{fields.where}: {hyper.rotary_size} of {hyper.head_size} columns of a head rotate; llama.cpp runs this "
            "family with all of them"
        )
    return check_rope(fields, hyper, WITHOUT_FACTORS)


def check_gelu(fields: Fields, key: str, default: str) -> list[str]:
    """A note where the activation is the exact GELU: llama.cpp computes the one by tanh."""
    return check_activation(fields, key, default, same=TANH_GELU, near=EXACT_GELU)

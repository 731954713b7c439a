"""Gemma 2: every other layer slides, scores and logits are capped, norms are stored less one."""

from __future__ import annotations

from edgellm.convert.architectures import llama
from edgellm.convert.architectures.family import Family, Header
from edgellm.convert.architectures.hyper import (
    EXACT_GELU,
    TANH_GELU,
    Hyper,
    check_activation,
    read_hyper,
    refuse,
)
from edgellm.convert.architectures.rope import WITHOUT_FACTORS
from edgellm.convert.architectures.transforms import PLUS_ONE
from edgellm.convert.architectures.windows import every, listed_layers, window_header, with_windows
from edgellm.convert.source import HeaderValue
from edgellm.errors import UnsupportedError
from edgellm.formats.plain_json import Fields

NORMS = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "pre_feedforward_layernorm.weight": "ffn_norm.weight",
    "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
}
LESS_ONE = dict.fromkeys((*NORMS.values(), "output_norm.weight"), PLUS_ONE)
PERIOD = 2
N_LAYERS_OF_27B = 46  # of this size alone llama.cpp scales scores by the embedding's share of a head


def slides(fields: Fields, n_layers: int, period: int) -> tuple[bool, ...]:
    """Whether each layer slides: as listed, else all but each `period`-th."""
    listed = listed_layers(fields, n_layers)
    return every(period, n_layers) if listed is None else listed


def check_gemma(fields: Fields, hyper: Hyper, n_layers_of_27b: int, kinds: tuple[str, ...]) -> list[str]:
    """What the graphs of both generations compute.

    Raises:
        UnsupportedError: biases, another activation, scale of the scores, or scaling of the rope.
    """
    refuse(fields, {"attention_bias": False})
    expected = hyper.embedding_size // hyper.n_heads if hyper.n_layers == n_layers_of_27b else hyper.head_size
    scalar = fields.number("query_pre_attn_scalar", 1e-3, 1e9, default=256.0)
    if scalar != expected:
        raise UnsupportedError(
            f"{fields.where}: query_pre_attn_scalar is {scalar:g}; llama.cpp runs this shape of model with {expected}"
        )
    notes = check_activation(
        fields, "hidden_activation", "gelu_pytorch_tanh", same=TANH_GELU, near=EXACT_GELU
    )
    return notes + llama.check_rotation(fields, hyper, kinds)


def _hyper(fields: Fields) -> Hyper:
    hyper = read_hyper(fields)
    return with_windows(fields, hyper, slides(fields, hyper.n_layers, PERIOD))


def _header(fields: Fields, hyper: Hyper) -> Header:
    usual = every(PERIOD, hyper.n_layers)
    return {
        **llama.rms_header(fields, hyper),
        **window_header(hyper, slides(fields, hyper.n_layers, PERIOD), usual),
        "attn_logit_softcapping": HeaderValue("FLOAT32", fields.number("attn_logit_softcapping", 1e-3, 1e9)),
        "final_logit_softcapping": HeaderValue(
            "FLOAT32", fields.number("final_logit_softcapping", 1e-3, 1e9)
        ),
    }


def _check(fields: Fields, hyper: Hyper) -> list[str]:
    refuse(fields, {"tie_word_embeddings": True})
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if key not in fields:
            raise UnsupportedError(
                f"{fields.where}: {key} is null; llama.cpp caps this family's scores and logits"
            )
    return check_gemma(fields, hyper, N_LAYERS_OF_27B, WITHOUT_FACTORS)


FAMILY = Family(
    architecture="gemma2",
    classes=("Gemma2ForCausalLM",),
    hyper=_hyper,
    defaults={
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
    },
    outside=llama.OUTSIDE,
    per_layer=NORMS | llama.without_biases(llama.ATTENTION | llama.MLP),
    header=_header,
    transforms=LESS_ONE,
    ignored=llama.IGNORED,
    check=_check,
    slides=True,
)

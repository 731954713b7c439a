"""Granite 3: Llama with four multipliers."""

from __future__ import annotations

import dataclasses

from edgellm.convert.architectures import llama
from edgellm.convert.architectures.family import Family, Header
from edgellm.convert.architectures.hyper import Hyper, read_hyper
from edgellm.convert.architectures.rope import rope_tensors
from edgellm.convert.source import HeaderValue
from edgellm.formats.plain_json import Fields

# 0 would mean to llama.cpp that there is none.
MULTIPLIERS = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}


def _hyper(fields: Fields) -> Hyper:
    return dataclasses.replace(
        read_hyper(fields), window=None
    )  # the class has none, whatever config.json says


def _header(fields: Fields, hyper: Hyper) -> Header:
    scales = {
        gguf: HeaderValue("FLOAT32", fields.number(key, 1e-9, 1e9, default=1.0))
        for key, gguf in MULTIPLIERS.items()
    }
    return llama.rms_header(fields, hyper) | scales


FAMILY = Family(
    architecture="granite",
    classes=("GraniteForCausalLM",),
    hyper=_hyper,
    outside=llama.OUTSIDE,
    per_layer=llama.NORMS | llama.ATTENTION | llama.MLP,
    header=_header,
    transforms=llama.ROTARY,
    computed=rope_tensors,
    ignored=llama.IGNORED,
    absent=llama.unannounced_biases,
    check=llama.check_decoder,
)

"""SmolLM3: Llama in which every fourth layer has no rotary embedding."""

from __future__ import annotations

from edgellm.convert.architectures import llama
from edgellm.convert.architectures.family import Family
from edgellm.convert.architectures.hyper import MAX_LAYERS, Hyper, read_hyper, refuse
from edgellm.convert.architectures.rope import WITHOUT_FACTORS
from edgellm.convert.architectures.windows import every, switched_window
from edgellm.errors import UnsupportedError
from edgellm.formats.plain_json import Fields

PERIOD = 4


def _hyper(fields: Fields) -> Hyper:
    return switched_window(fields, read_hyper(fields))


def _check(fields: Fields, hyper: Hyper) -> list[str]:
    refuse(fields, {"attention_bias": False, "mlp_bias": False})
    rotates = fields.integers("no_rope_layers", 0, 1, MAX_LAYERS, default=None)
    if rotates is None:
        interval = fields.integer("no_rope_layer_interval", 1, 1 << 20, default=PERIOD)
        rotates = list(map(int, every(interval, hyper.n_layers)))
    if rotates != list(map(int, every(PERIOD, hyper.n_layers))):
        raise UnsupportedError(
            f"{fields.where}: no_rope_layers has ones for layers {[i for i, one in enumerate(rotates) if one][:8]}...; "
            f"llama.cpp runs this family with all but each {PERIOD}th"
        )
    return llama.check_decoder(fields, hyper, WITHOUT_FACTORS)


FAMILY = Family(
    architecture="smollm3",
    classes=("SmolLM3ForCausalLM",),
    hyper=_hyper,
    defaults={
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rope_theta": 2e6,
        "tie_word_embeddings": True,
    },
    outside=llama.OUTSIDE,
    per_layer=llama.NORMS | llama.without_biases(llama.ATTENTION | llama.MLP),
    header=llama.rms_header,
    transforms=llama.ROTARY,
    ignored=llama.IGNORED,
    check=_check,
)

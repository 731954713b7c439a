"""Gemma 3, the text model: five layers slide with a rope of their own, then one does not; heads are normed."""

from __future__ import annotations

from edgellm.convert.architectures import llama, qwen3
from edgellm.convert.architectures.family import Family, Header
from edgellm.convert.architectures.gemma2 import LESS_ONE, NORMS, check_gemma, slides
from edgellm.convert.architectures.hyper import MAX_LAYERS, Hyper, read_hyper, refuse
from edgellm.convert.architectures.transforms import PLUS_ONE
from edgellm.convert.architectures.windows import every, window_header, with_windows
from edgellm.convert.source import HeaderValue
from edgellm.errors import UnsupportedError
from edgellm.formats.plain_json import Fields

PERIOD = 6
N_LAYERS_OF_27B = 62
ROPES = ("default", "linear", "dynamic")  # others llama.cpp would apply to the sliding layers too


def _global(fields: Fields) -> Fields:
    """config.json with the rope of the layers that do not slide, where it lists one for each kind of layer."""
    section = fields.section("rope_parameters")
    if "full_attention" not in section:
        return fields
    rope = section.section("full_attention").values
    return Fields({**fields.values, "rope_parameters": rope}, fields.where, fields.prefix)


def _local_base(fields: Fields) -> float:
    base = fields.number("rope_local_base_freq", 1e-3, 1e12, default=10000.0)
    rope = fields.section("rope_parameters").section("sliding_attention")
    kind = rope.text("rope_type", default="default", max_chars=40)
    if kind != "default":
        raise UnsupportedError(
            f"{fields.where}: {rope.prefix}rope_type is {kind!r}; llama.cpp runs this family's sliding "
            "layers without scaling"
        )
    return rope.number("rope_theta", 1e-3, 1e12, default=base)


def _slides(fields: Fields, n_layers: int) -> tuple[bool, ...]:
    return slides(fields, n_layers, fields.integer("sliding_window_pattern", 1, MAX_LAYERS, default=PERIOD))


def _hyper(fields: Fields) -> Hyper:
    hyper = read_hyper(_global(fields))
    return with_windows(fields, hyper, _slides(fields, hyper.n_layers))


def _header(fields: Fields, hyper: Hyper) -> Header:
    header = llama.rms_header(_global(fields), hyper)
    header["rope.freq_base_swa"] = HeaderValue("FLOAT32", _local_base(fields))
    if hyper.window is not None:
        header |= window_header(hyper, _slides(fields, hyper.n_layers), every(PERIOD, hyper.n_layers))
    cap = fields.number("final_logit_softcapping", 1e-3, 1e9, default=None)
    if cap is not None:
        header["final_logit_softcapping"] = HeaderValue("FLOAT32", cap)
    return header


def _check(fields: Fields, hyper: Hyper) -> list[str]:
    refuse(fields, {"use_bidirectional_attention": False})
    if "attn_logit_softcapping" in fields:
        raise UnsupportedError(
            f"{fields.where}: attn_logit_softcapping is {fields.number('attn_logit_softcapping', 0, 1e9):g}; "
            "llama.cpp runs this family without"
        )
    return check_gemma(_global(fields), hyper, N_LAYERS_OF_27B, ROPES)


FAMILY = Family(
    architecture="gemma3",
    classes=("Gemma3ForCausalLM",),
    hyper=_hyper,
    defaults={
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "rope_theta": 1e6,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
    },
    outside=llama.OUTSIDE,
    per_layer=NORMS | qwen3.ATTENTION | llama.without_biases(llama.MLP),
    shapes=qwen3.HEAD_NORM_SHAPES,
    header=_header,
    transforms=LESS_ONE | dict.fromkeys(qwen3.HEAD_NORMS.values(), PLUS_ONE),
    ignored=llama.IGNORED,
    check=_check,
    slides=True,
)

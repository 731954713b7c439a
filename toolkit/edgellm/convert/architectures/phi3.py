"""Phi 3, 3.5 and 4: fused QKV, fused gate and up, two lists of rope factors for short and long contexts."""

from __future__ import annotations

from edgellm.convert.architectures import llama
from edgellm.convert.architectures.family import Family, Header
from edgellm.convert.architectures.hyper import Hyper, check_square, read_hyper
from edgellm.convert.architectures.rope import check_rope, read_rope, rope_header, rope_tensors
from edgellm.convert.source import HeaderValue
from edgellm.formats.plain_json import Fields

_LONGROPE = ("longrope", "su")
_ORIGINAL = "original_max_position_embeddings"


def _hyper(fields: Fields) -> Hyper:
    return read_hyper(fields, default_epsilon=1e-5, default_context=4096)


def _header(fields: Fields, hyper: Hyper) -> Header:
    header = {
        **rope_header(fields, hyper),
        "attention.layer_norm_rms_epsilon": HeaderValue("FLOAT32", hyper.norm_epsilon),
        # Older versions of llama.cpp want the key, and a 0 where there is no window.
        "attention.sliding_window": HeaderValue("UINT32", hyper.window or 0),
    }
    if _ORIGINAL in fields:
        original = fields.integer(_ORIGINAL, 1, 1 << 30)
        header["rope.scaling.original_context_length"] = HeaderValue("UINT32", original)
    return header


def _check(fields: Fields, hyper: Hyper) -> list[str]:
    check_square(fields, hyper)
    notes = check_rope(fields, hyper, ("default", *_LONGROPE)) + llama.silu_only(fields, hyper)
    rope = read_rope(fields, hyper)
    if rope.kind in _LONGROPE:
        holder = fields if _ORIGINAL in fields else rope.section
        original = holder.integer(_ORIGINAL, 1, 1 << 30)
        if original < hyper.context_train:
            notes.append(
                f"llama.cpp chooses between the two ropes by the context it is given, not by the text's length: with a "
                f"context above {original} tokens short texts use the long one too"
            )
    return notes


FAMILY = Family(
    architecture="phi3",
    classes=("Phi3ForCausalLM",),
    hyper=_hyper,
    outside=llama.OUTSIDE,
    per_layer={
        **llama.NORMS,
        "self_attn.qkv_proj.weight": "attn_qkv.weight",
        "self_attn.o_proj.weight": "attn_output.weight",
        "mlp.gate_up_proj.weight": "ffn_up.weight",
        "mlp.down_proj.weight": "ffn_down.weight",
    },
    header=_header,
    shapes={"ffn_up.weight": ("gate_up_size", "embedding_size")},
    computed=rope_tensors,
    ignored=llama.IGNORED,
    check=_check,
)

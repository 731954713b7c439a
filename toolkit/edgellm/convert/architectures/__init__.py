"""Model families, one file each; adding a family is one file and one row here and in the tests."""

from __future__ import annotations

import difflib
import re

from edgellm.checkpoint import Checkpoint
from edgellm.convert import hints
from edgellm.convert.architectures import (
    bert,
    bloom,
    distilbert,
    falcon,
    gemma2,
    gemma3,
    gemma3_vision,
    gpt2,
    gpt_neox,
    granite,
    llama,
    mistral,
    mixtral,
    nomic_bert,
    olmo2,
    phi,
    phi3,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    smollm3,
    stablelm,
    starcoder2,
)
from edgellm.convert.architectures.family import Family
from edgellm.convert.source import Source
from edgellm.errors import BadInputError, UnsupportedError
from edgellm.formats.plain_json import short

_MODULES = (
    bert,
    bloom,
    distilbert,
    falcon,
    gemma2,
    gemma3,
    gemma3_vision,
    gpt2,
    gpt_neox,
    granite,
    llama,
    mistral,
    mixtral,
    nomic_bert,
    olmo2,
    phi,
    phi3,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    smollm3,
    stablelm,
    starcoder2,
)
ONNX_HINT = (
    "models that llama.cpp cannot run go to ONNX: optimum-cli export onnx --model DIR OUT; edgellm writes none in this "
    "version"
)
# Classes whose configuration need not say is_encoder_decoder: an encoder reads, a decoder of another kind writes.
_ENCODER_DECODERS = re.compile(
    r"(?:[Mm]?T5|UMT5|LongT5|SwitchTransformers|M?Bart|PLBart|Pegasus|PegasusX|BigBirdPegasus|Marian|M2M100|FSMT|LED|NllbMoe"
    r"|Blenderbot|BlenderbotSmall|ProphetNet|XLMProphetNet|Whisper|Speech2Text|SeamlessM4T|VisionEncoderDecoder"
    r"|SpeechEncoderDecoder|EncoderDecoder)(?:v2|MT)?(?:For[A-Za-z]+|Model|)"
)
SAME_MODEL_HINT = "config.json and the weights must be of one model at one revision: download its files again"
FAMILIES: dict[str, Family] = {name: module.FAMILY for module in _MODULES for name in module.FAMILY.classes}


@hints.of(BadInputError, SAME_MODEL_HINT)
@hints.of(UnsupportedError, ONNX_HINT)
def read_source(checkpoint: Checkpoint) -> Source:
    """The checkpoint's tensors and header in GGUF's terms (without its vocabulary).

    Raises:
        UnsupportedError: an encoder-decoder, or something in a family that llama.cpp does not compute; the hint is the
            other route.
        BadInputError: no class that is known here: the message names the nearest, the table all; or the configuration
            and the tensors disagree.
    """
    classes = checkpoint.config.get("architectures")
    if not isinstance(classes, list) or not classes or not isinstance(classes[0], str):
        raise BadInputError(
            f"{checkpoint.path / 'config.json'}: `architectures` is {short(classes)}, expected a list of names"
        )
    name = classes[0][:100]
    for module in _MODULES:
        if name in module.FAMILY.refused:
            raise UnsupportedError(
                f"{checkpoint.path}: {name} cannot be converted to GGUF: {module.FAMILY.refused[name]}",
                hint=ONNX_HINT,
            )
    if name not in FAMILIES:
        raise _unknown(checkpoint, name)
    return FAMILIES[name].read(checkpoint)


def _unknown(checkpoint: Checkpoint, name: str) -> BadInputError | UnsupportedError:
    if checkpoint.config.get("is_encoder_decoder") is True or _ENCODER_DECODERS.fullmatch(name):
        return UnsupportedError(
            f"{checkpoint.path}: {name!r} is an encoder-decoder: no family of them is converted to GGUF here",
            hint=ONNX_HINT,
        )
    near = difflib.get_close_matches(name, list(FAMILIES), n=1, cutoff=0.0)[0]
    return BadInputError(
        f"{checkpoint.path}: `architectures` is {name!r}, which has no conversion to GGUF; the nearest that has one is {near!r}",
        hint=ONNX_HINT,
        table=table_lines(),
    )


def table_lines() -> list[str]:
    """The families and their model classes as text, a heading first."""
    rows = [("family", "model classes")]
    rows += [(module.__name__.rpartition(".")[2], ", ".join(module.FAMILY.classes)) for module in _MODULES]
    width = max(len(name) for name, _ in rows)
    return [f"{name:{width}}  {classes}" for name, classes in rows]

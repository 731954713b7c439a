"""Model families, one file each; adding a family is one file and one row here and in the tests."""

from __future__ import annotations

import difflib

from edgellm.checkpoint import Checkpoint
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
FAMILIES: dict[str, Family] = {name: module.FAMILY for module in _MODULES for name in module.FAMILY.classes}


def read_source(checkpoint: Checkpoint) -> Source:
    """The checkpoint's tensors and header in GGUF's terms (without its vocabulary).

    Raises:
        UnsupportedError: a family not known here, of which the message names the nearest, or something in one that
            llama.cpp does not compute; the hint is the other route.
        BadInputError: the configuration and the tensors disagree.
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
        near = difflib.get_close_matches(name, list(FAMILIES), n=1, cutoff=0.0)[0]
        raise UnsupportedError(
            f"{checkpoint.path}: no conversion to GGUF for {name!r}; the nearest that has one is {near!r}",
            hint=ONNX_HINT,
        )
    try:
        return FAMILIES[name].read(checkpoint)
    except UnsupportedError as err:
        err.hint = err.hint or ONNX_HINT
        raise

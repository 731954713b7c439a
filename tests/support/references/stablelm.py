"""StableLM with norms for each head: transformers fails to initialize them, as they have no bias."""

from __future__ import annotations

from typing import Any

from transformers import StableLmConfig, StableLmForCausalLM
from transformers.models.stablelm.modeling_stablelm import StableLmPreTrainedModel

_initialize = StableLmPreTrainedModel._init_weights


def _with_or_without_bias(self: Any, module: Any) -> None:
    if getattr(module, "bias", "none") is None and type(module).__name__ == "LayerNorm":
        module.weight.data.fill_(1.0)
    else:
        _initialize(self, module)


StableLmPreTrainedModel._init_weights = _with_or_without_bias
__all__ = ["StableLmConfig", "StableLmForCausalLM"]

"""Sampling parameters as a chain of llama.cpp's native samplers.

Order, as in llama.cpp: bias, penalties, top-k, top-p, min-p, temperature, draw. Temperature 0 takes the most likely
token; without bias and penalties that needs no native sampler at all.
"""

from __future__ import annotations

import secrets
import types
from collections.abc import Sequence
from typing import Any

from edgellm.protocols import FloatArray, SamplingParams


class Sampler:
    """One sequence's sampler; its random state advances with each draw."""

    def __init__(self, lib: types.ModuleType, params: SamplingParams, vocab_size: int) -> None:
        self.params = params
        self._lib = lib
        self._chain: Any = None
        self._drawn: int | None = None
        penalties = (params.repeat_penalty, params.frequency_penalty, params.presence_penalty)
        self._penalised = penalties != (1.0, 0.0, 0.0) and params.repeat_last_n > 0
        if params.temperature == 0 and not self._penalised and not params.logit_bias:
            return
        chain = self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        add = lib.llama_sampler_chain_add
        if params.logit_bias:
            biases = (lib.llama_logit_bias * len(params.logit_bias))(*params.logit_bias.items())
            add(chain, lib.llama_sampler_init_logit_bias(vocab_size, len(biases), biases))
        if self._penalised:
            add(chain, lib.llama_sampler_init_penalties(vocab_size, params.repeat_last_n, *penalties))
        if params.temperature == 0:
            add(chain, lib.llama_sampler_init_greedy())
            return
        if params.top_k:
            add(chain, lib.llama_sampler_init_top_k(min(params.top_k, vocab_size)))
        if params.top_p < 1:
            add(chain, lib.llama_sampler_init_top_p(params.top_p, 1))
        if params.min_p > 0:
            add(chain, lib.llama_sampler_init_min_p(params.min_p, 1))
        add(chain, lib.llama_sampler_init_temp(params.temperature))
        seed = params.seed if params.seed is not None else secrets.randbelow(2**32 - 1)
        add(chain, lib.llama_sampler_init_dist(seed))

    def accept(self, tokens: Sequence[int]) -> None:
        """Let penalties see tokens that were not drawn here, such as the prompt."""
        if self._penalised:
            for token in tokens[-self.params.repeat_last_n :]:
                self._lib.llama_sampler_accept(self._chain, token)

    def accept_fed(self, tokens: Sequence[int]) -> None:
        """The same for what was fed since the last draw; the token drawn then was seen already."""
        self.accept(tokens[1:] if tokens[0] == self._drawn else tokens)
        self._drawn = None

    def draw(self, context: Any, row: int, logits: FloatArray) -> int:
        """The next token after batch row `row`, whose logits (n_vocab,) these are."""
        if self._chain is None:
            return int(logits.argmax())
        self._drawn = int(self._lib.llama_sampler_sample(self._chain, context, row))
        return self._drawn

    def __del__(self) -> None:
        if getattr(self, "_chain", None):
            self._lib.llama_sampler_free(self._chain)
            self._chain = None

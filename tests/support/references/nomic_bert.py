# mypy: ignore-errors
"""Nomic BERT in torch, for the oracle child: transformers 4.57.6 has no such class, the hub has it as remote code.

Written from the published architecture (Nussbaum et al. 2024, arXiv:2402.01613, and the names and shapes of the tensors of
nomic-embed-text-v1.5), independent of the conversion: BERT with rotary positions in place of a table, one matrix for
query, key and value, a feed-forward layer gated by SiLU, no biases, and norms after each sum.
"""

import torch
from torch import nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class NomicBertConfig(PretrainedConfig):
    """The keys of nomic-embed-text-v1.5's config.json, with its values where a row of tests gives none."""

    model_type = "nomic_bert"

    def __init__(self, **keys):
        published = {
            "activation_function": "swiglu", "causal": False, "layer_norm_epsilon": 1e-12, "max_trained_positions": 2048,
            "mlp_fc1_bias": False, "mlp_fc2_bias": False, "n_positions": 8192, "pad_vocab_size_multiple": 64,
            "parallel_block": False, "prenorm": False, "qkv_proj_bias": False, "rotary_emb_base": 1000,
            "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False, "rotary_emb_scale_base": None,
            "rotary_scaling_factor": None, "type_vocab_size": 2, "use_rms_norm": False, "initializer_range": 0.02,
        }  # fmt: skip
        for key, value in published.items():
            setattr(self, key, keys.pop(key, value))
        for key in ("vocab_size", "n_embd", "n_head", "n_inner", "n_layer"):
            setattr(self, key, keys.pop(key, 1))
        super().__init__(**keys)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_heads, self.base = config.n_head, config.rotary_emb_base
        self.Wqkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.out_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def rotate(self, x):
        """Turn the pair (i, i + half) of each head by position / base**(2i / size)."""
        half = x.shape[-1] // 2
        wave = self.base ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.outer(torch.arange(x.shape[-2], dtype=torch.float64), wave)
        turned = torch.complex(x[..., :half].double(), x[..., half:].double()) * torch.polar(
            torch.ones_like(angle), angle
        )
        return torch.cat([turned.real, turned.imag], dim=-1).float()

    def forward(self, x):
        batch, n_tokens, width = x.shape
        parts = self.Wqkv(x).split(width, dim=-1)
        query, key, value = (
            p.view(batch, n_tokens, self.n_heads, width // self.n_heads).transpose(1, 2) for p in parts
        )
        query, key = self.rotate(query), self.rotate(key)
        weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(dim=-1)
        return self.out_proj((weights @ value).transpose(1, 2).reshape(batch, n_tokens, width))


class FeedForward(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc11 = nn.Linear(config.n_embd, config.n_inner, bias=False)
        self.fc12 = nn.Linear(config.n_embd, config.n_inner, bias=False)
        self.fc2 = nn.Linear(config.n_inner, config.n_embd, bias=False)

    def forward(self, x):
        return self.fc2(self.fc11(x) * functional.silu(self.fc12(x)))


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attn, self.mlp = Attention(config), FeedForward(config)
        self.norm1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.norm2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    def forward(self, x):
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))


class NomicBertModel(PreTrainedModel):
    config_class = NomicBertConfig

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = nn.ModuleDict({"word_embeddings": nn.Embedding(config.vocab_size, config.n_embd)})
        if config.type_vocab_size:
            self.embeddings["token_type_embeddings"] = nn.Embedding(config.type_vocab_size, config.n_embd)
        self.emb_ln = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(Layer(config) for _ in range(config.n_layer))})
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(0.0, self.config.initializer_range)

    def forward(self, input_ids, attention_mask=None):
        x = self.embeddings["word_embeddings"](input_ids)
        if "token_type_embeddings" in self.embeddings:
            x = x + self.embeddings["token_type_embeddings"].weight[0]
        x = self.emb_ln(x)
        for layer in self.encoder["layers"]:
            x = layer(x)
        return BaseModelOutput(last_hidden_state=x)

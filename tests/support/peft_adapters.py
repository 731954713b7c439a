"""Tiny models with random adapters, both made by transformers and PEFT in a child, and what the merged models answer.

llama.cpp's converter of adapters is a script, which the same child runs.
"""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgellm.native.llama import LlamaModel, LlamaOptions
from edgellm.protocols import Feed
from tests.support import oracle
from tests.support.tiny_llama import Array
from tests.support.tiny_models import IDS

SMALL = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.06, "tie_word_embeddings": False,
}  # fmt: skip
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


@dataclasses.dataclass(frozen=True)
class Case:
    """One base with one adapter.

    Attributes:
        family: name of transformers' classes, without Config and ForCausalLM.
        config: of the base.  adapter: arguments of LoraConfig.
        dtype: the adapter's tensors in its file.
    """

    name: str
    family: str
    config: Mapping[str, Any]
    adapter: Mapping[str, Any]
    dtype: str = "float32"
    head: str = "ForCausalLM"


LLAMA_MODULES = [*ATTENTION, "gate_proj", "up_proj", "down_proj", "lm_head"]
CASES = {
    case.name: case
    for case in (
        Case("llama", "Llama", SMALL, {"r": 4, "lora_alpha": 8, "target_modules": LLAMA_MODULES}),
        Case(
            "rslora",
            "Llama",
            {**SMALL, "tie_word_embeddings": True},
            {
                "r": 8, "lora_alpha": 6, "use_rslora": True, "target_modules": ATTENTION,
                "rank_pattern": {"k_proj": 6, r"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {r"^model.*.v_proj": 9},
                "layers_to_transform": [1],
            },
            dtype="bfloat16",
        ),
        Case("embedding", "Llama", SMALL, {"r": 3, "lora_alpha": 6, "target_modules": ["embed_tokens", "up_proj"]}),
        Case(
            "gpt2",
            "GPT2",
            {"vocab_size": 320, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.06},
            {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
            head="LMHeadModel",
        ),
        Case(
            "mixtral",
            "Mixtral",
            {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2},
            {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "w1", "w2", "w3"]},
        ),
        Case("qwen2", "Qwen2", SMALL, {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}, dtype="float16"),
        Case(
            "phi3",
            "Phi3",
            {**SMALL, "pad_token_id": 0},
            {"r": 4, "lora_alpha": 8, "target_modules": r".*(qkv|o|gate_up|down)_proj"},
        ),
        Case(
            "gpt_neox",
            "GPTNeoX",
            {key: value for key, value in SMALL.items() if key != "num_key_value_heads"},
            {"r": 4, "lora_alpha": 8, "target_modules": ["query_key_value", "dense", "dense_4h_to_h"]},
        ),
    )
}  # fmt: skip

# What PEFT's rules for module names are compared on.
MODULES = [
    f"{before}{layers}.{i}.{module}"
    for before in ("model.", "transformer.", "")
    for layers in ("layers", "h")
    for i in (0, 1, 11)
    for module in ("self_attn.q_proj", "mlp.experts.1.w1", "attn.c_attn")
] + ["lm_head", "q_proj", "model.xq_proj", "model.q_proj.inner"]
PATTERNS = [
    {"q_proj": 2}, {r"^model.layers.1.self_attn.q_proj": 4, "q_proj": 2}, {r"layers\.\d+\.self_attn\.q_proj": 3},
    {r"layers.[0-9]+.*w1": 5, "w1": 6}, {"1.w1": 7}, {"self_attn": 9}, {".*": 5}, {r"h.\d.attn.c_attn": 2},
]  # fmt: skip
TARGETS: list[dict[str, Any]] = [
    {"target_modules": ["q_proj"]}, {"target_modules": ["self_attn.q_proj", "w1"], "layers_to_transform": [1]},
    {"target_modules": ["w1", "c_attn"], "layers_to_transform": 1, "layers_pattern": "layers"},
    {"target_modules": ["model.layers.0.self_attn.q_proj", "q_proj"], "layers_to_transform": [11]},
    {"target_modules": ["w1"], "layers_to_transform": []},
    {"target_modules": ["w1", "c_attn"], "layers_to_transform": [0, 1], "layers_pattern": ["h", "experts"]},
]  # fmt: skip

_MAKE = """
import pathlib, runpy, warnings, zlib, numpy, torch, transformers
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
warnings.simplefilter("ignore")
torch.set_num_threads(1)
sys.path.insert(0, spec["llama_cpp"])
script = spec["llama_cpp"] + "/convert_lora_to_gguf.py"
ids = torch.tensor([spec["ids"]])
def answer(model, path):
    with torch.no_grad():
        numpy.save(path, model(ids, attention_mask=torch.ones_like(ids)).logits[0].numpy())
for case in spec["cases"]:
    torch.manual_seed(zlib.crc32(case["name"].encode()))
    place = pathlib.Path(spec["out"]) / case["name"]
    config = getattr(transformers, case["family"] + "Config")(**case["config"])
    config._attn_implementation = "eager"
    model = getattr(transformers, case["family"] + case["head"])(config).float().eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.add_(0.2 * torch.randn_like(value)) if value.ndim == 1 else value.mul_(2)
    model.save_pretrained(place / "base")
    answer(model, place / "base.npy")
    adapted = get_peft_model(model, LoraConfig(init_lora_weights=False, **case["adapter"])).eval()
    dtype = getattr(torch, case["dtype"])
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_" in name:
                value.copy_((0.15 * torch.randn_like(value)).to(dtype))
    adapted.save_pretrained(place / "adapter")
    weights = place / "adapter" / "adapter_model.safetensors"
    save_file({name: value.to(dtype) for name, value in load_file(weights).items()}, weights)
    answer(adapted.merge_and_unload(), place / "merged.npy")
    sys.argv = [script, "--base", str(place / "base"), "--outfile", str(place / "theirs.gguf"), str(place / "adapter")]
    runpy.run_path(script, run_name="__main__")
ranks = [[p.get(get_pattern_key(p, m), 8) for m in spec["modules"]] for p in spec["patterns"]]
kept = [[bool(check_target_module_exists(LoraConfig(**t), m)) for m in spec["modules"]] for t in spec["targets"]]
print(json.dumps({"ranks": ranks, "kept": kept}))
"""


class Made(NamedTuple):
    """Directories of base and adapter, llama.cpp's conversion, and PEFT's answers to IDS: (n_tokens, n_vocab) logits."""

    base: Path
    adapter: Path
    theirs: Path
    base_logits: Array
    merged_logits: Array


class Rules(NamedTuple):
    """PEFT's answers for MODULES: their ranks under each of PATTERNS (8 by default), and whether TARGETS hold them."""

    ranks: list[list[int]]
    kept: list[list[bool]]


def make(cases: Iterable[Case], root: Path) -> tuple[dict[str, Made], Rules]:
    """All cases; one child for all."""
    listed = list(cases)
    rules = oracle.transformers(
        _MAKE, modules=MODULES, patterns=PATTERNS, targets=TARGETS,
        cases=[dataclasses.asdict(case) for case in listed], ids=IDS, out=str(root),
        llama_cpp=str(oracle.native_build() / "llama.cpp"),
    )  # fmt: skip
    made = {
        case.name: Made(
            root / case.name / "base",
            root / case.name / "adapter",
            root / case.name / "theirs.gguf",
            np.load(root / case.name / "base.npy"),
            np.load(root / case.name / "merged.npy"),
        )
        for case in listed
    }
    return made, Rules(**rules)


def adapted_logits(model_path: Path, adapter_path: Path) -> Array | None:
    """(n_tokens, n_vocab) logits of a GGUF with an adapter added while it runs; None where llama.cpp refuses it."""
    model = LlamaModel(model_path, LlamaOptions(n_threads=1, kv_type="F32", flash_attention="off"))
    batcher = model.open(context=len(IDS))
    lib: Any = model._lib
    try:
        adapter = lib.llama_adapter_lora_init(model._model, str(adapter_path).encode())
        if not adapter:
            return None
        context: Any = batcher._ctx  # type: ignore[attr-defined]
        one = (lib.llama_adapter_lora_p_ctypes * 1)(adapter)
        assert lib.llama_set_adapters_lora(context, one, 1, (ctypes.c_float * 1)(1.0)) == 0
        return batcher.step([Feed(sequence=0, tokens=IDS, want="all")])[0].logits
    finally:
        batcher.close()
        model.close()

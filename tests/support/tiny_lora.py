"""A tiny random model as GGUF, and two random LoRA adapters of it: native code in a hundredth of a second."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from edgellm.convert import lora
from tests.support import tiny_llama


def write(folder: Path) -> tuple[Path, dict[str, Path]]:
    """The base, and the adapters `red` and `blue`, in F32."""
    source = tiny_llama.read_source(tiny_llama.write_tiny_llama(folder / "base"))
    base = tiny_llama.write_f32(source, folder / "base.gguf")
    adapters = {}
    for seed, name in enumerate(("red", "blue")):
        rng = np.random.default_rng(seed)
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
        directory = folder / name
        directory.mkdir()
        (directory / "adapter_config.json").write_text(json.dumps(config))
        tensors = {}
        for layer in range(2):
            for module, n_out in (("q_proj", 64), ("v_proj", 32)):
                place = f"base_model.model.model.layers.{layer}.self_attn.{module}"
                tensors[f"{place}.lora_A.weight"] = rng.standard_normal((4, 64), dtype=np.float32)
                tensors[f"{place}.lora_B.weight"] = rng.standard_normal((n_out, 4), dtype=np.float32)
        save_file(tensors, directory / "adapter_model.safetensors")
        adapters[name] = folder / f"{name}.gguf"
        lora.write_adapter(adapters[name], source, lora.read_adapter(directory), type_name="F32")
    return base, adapters

"""Named mixes give every tensor the type that llama-quantize would give it.

The shapes are those of real models up to 70B and some that no one has trained; their files are headers with a hole
behind, so nothing large is read or written.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.checkpoint import open_checkpoint
from edgellm.convert import mixture, pipeline
from edgellm.convert.source import Source
from edgellm.errors import SpecError
from edgellm.formats import ggml_types
from edgellm.shape import ModelShape, tensor_bytes
from tests.support import oracle
from tests.support.sparse_gguf import write_imatrix, write_sparse

Shapes = dict[str, tuple[int, ...]]
MIXES = [name for name, quant in mixture.QUANTS.items() if ggml_types.BY_NAME[quant.base].quantized]
_LINE = re.compile(r"\[ *\d+/ *\d+\] (\S+) +- \[.*?\], type = +(\w+), size = .*?(?:\((\w+)\))?$")


@dataclasses.dataclass(frozen=True)
class Model:
    """A shape: `architecture` is llama.cpp's name, `style` which tensors its layers have."""

    architecture: str = "llama"
    n_layers: int = 32
    width: int = 4096
    hidden: int = 11008
    n_heads: int = 32
    n_kv_heads: int = 32
    vocab: int = 32000
    n_experts: int = 0
    tied: bool = False
    style: str = "llama"
    key_size: int = 0
    extra: tuple[tuple[str, Any], ...] = ()

    def metadata(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "block_count": self.n_layers, "context_length": 4096, "embedding_length": self.width,
            "feed_forward_length": self.hidden, "attention.head_count": self.n_heads,
            "attention.head_count_kv": self.n_kv_heads, "attention.layer_norm_rms_epsilon": 1e-5,
            "attention.layer_norm_epsilon": 1e-5, "rope.freq_base": 10000.0, "vocab_size": self.vocab,
        }  # fmt: skip
        if self.n_experts:
            found |= {"expert_count": self.n_experts, "expert_used_count": 2}
        if self.key_size:
            found |= {"attention.key_length": self.key_size, "attention.value_length": self.key_size}
        return found | dict(self.extra)

    def shapes(self) -> Shapes:
        size = self.width
        found: Shapes = {"token_embd.weight": (self.vocab, size), "output_norm.weight": (size,)}
        if not self.tied:
            found["output.weight"] = (self.vocab, size)
        for i in range(self.n_layers):
            found |= {f"blk.{i}.{name}": shape for name, shape in STYLES[self.style](self).items()}
        return found


def llama_layer(model: Model) -> Shapes:
    size, hidden, experts = model.width, model.hidden, model.n_experts
    head = model.key_size or size // model.n_heads
    layer: Shapes = {
        "attn_norm.weight": (size,), "ffn_norm.weight": (size,), "attn_q.weight": (model.n_heads * head, size),
        "attn_k.weight": (model.n_kv_heads * head, size), "attn_v.weight": (model.n_kv_heads * head, size),
        "attn_output.weight": (size, model.n_heads * head),
    }  # fmt: skip
    if not experts:
        return layer | {
            "ffn_gate.weight": (hidden, size),
            "ffn_up.weight": (hidden, size),
            "ffn_down.weight": (size, hidden),
        }
    return layer | {
        "ffn_gate_inp.weight": (experts, size), "ffn_gate_exps.weight": (experts, hidden, size),
        "ffn_up_exps.weight": (experts, hidden, size), "ffn_down_exps.weight": (experts, size, hidden),
    }  # fmt: skip


def shared_experts_layer(model: Model) -> Shapes:
    """Experts of which one sees every token; its tensors count as further ffn_down, ffn_gate and ffn_up of the layer."""
    size, hidden = model.width, model.hidden // 2
    return qwen2_layer(model) | {
        "ffn_gate_inp_shexp.weight": (size,), "ffn_gate_shexp.weight": (hidden, size),
        "ffn_up_shexp.weight": (hidden, size), "ffn_down_shexp.weight": (size, hidden),
    }  # fmt: skip


def qwen2_layer(model: Model) -> Shapes:
    layer = llama_layer(model)
    return layer | {f"{name}.bias": layer[f"{name}.weight"][:1] for name in ("attn_q", "attn_k", "attn_v")}


def fused_layer(model: Model) -> Shapes:
    size, head = model.width, model.width // model.n_heads
    return {
        "attn_norm.weight": (size,), "attn_norm.bias": (size,),
        "attn_qkv.weight": (size + 2 * model.n_kv_heads * head, size), "attn_output.weight": (size, size),
        "ffn_up.weight": (model.hidden, size), "ffn_down.weight": (size, model.hidden),
    }  # fmt: skip


def mamba_layer(model: Model) -> Shapes:
    size, inner = model.width, 2 * model.width
    return {
        "attn_norm.weight": (size,), "ssm_in.weight": (2 * inner, size), "ssm_conv1d.weight": (inner, 4),
        "ssm_conv1d.bias": (inner,), "ssm_x.weight": (128, inner), "ssm_dt.weight": (inner, 96),
        "ssm_a": (inner, 16), "ssm_d": (inner,), "ssm_out.weight": (size, inner),
    }  # fmt: skip


def rwkv_layer(model: Model) -> Shapes:
    size = model.width
    mixes = {
        f"time_mix_{part}.weight": (size, size) for part in ("key", "value", "receptance", "gate", "output")
    }
    small: Shapes = {
        "time_mix_w1.weight": (160, size),
        "time_mix_w2.weight": (5, size, 32),
        "time_mix_first.weight": (64, 64),
    }
    small |= {"time_mix_decay_w1.weight": (64, size), "time_mix_lerp_fused.weight": (5, 1, 1, size)}
    small |= {"attn_norm.weight": (size,), "time_mix_ln.weight": (size,)}
    return (
        mixes
        | small
        | {"channel_mix_key.weight": (model.hidden, size), "channel_mix_value.weight": (size, model.hidden)}
    )


STYLES: dict[str, Callable[[Model], Shapes]] = {
    "llama": llama_layer, "qwen2": qwen2_layer, "fused": fused_layer, "mamba": mamba_layer, "rwkv": rwkv_layer,
    "shared": shared_experts_layer,
}  # fmt: skip
SSM = (("ssm.conv_kernel", 4), ("ssm.inner_size", 4096), ("ssm.state_size", 16), ("ssm.time_step_rank", 96))
RWKV = (
    ("wkv.head_size", 64), ("rescale_every_n_layers", 6), ("time_mix_extra_dim", 32), ("time_decay_extra_dim", 64),
    ("token_shift_count", 2),
)  # fmt: skip
MODELS = {
    "llama_7b": Model(),
    "llama_65b": Model(n_layers=80, width=8192, hidden=22016, n_heads=64, n_kv_heads=64),
    "llama_70b": Model(n_layers=80, width=8192, hidden=28672, n_heads=64, n_kv_heads=8),
    "llama3_8b": Model(hidden=14336, n_kv_heads=8, vocab=128256),
    "llama_tied": Model(n_layers=16, width=2048, hidden=8192, n_kv_heads=8, vocab=128256, tied=True),
    "two_queries_per_head": Model(n_layers=22, width=2048, hidden=5632, n_kv_heads=16),
    "mixtral": Model(hidden=14336, n_kv_heads=8, n_experts=8),
    "mixtral_80_layers": Model(n_layers=80, hidden=14336, n_kv_heads=8, n_experts=8),
    "four_experts": Model(n_layers=24, hidden=4096, n_kv_heads=8, n_experts=4),
    "sixteen_experts_tied": Model(n_layers=7, hidden=4096, n_kv_heads=8, n_experts=16, tied=True),
    "shared_experts": Model(
        architecture="qwen2moe", n_layers=24, width=2048, hidden=1536, n_heads=16, n_kv_heads=16, n_experts=60,
        style="shared",
        extra=(("expert_feed_forward_length", 1536), ("expert_shared_feed_forward_length", 768)),
    ),
    "falcon_7b": Model(
        architecture="falcon", width=4544, hidden=18176, n_heads=71, n_kv_heads=1, vocab=65024, style="fused"
    ),
    "falcon_40b": Model(
        architecture="falcon", n_layers=60, width=8192, hidden=32768, n_heads=128, n_kv_heads=8, vocab=65024, style="fused"
    ),
    "qwen2_80": Model(
        architecture="qwen2", n_layers=80, width=8192, hidden=29568, n_heads=64, n_kv_heads=8, vocab=152064, style="qwen2"
    ),
    "qwen2_tied": Model(
        architecture="qwen2", n_layers=24, width=896, hidden=4864, n_heads=14, n_kv_heads=2, vocab=151936, tied=True,
        style="qwen2",
    ),
    "olmo_80": Model(architecture="olmo", n_layers=80, width=2048, hidden=8192, n_kv_heads=8),
    "jais2_68": Model(architecture="jais2", n_layers=68, width=2048, hidden=8192, n_kv_heads=8),
    "deci_80": Model(architecture="deci", n_layers=80, width=2048, hidden=8192, n_kv_heads=8),
    "rows_of_32": Model(n_layers=12, width=1056, hidden=2208, n_heads=11, n_kv_heads=11),
    "rows_of_4": Model(n_layers=9, width=1004, hidden=2012, n_heads=4, n_kv_heads=2, tied=True),
    "one_layer": Model(n_layers=1, width=512, hidden=1024, n_heads=8, n_kv_heads=1),
    "mamba": Model(architecture="mamba", n_layers=6, width=2048, hidden=0, n_heads=0, n_kv_heads=0, style="mamba", extra=SSM),
    "rwkv6": Model(
        architecture="rwkv6", n_layers=6, width=2048, hidden=7168, n_heads=0, n_kv_heads=0, vocab=65536, style="rwkv",
        extra=RWKV,
    ),
}  # fmt: skip


ONLY_70B = (
    "olmo_80",
    "deci_80",
    "jais2_68",
    "qwen2_80",
    "llama_65b",
    "mixtral_80_layers",
)  # differ from others by one rule of some names
FEW_NAMES = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_M", "IQ3_M", "IQ4_XS")
WITH_IMATRIX = (
    "llama_7b", "llama_70b", "llama3_8b", "mixtral", "four_experts", "falcon_40b", "qwen2_tied", "rows_of_32", "rows_of_4",
)  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def model_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = MODELS[request.param]
    path = tmp_path_factory.mktemp("sparse") / f"{request.param}.gguf"
    return write_sparse(path, model.architecture, model.metadata(), model.shapes())


def dry_run(path: Path, name: str, *options: str | Path) -> tuple[dict[str, str], bool]:
    """Tensor -> type, from the lines of a dry run (one without a new type means that the type stays); needs a matrix?"""
    lines = oracle.tool("llama-quantize", "--dry-run", *options, path, name).stderr.splitlines()
    found = {
        match[1]: (match[3] or match[2]).upper() for line in lines if (match := _LINE.match(line.strip()))
    }
    assert found, lines[-5:]
    return found, any("will require an imatrix" in line for line in lines)


def types_by_llama_quantize(path: Path, name: str, *options: str | Path) -> dict[str, str]:
    return dry_run(path, name, *options)[0]


def types_by_edgellm(source: Source, name: str, **options: Any) -> dict[str, str]:
    return mixture.named_mix(mixture.find(name), source.shape, source.base_types(), **options)[0]


def differences(ours: dict[str, str], theirs: dict[str, str]) -> list[str]:
    """The first few tensors with another type."""
    assert list(ours) == list(theirs), "tensors in another order"
    found = [f"{t}: {ours[t]}, llama.cpp's is {theirs[t]}" for t in ours if ours[t] != theirs[t]]
    return found[:5]


def test_every_tensor_gets_the_type_of_llama_quantize(model_path: Path) -> None:
    source = pipeline.read_source(open_checkpoint(model_path))
    for name in FEW_NAMES if model_path.stem in ONLY_70B else mixture.QUANTS:
        ours = types_by_edgellm(source, name)
        theirs, needs_imatrix = dry_run(model_path, name)
        assert differences(ours, theirs) == [], name
        needing = mixture.need_importance(mixture.find(name), source.shape, ours)
        assert bool(needing) == needs_imatrix, (name, needing[:3])


@pytest.fixture(scope="module")
def imatrix_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An importance matrix of one entry: a dry run asks only whether there is one."""
    rows = {"blk.0.attn_q.weight": (np.ones((1, 32), np.float32), np.ones((1, 1), np.float32))}
    return write_imatrix(tmp_path_factory.mktemp("imatrix") / "one.gguf", rows)


@pytest.mark.parametrize("model_name", WITH_IMATRIX)
def test_an_importance_matrix_changes_types_as_in_llama_quantize(
    model_name: str, imatrix_path: Path, tmp_path: Path
) -> None:
    model = MODELS[model_name]
    path = write_sparse(tmp_path / "m.gguf", model.architecture, model.metadata(), model.shapes())
    source = pipeline.read_source(open_checkpoint(path))
    changed = set()
    for name in mixture.QUANTS:
        ours = types_by_edgellm(source, name, has_imatrix=True)
        theirs = types_by_llama_quantize(path, name, "--imatrix", imatrix_path)
        assert differences(ours, theirs) == [], name
        changed |= {name} if ours != types_by_edgellm(source, name) else set()
    if model_name == "llama_7b":
        assert changed == {"Q4_0", "Q5_0", "IQ4_NL", "IQ4_XS", "IQ3_XXS"}


OVERRIDES: list[tuple[str, list[str], mixture.Overrides]] = [
    ("Q4_K_M", ["--tensor-type", "attn_v=q8_0"], mixture.Overrides(patterns=(("attn_v", "Q8_0"),))),
    (
        "Q4_K_M",
        ["--tensor-type", r"blk\.(0|1)\.ffn_(up|down)=Q6_K", "--tensor-type", "ffn_down=iq4_xs"],
        mixture.Overrides(patterns=((r"blk\.(0|1)\.ffn_(up|down)", "Q6_K"), ("ffn_down", "IQ4_XS"))),
    ),
    (
        "Q3_K_M",
        ["--tensor-type", "ffn_down=F16", "--tensor-type", "ATTN_Q=q4_0"],
        mixture.Overrides(patterns=(("ffn_down", "F16"), ("ATTN_Q", "Q4_0"))),
    ),
    ("IQ2_M", ["--tensor-type", "[kq].weight$=mxfp4"], mixture.Overrides(patterns=(("[kq].weight$", "MXFP4"),))),
    ("Q4_0", ["--output-tensor-type", "Q5_0"], mixture.Overrides(output="Q5_0")),
    ("Q4_0", ["--token-embedding-type", "Q5_1"], mixture.Overrides(token_embedding="Q5_1")),
    (
        "Q5_K_S",
        ["--token-embedding-type", "bf16", "--output-tensor-type", "f16", "--tensor-type", "output|token_embd=q4_1"],
        mixture.Overrides(patterns=(("output|token_embd", "Q4_1"),), output="F16", token_embedding="BF16"),
    ),
    ("BF16", ["--token-embedding-type", "Q8_0"], mixture.Overrides(token_embedding="Q8_0")),
]  # fmt: skip


@pytest.mark.parametrize("model_name", ["llama3_8b", "llama_tied", "qwen2_tied"])
def test_overrides_act_as_in_llama_quantize(model_name: str, tmp_path: Path) -> None:
    model = MODELS[model_name]
    path = write_sparse(tmp_path / "m.gguf", model.architecture, model.metadata(), model.shapes())
    source = pipeline.read_source(open_checkpoint(path))
    for name, options, overrides in OVERRIDES:
        ours = types_by_edgellm(source, name, overrides=overrides)
        assert differences(ours, types_by_llama_quantize(path, name, *options)) == [], options
        assert ours != types_by_edgellm(source, name), options


def shape_of(tensors: Shapes, **other: Any) -> ModelShape:
    fields: dict[str, Any] = {
        "architecture": "llama", "n_layers": 3, "n_heads": 8, "n_kv_heads": 8, "head_size": 8, "vocab_size": 8,
        "context_train": 8, "embedding_size": 8,
    }  # fmt: skip
    return ModelShape(tensors=tensors, **{**fields, **other})


SMALL: Shapes = {
    "token_embd.weight": (8, 256),
    "blk.0.attn_q.weight": (256, 256),
    "blk.0.ffn_down.weight": (256, 96),
}


@pytest.mark.parametrize(
    ("quant", "overrides", "match"),
    [
        ("Q8_0", {"patterns": (("ffn_up", "Q6_K"),)}, "matches no tensor"),
        ("Q8_0", {"patterns": (("attn_norm", "Q6_K"),)}, "matches no tensor"),
        ("Q8_0", {"patterns": (("(", "Q6_K"),)}, "unclosed group"),
        ("Q8_0", {"patterns": (("", "Q6_K"),)}, "0 characters"),
        ("Q8_0", {"patterns": (("a" * 300, "Q6_K"),)}, "300 characters"),
        ("F16", {"patterns": (("attn_q", "Q6_K"),)}, "F16 is none"),
        ("F16", {"output": "Q8_0"}, "its token embedding"),
    ],
)
def test_an_override_that_cannot_be_is_refused(quant: str, overrides: dict[str, Any], match: str) -> None:
    shape = shape_of(SMALL)
    with pytest.raises(SpecError, match=match):
        mixture.named_mix(
            mixture.find(quant), shape, dict.fromkeys(SMALL, "F32"), overrides=mixture.Overrides(**overrides)
        )


def test_a_type_asked_for_a_head_it_does_not_fit_is_refused() -> None:
    tensors: Shapes = {"token_embd.weight": (8, 96), "output.weight": (8, 96)}
    with pytest.raises(SpecError, match=r"rows of 96 .* Q6_K"):
        mixture.named_mix(
            mixture.find("Q8_0"), shape_of(tensors), dict.fromkeys(tensors, "F32"),
            overrides=mixture.Overrides(output="Q6_K"),
        )  # fmt: skip


@pytest.mark.parametrize(
    "text", ["ffn_down", "=Q6_K", "ffn_down=", "ffn_down=Q6_X", "ffn_down=Q8_K", "ffn_down=I8"]
)
def test_what_is_no_override_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        mixture.parse_override(text)


def test_overrides_are_parsed() -> None:
    assert mixture.parse_override(r"blk\.\d+\.ffn_down=q6_k") == (r"blk\.\d+\.ffn_down", "Q6_K")
    assert mixture.parse_override("a=b=IQ4_XS") == ("a=b", "IQ4_XS")


def test_low_types_need_importance_by_the_rule_of_llama_quantize() -> None:
    """Named per tensor: embedding and head do without, where ggml's code can."""
    tensors: Shapes = {
        "token_embd.weight": (64, 256), "output.weight": (64, 256), "blk.0.attn_v.weight": (256, 256),
        "blk.0.ffn_up.weight": (256, 256), "blk.0.attn_norm.weight": (256,),
    }  # fmt: skip
    shape = shape_of(tensors)
    base = dict.fromkeys(tensors, "F32")
    needing = {}
    for name, quant in mixture.QUANTS.items():
        types, _ = mixture.named_mix(quant, shape, base)
        needing[name] = mixture.need_importance(quant, shape, types)
    assert {name for name, found in needing.items() if found} == {
        "IQ3_XS", "IQ3_XXS", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "Q2_K_S",
    }  # fmt: skip
    assert needing["Q2_K_S"] == ["blk.0.attn_v.weight", "blk.0.ffn_up.weight"]
    assert needing["IQ2_XXS"] == ["blk.0.ffn_up.weight"]
    head = mixture.Overrides(output="IQ2_XXS", token_embedding="IQ3_XXS")
    types, _ = mixture.named_mix(mixture.find("Q8_0"), shape, base, overrides=head)
    assert mixture.need_importance(mixture.find("Q8_0"), shape, types) == ["output.weight"]


def test_a_mix_without_the_importance_it_needs_is_refused_in_words() -> None:
    tensors: Shapes = {"blk.0.ffn_up.weight": (256, 256), "blk.0.ffn_down.weight": (256, 256)}
    quant, shape = mixture.find("IQ2_XXS"), shape_of(tensors)
    types, _ = mixture.named_mix(quant, shape, dict.fromkeys(tensors, "F32"))
    with pytest.raises(
        SpecError, match=r"IQ2_XXS needs .*blk\.0\.ffn_up\.weight in IQ2_XXS \(and 1 more"
    ) as caught:
        mixture.check_importance(quant, shape, types, ())
    assert "--imatrix auto" in (caught.value.hint or "")
    with pytest.raises(SpecError, match=r"nothing on blk\.0\.ffn_down\.weight"):
        mixture.check_importance(quant, shape, types, {"blk.0.ffn_up.weight"})
    mixture.check_importance(quant, shape, types, set(tensors))
    mixture.check_importance(mixture.find("Q4_0"), shape, dict.fromkeys(tensors, "Q4_0"), ())


def test_a_sparse_model_takes_no_disk(tmp_path: Path) -> None:
    model = MODELS["llama_70b"]
    path = write_sparse(tmp_path / "m.gguf", "llama", model.metadata(), model.shapes())
    assert path.stat().st_size > 100 * 1024**3
    assert path.stat().st_blocks * 512 < 1024**2


def oracle_names() -> list[str]:
    """The lines of llama-quantize's list of types."""
    done = subprocess.run(
        [oracle.native_build() / "bin" / "llama-quantize", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.splitlines()


def test_all_mixes_are_compared() -> None:
    assert len(MIXES) == 30
    assert len(mixture.QUANTS) == 33
    names = {match[1] for line in oracle_names() if (match := re.match(r" +\d+ +or +(\w+) *:", line))}
    assert names - set(mixture.QUANTS) == {"Q1_0", "Q2_0", "Q3_K", "Q4_K", "Q5_K"}


@pytest.mark.parametrize("name", ["q4_k_m", "Q4_K_M", "Q4_k_M"])
def test_names_are_found_in_any_case(name: str) -> None:
    assert mixture.find(name).name == "Q4_K_M"


def test_an_unknown_name_hints_at_the_nearest() -> None:
    with pytest.raises(SpecError, match="Q4_K_X") as caught:
        mixture.find("Q4_K_X")
    assert "did you mean 'Q4_K_" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("blk.0.attn_q.weight", (64, 64), True),
        ("blk.0.ffn_up_exps.weight", (8, 64, 64), True),
        ("blk.0.attn_norm.weight", (64,), False),
        ("blk.0.attn_norm.weight", (4, 64), False),
        ("blk.0.attn_q.bias", (64, 64), False),
        ("blk.0.ffn_gate_inp.weight", (8, 64), False),
        ("blk.0.attn_q.weight", (1, 64), False),
        ("blk.0.attn_q.weight", (64, 1), True),
        ("position_embd.weight", (1024, 64), False),
        ("token_types.weight", (2, 64), False),
        ("blk.0.time_mix_w1.weight", (64, 64), False),
        ("blk.0.time_mix_key.weight", (64, 64), True),
        ("rope_freqs.weight", (64,), False),
        ("blk.0.ssm_a", (64, 16), False),
    ],
)
def test_what_may_be_quantized(name: str, shape: tuple[int, ...], expected: bool) -> None:
    assert mixture.quantizable(name, shape) is expected


DIMENSIONS = st.integers(1, 40).flatmap(lambda n: st.sampled_from([n, 32 * n, 64 * n, 256 * n]))
NAMES = st.sampled_from([
    "token_embd.weight", "output.weight", "output_norm.weight", *(
        f"blk.{i}.{part}" for i in range(3) for part in (
            "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight", "attn_qkv.weight", "attn_norm.weight",
            "ffn_up.weight", "ffn_down.weight", "ffn_gate.weight", "ffn_down_exps.weight", "ffn_gate_inp.weight",
            "attn_q.bias", "something.weight",
        )
    ),
])  # fmt: skip


@given(
    tensors=st.dictionaries(
        NAMES, st.lists(DIMENSIONS, min_size=1, max_size=3).map(tuple), min_size=1, max_size=12
    ),
    name=st.sampled_from(list(mixture.QUANTS)),
    architecture=st.sampled_from(["llama", "falcon", "qwen2"]),
    n_experts=st.sampled_from([0, 4, 8]),
    n_kv_heads=st.sampled_from([1, 8]),
)
def test_every_type_fits_its_rows(
    tensors: dict[str, tuple[int, ...]], name: str, architecture: str, n_experts: int, n_kv_heads: int
) -> None:
    shape = ModelShape(
        architecture=architecture, tensors=tensors, n_layers=3, n_heads=8, n_kv_heads=n_kv_heads, head_size=8,
        vocab_size=8, context_train=8, embedding_size=8, n_experts=n_experts, n_experts_used=n_experts,
    )  # fmt: skip
    base = dict.fromkeys(tensors, "F32")
    types, fallbacks = mixture.named_mix(mixture.find(name), shape, base)
    assert list(types) == list(tensors)
    for tensor, kind in types.items():
        assert tensor_bytes(tensors[tensor], kind) > 0  # raises where the row is not a multiple of the block
        if not mixture.quantizable(tensor, tensors[tensor]):
            assert kind == base[tensor]
    assert set(fallbacks) <= {t for t in tensors if mixture.quantizable(t, tensors[t])}

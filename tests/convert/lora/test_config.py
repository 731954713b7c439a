"""adapter_config.json: what it means for every module, and one line for all that cannot be honoured."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.convert.lora.config import AdapterConfig, read_config
from edgellm.convert.lora.patterns import NamePattern
from edgellm.errors import BadInputError, MissingInputError, UnsupportedError
from tests.support.peft_adapters import MODULES, PATTERNS, TARGETS, Rules

GOOD: dict[str, Any] = {
    "alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None, "auto_mapping": {"parent_library": "x"},
    "base_model_name_or_path": "meta-llama/Llama-3.2-1B", "bias": "none", "corda_config": None,
    "ensure_weight_tying": False, "eva_config": None, "exclude_modules": None, "fan_in_fan_out": False,
    "inference_mode": True, "init_lora_weights": True, "layer_replication": None, "layers_pattern": None,
    "layers_to_transform": None, "loftq_config": {}, "lora_alpha": 16, "lora_bias": False, "lora_dropout": 0.05,
    "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None, "peft_type": "LORA",
    "peft_version": "0.18.1", "qalora_group_size": 16, "r": 8, "rank_pattern": {}, "revision": None,
    "target_modules": ["q_proj", "v_proj"], "target_parameters": None, "task_type": "CAUSAL_LM",
    "trainable_token_indices": None, "use_dora": False, "use_qalora": False, "use_rslora": False,
}  # fmt: skip


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**GOOD, **changes}))
    return path


def read(folder: Path, **changes: Any) -> AdapterConfig:
    return read_config(write(folder, **changes))


def test_the_plain_case(tmp_path: Path) -> None:
    config = read(tmp_path)
    assert (config.rank, config.alpha, config.base_name) == (8, 16.0, "meta-llama/Llama-3.2-1B")
    assert config.scale_of("model.layers.0.self_attn.q_proj") == 2.0
    assert config.why_not("model.layers.0.self_attn.q_proj") is None


def test_absent_keys_mean_what_they_mean_in_peft(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    config = read_config(tmp_path / "adapter_config.json")
    assert (config.rank, config.alpha, config.rank_stabilized, config.target_modules) == (8, 8.0, False, None)


def test_ranks_scales_and_targets_are_pefts(peft_rules: Rules, tmp_path: Path) -> None:
    for pattern, ranks in zip(PATTERNS, peft_rules.ranks, strict=True):
        config = read(tmp_path, rank_pattern=pattern, alpha_pattern=pattern)
        assert [config.rank_of(module) for module in MODULES] == ranks, pattern
        assert [config.scale_of(m) for m in MODULES] == [1.0 if r != 8 else 2.0 for r in ranks], pattern
    for target, kept in zip(TARGETS, peft_rules.kept, strict=True):
        config = read(tmp_path, **target)
        assert [config.why_not(module) is None for module in MODULES] == kept, target


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"), ({"peft_type": "PREFIX_TUNING"}, "only LORA"),
        ({"use_dora": True}, "use_dora is True"), ({"modules_to_save": ["lm_head"]}, "modules_to_save is an array of 1"),
        ({"bias": "all"}, "bias is 'all': trained biases"), ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"lora_bias": True}, "lora_bias is True"), ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"target_parameters": ["experts.w"]}, "target_parameters"), ({"trainable_token_indices": [1]}, "trainable_token_ind"),
        ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens"), ({"use_qalora": True}, "use_qalora"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4': an adapter of changed base weights"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"), ({"init_lora_weights": "loftq"}, "init_lora_weights"),
        ({"loftq_config": {"loftq_bits": 4}}, "loftq_config"), ({"megatron_config": {"a": 1}}, "megatron_config"),
        ({"a_key_of_tomorrow": 3}, "a_key_of_tomorrow is 3"), ({"x" * 5000: 3}, "x{100} is 3"),
        ({"rank_pattern": {"(a+)+b": 4}}, r"rank_pattern has the key '\(a\+\)\+b'"),
        ({"rank_pattern": {"a" * 501: 4}}, "rank_pattern has the key 'aaa"), ({"rank_pattern": {"": 4}}, "has the key ''"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message) as caught:
        read(tmp_path, **changes)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(tmp_path))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 0}, "r is 0, expected an integer from 1"), ({"r": -8}, "r is -8"), ({"r": 10**9}, "r is 1000000000"),
        ({"r": 8.0}, "r is 8.0"), ({"r": "8"}, "r is '8'"), ({"r": True}, "r is True"), ({"r": 10**4000}, "r is an integer"),
        ({"lora_alpha": 0}, "lora_alpha is 0"), ({"lora_alpha": -1}, "lora_alpha is -1"),
        ({"lora_alpha": 1e300}, "lora_alpha is 1e"), ({"lora_alpha": "16"}, "lora_alpha is '16'"),
        ({"use_rslora": 1}, "use_rslora is 1"), ({"fan_in_fan_out": "no"}, "fan_in_fan_out is 'no'"),
        ({"bias": 0}, "bias is 0, expected a string"), ({"peft_type": None}, "peft_type is null"),
        ({"peft_type": ["LORA"]}, "peft_type is an array"), ({"rank_pattern": [1]}, "rank_pattern is an array"),
        ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern\.q_proj is 0"),
        ({"rank_pattern": {"q_proj": None}}, r"rank_pattern\.q_proj is null"),
        ({"alpha_pattern": {"q_proj": "x"}}, r"alpha_pattern\.q_proj is 'x'"),
        ({"rank_pattern": {f"q{i}": 4 for i in range(20000)}}, "20000 keys, more than"),
        ({"target_modules": [3]}, "target_modules is 3"), ({"target_modules": ["a b"]}, "target_modules is 'a b'"),
        ({"target_modules": {"q": 1}}, "target_modules is an object"), ({"target_modules": ["x" * 600]}, "600 characters"),
        ({"target_modules": ["q_proj"] * 20000}, "an array of 20000"), ({"target_modules": ["../q"]}, "target_modules"),
        ({"layers_to_transform": [-1]}, "layers_to_transform is -1"), ({"layers_to_transform": "0"}, "layers_to_transform"),
        ({"layers_to_transform": [0] * 5000}, "an array of 5000"), ({"layers_pattern": ["(a+)+"]}, "layers_pattern"),
        ({"init_lora_weights": [1]}, "init_lora_weights is an array"), ({"base_model_name_or_path": 5}, "base_model_name"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message) as caught:
        read(tmp_path, **changes)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b'{"r": NaN}',
        b'{"r": 1, "r": 2}',
        b"\xff\xfe{\0}\0",
        b"{" * 2000,
        b'{"a": 1e999}',
    ],
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "adapter_config.json").write_bytes(content)
    with pytest.raises(BadInputError):
        read_config(tmp_path / "adapter_config.json")


def test_none_there(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError):
        read_config(tmp_path / "adapter_config.json")


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@given(key=st.sampled_from(sorted(GOOD)), value=ANY)
def test_any_value_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, key: str, value: Any) -> None:
    path = write(tmp_path_factory.mktemp("c"), **{key: value})
    with contextlib.suppress(BadInputError, UnsupportedError):
        assert 1e-8 < read_config(path).scale_of("model.layers.0.q_proj") < 1e8


NAME = st.text("ab1.", min_size=1, max_size=12)
TOKENS = ["a", "b", "1", ".", r"\.", ".*", r"\d", r"\d+", "[0-9]", "[0-9]+"]


@given(
    name=NAME,
    tokens=st.lists(st.sampled_from(TOKENS), min_size=1, max_size=6),
    start=st.sampled_from(["", "^"]),
)
def test_patterns_match_as_pythons_do(name: str, tokens: list[str], start: str) -> None:
    key = start + "".join(tokens)
    assert NamePattern(key).matches(name) == bool(re.match(rf"(.*\.)?({key})$", name)), key


@pytest.mark.parametrize(
    "text", ["", "^", "a|b", "(a)", "a+", "a?", "[a-z]", r"\w", "\\", "a$", "a\n", "\u00e9", "a^", "a" * 501]
)
def test_other_patterns_are_refused(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        NamePattern(text)
    assert str(caught.value) == text


def test_repeats_do_not_multiply() -> None:
    """A backtracking matcher would need longer than the universe has."""
    assert not NamePattern(".*a" * 160 + "b").matches("a" * 400)

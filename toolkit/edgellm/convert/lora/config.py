"""adapter_config.json, as PEFT writes it: what is read, what is refused, and the scale of every module.

A key that PEFT knows and that changes what the adapter computes is either honoured or refused. A key that is not known
here may stay only while it is off (null, false, empty), so that nothing is dropped unseen.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path

from edgellm.convert.lora.patterns import NamePattern
from edgellm.errors import BadInputError, UnsupportedError
from edgellm.formats.plain_json import Fields, read_json

MAX_RANK = 1 << 16
MAX_ALPHA = 1e6
MAX_PATTERNS = 1 << 12
MAX_NAME_CHARS = 500
MAX_LAYER = 1 << 16
MAX_LAYERS_LISTED = 1 << 12
MERGE_WITH_PEFT = "merge it with PEFT (merge_and_unload), save the model, and convert that"

# Plain texts and switches that say how the adapter was trained or where it came from, not what it computes.
_NO_EFFECT = frozenset([
    "auto_mapping", "base_model_name_or_path", "eva_config", "exclude_modules", "inference_mode", "lora_dropout",
    "megatron_core", "peft_version", "qalora_group_size", "revision", "task_type",
])  # fmt: skip
_READ = frozenset([
    "alpha_pattern", "bias", "fan_in_fan_out", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha",
    "peft_type", "r", "rank_pattern", "target_modules", "use_rslora",
])  # fmt: skip
_NAME = re.compile(rf"[A-Za-z0-9_.-]{{1,{MAX_NAME_CHARS}}}")
# These start from the base's own weights changed, so the adapter does not fit the base as it is published.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """What an adapter computes, as far as its configuration says.

    Attributes:
        where: the file, for errors.
        rank, alpha: of every module without a pattern of its own.
        rank_patterns, alpha_patterns: (pattern, value) in the file's order; the first that matches counts.
        rank_stabilized: the scale is alpha / sqrt(rank), not alpha / rank.
        target_modules: endings of module names; None where the file has a rule instead of a list.
        layers: the only layers that are changed; None for all.
        layer_lists: names of the lists of layers, for `layers`; empty for any.
        base_name: the base as the adapter calls it.
    """

    where: str
    rank: int
    alpha: float
    rank_patterns: tuple[tuple[NamePattern, int], ...] = ()
    alpha_patterns: tuple[tuple[NamePattern, float], ...] = ()
    rank_stabilized: bool = False
    target_modules: tuple[str, ...] | None = None
    layers: frozenset[int] | None = None
    layer_lists: tuple[str, ...] = ()
    base_name: str | None = None

    def rank_of(self, module: str) -> int:
        """Rank of a module."""
        return next((value for pattern, value in self.rank_patterns if pattern.matches(module)), self.rank)

    def scale_of(self, module: str) -> float:
        """What B @ A is multiplied by."""
        alpha = next((value for pattern, value in self.alpha_patterns if pattern.matches(module)), self.alpha)
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.rank_stabilized else alpha / rank

    def why_not(self, module: str) -> str | None:
        """The key because of which PEFT would not adapt this module; None where it would."""
        if self.target_modules is None or module in self.target_modules:
            return None
        if not any(module.endswith("." + target) for target in self.target_modules):
            return "target_modules"
        if self.layers is not None and self._layer(module) not in self.layers:
            return "layers_to_transform"
        return None

    def _layer(self, module: str) -> int | None:
        """The layer as PEFT finds it: the last number in the name, or the last after the first of `layer_lists`."""
        parts = module.split(".")
        numbers = [i for i in range(2, len(parts) - 1) if parts[i].isdecimal()]
        for name in self.layer_lists or ("",):
            after = [i for i in numbers if not name or ".".join(parts[:i]).endswith("." + name)]
            if after:
                return int(parts[after[-1]][:9])
        return None


def read_config(path: Path) -> AdapterConfig:
    """Read adapter_config.json.

    Raises:
        MissingInputError: there is none.
        BadInputError: a value is of the wrong type or out of bounds.
        UnsupportedError: not LoRA, or a kind of LoRA that cannot be merged; the message names the key.
    """
    values = read_json(path)
    fields = Fields(values, str(path))
    _refuse_unsupported(fields, values)
    fields.flag("fan_in_fan_out", default=False)  # the base's layout decides, as it does in PEFT
    layers = fields.integers("layers_to_transform", 0, MAX_LAYER, MAX_LAYERS_LISTED, default=None)
    return AdapterConfig(
        where=str(path),
        rank=fields.integer("r", 1, MAX_RANK, default=8),
        alpha=fields.number("lora_alpha", 1e-6, MAX_ALPHA, default=8.0),
        rank_patterns=tuple(
            (pattern, section.integer(key, 1, MAX_RANK))
            for pattern, section, key in _patterns(fields, "rank_pattern")
        ),
        alpha_patterns=tuple(
            (pattern, section.number(key, 1e-6, MAX_ALPHA))
            for pattern, section, key in _patterns(fields, "alpha_pattern")
        ),
        rank_stabilized=fields.flag("use_rslora", default=False),
        target_modules=_names(fields, "target_modules", or_rule=True),
        layers=frozenset(layers) if layers else None,
        layer_lists=_names(fields, "layers_pattern") or (),
        base_name=fields.text("base_model_name_or_path", default=None, max_chars=MAX_NAME_CHARS),
    )


def _refuse_unsupported(fields: Fields, values: Mapping[str, object]) -> None:
    peft_type = fields.text("peft_type")
    if peft_type != "LORA":
        raise UnsupportedError(
            f"{fields.where}: peft_type is {peft_type!r:.60}; only LORA adapters can be converted",
            hint=MERGE_WITH_PEFT,
        )
    if (bias := fields.text("bias", default="none")) != "none":
        raise _unsupported(fields, "bias", bias, "trained biases")
    start = values.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise _unsupported(fields, "init_lora_weights", start, "an adapter of changed base weights")
    if start is not None and not isinstance(start, str | bool):
        raise fields.wrong("init_lora_weights", start, "true, false or a name")
    for key, value in values.items():
        if key not in _READ and key not in _NO_EFFECT and value not in (None, False, [], {}, ""):
            raise _unsupported(fields, key[:100], value, "this kind of LoRA")


def _unsupported(fields: Fields, key: str, value: object, what: str) -> UnsupportedError:
    shown = str(fields.wrong(key, value, "")).removeprefix(f"{fields.where}: ").removesuffix(", expected ")
    return UnsupportedError(
        f"{fields.where}: {shown}: {what} cannot be converted",
        hint=MERGE_WITH_PEFT,
    )


def _patterns(fields: Fields, name: str) -> list[tuple[NamePattern, Fields, str]]:
    section = fields.section(name)
    if len(section.values) > MAX_PATTERNS:
        raise BadInputError(
            f"{fields.where}: {name} has {len(section.values)} keys, more than {MAX_PATTERNS}"
        )
    found = []
    for key in section.values:
        try:
            found.append((NamePattern(key), section, key))
        except ValueError:
            raise UnsupportedError(
                f"{fields.where}: {name} has the key {key!r:.80}; names with . .* \\d+ [0-9]+ are understood",
                hint="write the full names of the modules in its place",
            ) from None
    return found


def _names(fields: Fields, key: str, *, or_rule: bool = False) -> tuple[str, ...] | None:
    """A list of names; with `or_rule` a text stands for a rule, which is not run: the tensors' names say the same."""
    given = fields.values.get(key)
    if given in (None, [], "") or (or_rule and isinstance(given, str)):
        return None
    names = [given] if isinstance(given, str) else given
    expected = f"a list of at most {MAX_PATTERNS} names"
    if not isinstance(names, list) or len(names) > MAX_PATTERNS:
        raise fields.wrong(key, given, expected)
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(_NAME, name):
            raise fields.wrong(key, name, expected)
    return tuple(names)

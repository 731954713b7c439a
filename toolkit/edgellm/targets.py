"""Target: a device that people own, as a TOML file under targets/, with a source for every number.

A target says what a device has and which defaults suit it, and why. It does not say how fast it is: that is
measured (profiles/) or expected by the planner. The machine in use is the target `host`, which is not a file:
`edgellm.machine` detects it.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Literal

from edgellm import resources
from edgellm.errors import SpecError
from edgellm.formats.records import Record, from_toml, read_bounded

HOST = "host"
MAX_TARGET_BYTES = 64 * 1024

Kind = Literal["laptop", "phone", "sbc", "desktop", "browser"]
Quant = Literal["F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"]
KVType = Literal["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL"]
Offload = Literal["none", "auto"]

X86_ISA = (
    "SSE4_2", "AVX", "F16C", "FMA", "AVX2", "BMI2", "AVX_VNNI", "AVX512F", "AVX512BW", "AVX512_VNNI",
    "AVX512_VBMI", "AVX512_BF16", "AMX_TILE", "AMX_INT8", "AMX_BF16", "AES",
)  # fmt: skip
ARM_ISA = ("NEON", "DOTPROD", "FP16", "BF16", "I8MM", "SVE", "SVE2", "SME", "AES")
_NUMBERS = ("cores", "ram_bytes", "bandwidth_bytes_per_s")
_DEFAULTS = ("quant", "kv_type", "context", "threads", "offload")
# What is left beside the operating system and other programs. A rule of thumb, not a measurement: a board runs little
# else, a phone ends an app that takes more than about half.
USABLE_SHARE: dict[str, float] = {"sbc": 0.85, "desktop": 0.8, "laptop": 0.75, "phone": 0.5, "browser": 0.5}
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}\Z")


class TargetDefaults(Record):
    """How a model is made for and run on the target if the user does not say; `Target.why` has the reasons.

    Attributes:
        quant: name of a mix of tensor types;  kv_type: ggml type of the KV cache.
        context: tokens.  threads: for decode and prefill.
        offload: `none`, or `auto`: to the GPU where the library has it.
    """

    quant: Quant
    kv_type: KVType
    context: int
    threads: int
    offload: Offload

    def __post_init__(self) -> None:
        for name, low, high in (("context", 128, 1 << 20), ("threads", 1, 1024)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"defaults.{name} is {value}, outside {low} to {high}")


class TargetQuality(Record):
    """How far a converted model may be from its source on this target; `why` has the reason.

    Attributes:
        max_kl: mean KL divergence in nats per token.
        min_top1_agreement: share of positions where both find the same token most likely.
    """

    max_kl: float
    min_top1_agreement: float

    def __post_init__(self) -> None:
        if not 0 < self.max_kl <= 100 or not 0 <= self.min_top1_agreement <= 1:
            raise ValueError(f"quality: {self.max_kl} nats, {self.min_top1_agreement:g} agreement")


class Target(Record):
    """A device.

    Attributes:
        isa: instruction sets that ggml's kernels ask for, of `X86_ISA` or `ARM_ISA`; empty where unknown.
        cores: physical cores, efficiency cores included.
        ram_bytes: memory fitted; the operating system takes its share of it.
        bandwidth_bytes_per_s: rate at which decoding can stream weights: from published decode rows where
            there are any, else the highest rate of a memory benchmark. None is unknown.
        formats: best first.
        energy_sources: what can be read there, best first; empty where nothing can.
        sources: field -> where its value comes from: an address, or a method in words. Every number has one.
        why: default (and any number left unknown) -> the reason.
        quality: bounds of the gate; None holds a model only to its type's.
        source_id: row of the table the file was made from, or `detected`.
    """

    id: str
    name: str
    kind: Kind
    soc: str
    arch: str
    isa: list[str]
    cores: int
    ram_bytes: int
    formats: list[Literal["gguf", "onnx"]]
    defaults: TargetDefaults
    energy_sources: list[str]
    sources: dict[str, str]
    why: dict[str, str]
    source_id: str
    bandwidth_bytes_per_s: float | None = None
    quality: TargetQuality | None = None

    def __post_init__(self) -> None:
        if not _ID.match(self.id):
            raise ValueError(f"id {self.id!r} is not lower-case letters, digits and dashes")
        for name, low, high in (
            ("cores", 1, 1024),
            ("ram_bytes", 1 << 24, 1 << 44),
            ("bandwidth_bytes_per_s", 1e8, 1e13),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name} is {value}, outside {low:g} to {high:g}")
        if not self.formats:
            raise ValueError("formats is empty")
        if unknown := set(self.isa) - {*X86_ISA, *ARM_ISA}:
            raise ValueError(f"isa has unknown names: {', '.join(sorted(unknown))}")
        self._check_provenance()

    @property
    def usable_ram_bytes(self) -> int:
        """Memory that a model may take there: a share of what is fitted, by the kind of device."""
        return int(self.ram_bytes * USABLE_SHARE[self.kind])

    def _check_provenance(self) -> None:
        for name in _NUMBERS:
            book, title = (self.why, "why") if getattr(self, name) is None else (self.sources, "sources")
            if not book.get(name):
                raise ValueError(f"{name} has no entry in {title}")
        for name in _DEFAULTS:
            if not self.why.get(name):
                raise ValueError(f"defaults.{name} has no entry in why")
        if self.quality and not self.why.get("quality"):
            raise ValueError("quality has no entry in why")
        if stray := set(self.sources) - set(self.__struct_fields__) - {"nearest"}:
            raise ValueError(f"sources names no field: {', '.join(sorted(stray))}")
        if stray := set(self.why) - {*_DEFAULTS, *_NUMBERS, "quality"}:
            raise ValueError(f"why names no default or number: {', '.join(sorted(stray))}")


def available() -> list[str]:
    """Ids of all target files, sorted; `host` is not among them."""
    return sorted(path.stem for path in resources.data_directory("targets").glob("*.toml"))


def load(name: str) -> Target:
    """The target of that id, or of that `.toml` path.

    Raises:
        SpecError: no such target, or its file bears another id.  BadInputError: the file is malformed.
    """
    if name == HOST:
        raise SpecError("target 'host' is not a file", hint="it is detected: edgellm targets detect")
    if not name.endswith(".toml") and name not in (known := available()):
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise SpecError(f"unknown target {name!r}", hint=f"{guess}known: {', '.join([*known, HOST])}")
    shipped = resources.data_directory("targets") / f"{name}.toml"
    path = Path(name) if name.endswith(".toml") else shipped
    target = from_toml(Target, read_bounded(path, MAX_TARGET_BYTES), str(path))
    if path == shipped and target.id != name:
        raise SpecError(f"{path.name} bears the id {target.id!r}")
    return target

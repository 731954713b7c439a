"""Workload: what is measured, as a TOML file under profiles/workloads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from edgellm import resources
from edgellm.errors import SpecError
from edgellm.formats.records import Record, from_toml, read_bounded

Regime = Literal["engine", "text", "load", "memory"]
MAX_WORKLOAD_BYTES = 64 * 1024


class Workload(Record):
    """One row of a report; regimes are never mixed in a row.

    Attributes:
        id: the file's name, for example `pp512`.
        regime: `engine` (llama-bench's method: random tokens, no tokenizing or sampling), `text` (real prompts
            through the public runtime), `load` (from file to ready), `memory` (a pass of its own, never timed).
        n_prompt, n_gen, n_depth: tokens processed, tokens generated, tokens already in the KV cache.
        reps: repetitions in one process;  invocations: fresh processes.
        warmup_reps: repetitions run and not counted.
        cool_down_s: pause before each invocation.
        stop_rule: `fixed` (run all repetitions).
        prompts: user messages of the `text` regime.
    """

    id: str
    about: str
    regime: Regime
    n_prompt: int = 0
    n_gen: int = 0
    n_depth: int = 0
    reps: int = 5
    invocations: int = 1
    warmup_reps: int = 1
    cool_down_s: float = 0.0
    stop_rule: Literal["fixed"] = "fixed"
    prompts: list[str] = []

    def __post_init__(self) -> None:
        for name, low, high in (
            ("n_prompt", 0, 1 << 20), ("n_gen", 0, 1 << 20), ("n_depth", 0, 1 << 20), ("reps", 1, 1000),
            ("invocations", 1, 100), ("warmup_reps", 0, 100), ("cool_down_s", 0, 3600),
        ):  # fmt: skip
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}, outside {low} to {high}")
        if self.regime in ("engine", "memory") and not (self.n_prompt or self.n_gen):
            raise ValueError(f"a workload of regime {self.regime} needs n_prompt or n_gen")
        if self.regime == "text" and not (self.prompts and self.n_gen):
            raise ValueError("a text workload needs prompts and n_gen")


def directory() -> Path:
    """Where the workload files are."""
    return resources.data_directory("profiles") / "workloads"


def available() -> list[str]:
    """Names of all workloads, sorted."""
    return sorted(path.stem for path in directory().glob("*.toml"))


def load(name: str) -> Workload:
    """The workload of that name, or of that `.toml` path.

    Raises:
        SpecError: no such workload.  BadInputError: the file is malformed.
    """
    path = Path(name) if name.endswith(".toml") else directory() / f"{name}.toml"
    if not name.endswith(".toml") and name not in available():
        raise SpecError(f"unknown workload {name!r}", hint=f"one of: {', '.join(available())}")
    return from_toml(Workload, read_bounded(path, MAX_WORKLOAD_BYTES), str(path))

"""Profiling: the profiler's rooms, given a model and children to run it in."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from edgellm import artifact, machine, staging, workload
from edgellm import report as reporting
from edgellm.api import launch, models, quarantine
from edgellm.errors import ArtifactError, NativeCrash, OutputError
from edgellm.formats.records import MAX_RECORD_BYTES, read_bounded, replace
from edgellm.profiler import measure as measuring
from edgellm.profiler import run as running
from edgellm.protocols import Backend
from edgellm.report import Report
from edgellm.runtime.model import Model

DEFAULT_WORKLOADS = ("pp512", "tg128", "chat", "load", "memory")


def profile(
    model: str | Path,
    *,
    workloads: Sequence[str] = DEFAULT_WORKLOADS,
    threads: int | None = None,
    gpu_layers: int | Literal["auto"] = "auto",
    reps: int | None = None,
    strict: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Measure an artifact on this machine, each workload in a fresh child process.

    Args:
        workloads: names under profiles/workloads, or paths of .toml files.
        gpu_layers: layers for a GPU; `auto` uses one where the library has it.
        reps: repetitions instead of each workload's own number.
        strict: refuse to measure on a busy machine instead of warning.
        progress: called with what is being measured.

    Raises:
        SpecError: an unknown workload.  UnsupportedError: it gives embeddings.  ResourceError: a busy machine, with `strict`.
        NativeCrash: a child died, which counts for the quarantine.  BackendError: the file is quarantined.
    """
    opened = models.open_artifact(model)
    models.check_generates(opened)
    options = models.options_for(opened, threads=threads, gpu_layers=gpu_layers)
    chosen = [workload.load(name) for name in workloads]
    if reps is not None:
        chosen = [replace(w, reps=reps) for w in chosen]

    def spec_for(w: workload.Workload) -> measuring.Spec:
        return measuring.Spec(
            model=str(model), workload=w, n_threads=options.n_threads, kv_type=options.kv_type,
            flash_attention=options.flash_attention, gpu_layers=str(options.gpu_layers), context=models.context_for(opened, None),
        )  # fmt: skip

    file = Path(opened.model_path)
    quarantine.check(file)
    try:
        return running.profile(
            launch.launch_measure,
            spec_for,
            opened.manifest,
            machine.describe(),
            chosen,
            strict=strict,
            progress=progress,
        )
    except NativeCrash as err:
        quarantine.note(file, err)
        raise


def measure(spec: measuring.Spec) -> measuring.Outcome:
    """In the child: load the model and run one workload on it."""
    opened = models.open_artifact(spec.model)
    started = time.perf_counter()
    options = models.options_for(
        opened,
        threads=spec.n_threads,
        kv_type=spec.kv_type,
        flash_attention=spec.flash_attention,
        gpu_layers="auto" if spec.gpu_layers == "auto" else int(spec.gpu_layers),
    )
    backend = models.open_backend(Path(opened.model_path), options)
    subject = _Subject(backend, opened, spec.context)
    if spec.workload.regime in ("text", "load"):
        subject.open()
    subject.load_s = time.perf_counter() - started
    return measuring.run(spec, subject)


class _Subject:
    """The loaded model as the profiler sees it."""

    def __init__(self, backend: Backend, opened: artifact.Artifact, context: int) -> None:
        self.backend = backend
        self.load_s = 0.0
        self._opened, self._context = opened, context
        self._model: Model | None = None

    def open(self) -> Model:
        if self._model is None:
            engine = models.make_engine(self.backend, self._opened, context=self._context)
            self._model = Model(engine, self._opened.manifest)
        return self._model

    def generate(self, prompt: str, n_gen: int) -> measuring.Timeline:
        model = self.open()
        started = time.perf_counter()
        moments, n_prompt = [], 0
        message = [{"role": "user", "content": prompt}] if model.has_chat_template else prompt
        for piece in model.stream(message, max_tokens=n_gen, temperature=0, cache_prompt=False):
            moments.append(time.perf_counter())
            if piece.usage:
                n_prompt = piece.usage.prompt_tokens
        if not moments:
            raise ArtifactError(f"{self._opened.path}: generated nothing")
        return measuring.Timeline(start_s=started, token_s=moments, n_prompt=n_prompt)


def check_report_place(path: Path) -> None:
    """Refuse early, before minutes of measuring, what `write_report` would refuse at the end.

    Raises:
        OutputError: the directory is not there or may not be written, or the name is a directory.
    """
    if path.is_dir():
        raise OutputError(f"{path}: is a directory", hint="give the name of a file with -o")
    if not path.parent.is_dir():
        raise OutputError(
            f"{path}: there is no directory {path.parent}", hint="make it first, or choose another -o"
        )
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path}: {path.parent} may not be written", hint="choose another -o")


def write_report(report: Report, path: Path) -> None:
    """Write a report; an older file of that name is replaced only when the new one is complete.

    Raises:
        OutputError: the place cannot be written.
    """
    with staging.staged_file(path) as temporary:
        artifact.write_record(temporary, report)


def read_report(path: Path) -> Report:
    """Read a report.

    Raises:
        MissingInputError: no such file.  BadInputError: not a report.
    """
    return reporting.read(read_bounded(path, MAX_RECORD_BYTES), str(path))

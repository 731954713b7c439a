"""Adapters as files of their own, for engines that add them while they run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from edgellm import machine, staging
from edgellm.api import models
from edgellm.convert import lora, pipeline
from edgellm.errors import EdgeLLMError, OutputExistsError, SpecError
from edgellm.formats.gguf import read_gguf


def convert_adapter(
    base: str | Path,
    adapter: str | Path,
    *,
    output: str | Path | None = None,
    type_name: str = "auto",
    jobs: int | None = None,
    force: bool = False,
) -> Path:
    """Write a PEFT adapter as a GGUF adapter for llama.cpp's --lora and Ollama's ADAPTER.

    Args:
        base: the Hugging Face directory or hub id it was trained on; of its weights only shapes are read.
        output: the file to make; by default ./<adapter>-lora.gguf.
        type_name: F32, F16 or BF16; auto is F32.
        jobs: threads that write; by default all usable cores.

    Raises:
        TypeError, ValueError: an argument that cannot be.
        SpecError: another type.  OutputExistsError: the file is there and `force` is false.
        MissingInputError, BadInputError, UnsupportedError: no adapter, malformed, for another base, or of a kind that
            llama.cpp cannot add.
    """
    if not isinstance(type_name, str):
        raise TypeError(f"type_name must be the name of a type, got {type_name!r}")
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    if output == "":
        raise ValueError("output must name a file, got ''")
    kind = "F32" if type_name == "auto" else type_name.upper()
    if kind not in ("F32", "F16", "BF16"):
        raise SpecError(f"an adapter in {type_name}", hint="F32, F16 and BF16 can be written")
    found = lora.read_adapter(Path(adapter))
    final = Path(f"{found.name}-lora.gguf") if output is None else Path(output)
    source = pipeline.read_source(models.resolve(base, weights=bool(found.copies)))
    _check_output(final, (*found.files, *source.checkpoint.files), force=force)
    with staging.staged_file(final) as temporary:
        n_workers = jobs or machine.usable_cores()
        lora.write_adapter(temporary, source, found, type_name=kind, n_workers=n_workers)
    return final


def _check_output(final: Path, read: Sequence[Path], *, force: bool) -> None:
    """Refuse to replace anything but an adapter in GGUF that is not itself being read."""
    if not os.path.lexists(final):
        return
    if not force:
        raise OutputExistsError(f"{final}: exists already", hint="use --force, or another -o")
    is_read = any(path.exists() and path.samefile(final) for path in read if final.exists())
    try:
        kind = None if is_read else read_gguf(final).get("general.type", str, None)
    except EdgeLLMError:
        kind = None
    if kind != "adapter":
        raise OutputExistsError(
            f"{final}: is not an adapter in GGUF, so it is not replaced", hint="use another -o"
        )

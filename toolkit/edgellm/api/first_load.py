"""The first load of a model file happens in a child: a file that kills or hangs native code kills or hangs only that.

What loaded well there, and gave a token, is remembered by the identity of library and file, so that the check costs a
few system calls from then on. A file that is changed in place and given its old size and time back is not noticed.
Where the cache cannot be written, each process checks once.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgellm import artifact, resources, staging
from edgellm.api import models, quarantine
from edgellm.errors import BadInputError, DeadlineError, MissingInputError, NativeCrash, OutputError
from edgellm.formats.gguf_model import ENCODERS
from edgellm.formats.records import Record, from_builtins, from_json, read_bounded, replace, to_builtins
from edgellm.native import library
from edgellm.native.llama import LlamaModel, LlamaOptions
from edgellm.protocols import Adapters, Feed, SamplingParams
from edgellm.units import GIB

MAX_REMEMBERED = 512
MAX_CACHE_BYTES = 64 * 1024
LEAST_TIMEOUT_S = 60.0
# A card in a small board reads no slower.
LEAST_BYTES_PER_S = 10e6
# Beside the weights, which may be there mapped and rearranged: interpreter, libraries, stacks, a small cache.
BESIDE_WEIGHTS_BYTES = 4 * GIB
CONTEXT = 256
# A large model on a small board computes a few tokens in a second.
STEP_TOKENS = 16

_of_this_process: set[str] = set()


class Sound(Record):
    """Identities of library and files that loaded well, the latest last."""

    identities: list[str]


def place() -> Path:
    """Where they are kept; it need not exist."""
    return resources.cache_directory() / "first-loads.json"


def check(model: Path, options: LlamaOptions, adapters: Sequence[Path] = ()) -> None:
    """Load a model that was never loaded here by this library in a child, tokenize with it and draw a token.

    Then each adapter with it in a child of its own, so that it is clear which file a crash counts for. What came with an
    installed package is trusted as that is.

    Args:
        model: a GGUF file that was validated.  adapters: LoRA adapters that will be loaded with it.

    Raises:
        NativeCrash: the child died or hung; it counts for the quarantine.  ResourceError: its memory ran out.
        BadInputError: the file changed meanwhile.  BackendError: the library refuses it.
    """
    for files in ([model], *([model, adapter] for adapter in sorted(set(adapters)))):
        if is_sound(*files):
            continue
        identity = _identity(files)
        _load_in_a_child(options, *files)
        if _identity(files) != identity:
            raise BadInputError(
                f"{files[-1]}: was changed while it was checked", hint="try again when it is complete"
            )
        _remember(identity)


def is_sound(model: Path, *adapters: Path) -> bool:
    """Whether these files loaded well together, or came with an installed package.

    Raises:
        MissingInputError: a file is not there.
    """
    identity = _identity([model, *adapters])
    if identity in _of_this_process:
        return True
    if identity in _remembered() or (not adapters and models.is_builtin(model)):
        _of_this_process.add(identity)
        return True
    return False


def note_sound(model: Path) -> None:
    """This file was made here and has just been run in this process."""
    with contextlib.suppress(MissingInputError):
        _remember(_identity([model]))


def child_first_load(spec: dict[str, Any]) -> dict[str, Any]:
    """In the child: what native code does with a model, once each.

    Returns:
        How many tokens the text has.
    """
    from edgellm.convert import hard_text

    path = Path(spec["model"])
    is_encoder = models.read_model(path).get("general.architecture", str, "") in ENCODERS
    backend = LlamaModel(path, from_builtins(LlamaOptions, spec["options"], "options"))
    for place in spec["adapters"]:
        backend.load_adapter(place, Path(place))
    ids = backend.tokenize("\n".join(hard_text.TEXTS), add_special=True, parse_special=True)
    for token in range(backend.vocab_size):
        backend.token_bytes(token)
    context = min(CONTEXT, backend.context_train)
    few = ids[: min(STEP_TOKENS, context // 2)] or [0]
    if is_encoder:
        embedder = backend.open_embedder(context=context)
        embedder.embed(few)
        embedder.close()
    else:
        _generate(backend, few, context, spec["adapters"])
    backend.close()
    return {"n_tokens": len(ids)}


def _generate(backend: LlamaModel, ids: Sequence[int], context: int, adapters: Sequence[str]) -> None:
    """A token of the model alone, and one with each adapter."""
    batcher = backend.open(n_sequences=1, context=context)
    in_use: list[Adapters] = [(), *(((name, 1.0),) for name in adapters)]
    for chosen in in_use:
        batcher.free(0)
        batcher.step([Feed(sequence=0, tokens=ids, sampling=SamplingParams(), adapters=chosen)])
    batcher.close()


def _load_in_a_child(options: LlamaOptions, model: Path, *adapters: Path) -> None:
    """A crash counts for the last file: those before it were tried without it."""
    from edgellm.api import launch

    tried = (model, *adapters)[-1]
    what = "tried in a child first" + (f", with {model.name}" if adapters else "")
    n_bytes = sum(path.stat().st_size for path in (model, *adapters))
    spec = {
        "model": str(model), "adapters": [str(path) for path in adapters],
        "options": to_builtins(replace(options, n_threads=min(options.n_threads, 2))),
    }  # fmt: skip
    try:
        launch.launch(
            "_first_load", spec, timeout_s=round(LEAST_TIMEOUT_S + n_bytes / LEAST_BYTES_PER_S, 1),
            memory_limit_bytes=_limit_bytes(n_bytes), env=_environment(),
        )  # fmt: skip
    except NativeCrash as err:
        quarantine.note(tried, err)
        hint = (
            "the file is damaged or hostile, or this llama.cpp cannot run it: edgellm verify, edgellm doctor"
        )
        if err.signal_name == "SIGILL":
            hint = "the library was built for another CPU: edgellm doctor"
        raise NativeCrash(
            f"{tried}: {what}, which did not survive it: {err.message}",
            hint=err.hint or hint, signal_name=err.signal_name,
        ) from err  # fmt: skip
    except DeadlineError as err:
        hang = NativeCrash(
            f"{tried}: {what}, which hung: {err.message}",
            hint="the file is damaged or hostile, or the machine much too busy", signal_name="hang",
        )  # fmt: skip
        quarantine.note(tried, hang)
        raise hang from err


def _limit_bytes(n_bytes: int) -> int | None:
    """Address space for the child; none where a GPU's driver would map more than there is memory."""
    if sys.platform != "linux" or library.has_gpu_library():
        return None
    return 3 * n_bytes + BESIDE_WEIGHTS_BYTES


def _environment() -> Mapping[str, str]:
    return {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # it maps tens of MiB for each core


def _identity(files: Sequence[Path]) -> str:
    """The native library and these files, by device, inode, size and time of change.

    Raises:
        MissingInputError: a file is not there.
    """
    digest = hashlib.sha256(_library_identity().encode())
    for path in files:
        try:
            status = path.stat()
        except OSError as err:
            raise MissingInputError(f"no such file: {path}") from err
        digest.update(_identity_of(status).encode())
    return digest.hexdigest()


@functools.cache
def _library_identity() -> str:
    directory = library.library_directory()
    entries = sorted((entry.name, entry.stat()) for entry in os.scandir(directory) if entry.is_file())
    return f"{directory} " + " ".join(f"{name} {_identity_of(status)}" for name, status in entries)


def _identity_of(status: os.stat_result) -> str:
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns};"


def _remembered() -> list[str]:
    try:
        return from_json(Sound, read_bounded(place(), MAX_CACHE_BYTES), str(place())).identities
    except (MissingInputError, BadInputError):  # absent or damaged: nothing is known
        return []


def _remember(identity: str) -> None:
    _of_this_process.add(identity)
    kept = [known for known in _remembered() if known != identity][-(MAX_REMEMBERED - 1) :]
    with contextlib.suppress(OSError, OutputError):
        place().parent.mkdir(parents=True, exist_ok=True)
        with staging.staged_file(place()) as staged:
            artifact.write_record(staged, Sound(identities=[*kept, identity]))

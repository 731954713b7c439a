"""Loading a model for generation: in this process, or with its native code in a child."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal, TypedDict, Unpack

import msgspec

from edgellm.api import adapter_files, first_load, models, quarantine, room
from edgellm.artifact import Artifact
from edgellm.errors import ArtifactError, SpecError
from edgellm.formats.records import Record, from_json, to_json
from edgellm.native.llama import LlamaModel
from edgellm.runtime.engine import HANG_S, LocalEngine
from edgellm.runtime.model import Model
from edgellm.runtime.scheduler import MAX_QUEUE

CACHE_BYTES = 256 * 1024**2
ENGINE_VERB = "_engine"


class LoadSpec(Record):
    """What `load` is asked for, as it travels to a child."""

    path: str
    context: int | None = None
    threads: int | None = None
    kv_type: str | None = None
    flash_attention: models.FlashAttention = "auto"
    gpu_layers: int | Literal["auto"] = "auto"
    adapters: dict[str, str] = {}
    parallel: int = 1
    max_queue: int = MAX_QUEUE
    cache_bytes: int = CACHE_BYTES


class Settings(TypedDict, total=False):
    """How a model is loaded.

    Attributes:
        context: tokens of prompt and answer together; by default the recipe's, else 4096 or what the model can.
        threads: by default the physical cores this process may use.
        kv_type: ggml type of the KV cache; by default the recipe's, else F16.
        flash_attention: auto, on or off; a quantized V cache needs it on.
        gpu_layers: `auto` uses a GPU where the library has one.
        adapters: LoRA adapters by a name of your own: GGUF files, or directories that `convert` made of them.
        parallel: generations at once; each has `context` tokens of its own.
        max_queue: requests that may wait for a place.
        cache_bytes: memory for earlier prompts, beyond those that are still in place; 0 keeps none.
    """

    context: int | None
    threads: int | None
    kv_type: str | None
    flash_attention: models.FlashAttention
    gpu_layers: int | Literal["auto"]
    adapters: dict[str, str]
    parallel: int
    max_queue: int
    cache_bytes: int


def load(
    path: str | Path,
    *,
    isolate: bool = False,
    offline_proof: bool = False,
    hang_s: float = HANG_S,
    memory_limit_bytes: int | None = None,
    check: bool = True,
    **settings: Unpack[Settings],
) -> Model:
    """Load an artifact (or a .gguf, or builtin:smollm2) for generation.

    Args:
        isolate: run the native code in a supervised child: a crash there is an exception here, and the next request
            starts the child anew. A file that crashes three times is not loaded again, see `quarantine`.
        offline_proof: watch the child, which this implies, for attempts to leave the machine: the first one is refused,
            and ends it. `Model.offline_proof` says what was seen, and by which methods.
        hang_s: isolated: the child is killed when it gives no sign of life for so long while it has work.
        memory_limit_bytes: isolated: limit of the child's address space.
        check: not isolated: load a file that was never loaded here in a child first, see `first_load`. False trusts it.
        settings: see `Settings`.

    Raises:
        MissingInputError, BadInputError, ArtifactError: nothing there, or not a sound model.
        UnsupportedError: it gives embeddings.
        BackendError: the native library is absent or refuses the model; or the file is quarantined.
        ResourceError: the context takes more memory than is free.
        NativeCrash: the child died while loading, isolated or trying the file first.
        NetworkAttemptError: something in the watched child tried to leave the machine.
    """
    spec = _spec(path, settings)
    opened = models.open_artifact(spec.path)
    models.check_generates(opened)
    file = Path(opened.model_path)
    quarantine.check(file)
    if not isolate and not offline_proof:
        return Model(load_engine(spec, opened, check=check), opened.manifest)
    from edgellm import process
    from edgellm.runtime.isolate import IsolatedEngine

    engine = IsolatedEngine(
        process.python_argv([ENGINE_VERB]),
        to_json(spec),
        on_crash=lambda crash: quarantine.note(file, crash),
        before_start=lambda: quarantine.check(file),
        hang_s=hang_s,
        memory_limit_bytes=memory_limit_bytes,
        watched_argv=(lambda first: process.python_argv([*first, ENGINE_VERB])) if offline_proof else None,
    )
    return Model(engine, opened.manifest)


def load_engine(spec: LoadSpec, opened: Artifact | None = None, *, check: bool = False) -> LocalEngine:
    """The engine in this process; errors as in `load`.

    Args:
        check: try the file in a child first, unless it came with a package that was installed here.
    """
    opened = opened or models.open_artifact(spec.path)
    models.check_generates(opened)
    options = models.options_for(
        opened, threads=spec.threads, kv_type=spec.kv_type, flash_attention=spec.flash_attention,
        gpu_layers=spec.gpu_layers,
    )  # fmt: skip
    context = models.context_for(opened, spec.context)
    path = Path(opened.model_path)
    file = models.read_model(path)
    adapters = {name: adapter_files.read(Path(place), file) for name, place in spec.adapters.items()}
    room.check_context(file, context=context, parallel=spec.parallel, kv_type=options.kv_type)
    if check:
        first_load.check(path, options, list(adapters.values()))
    backend = LlamaModel(path, options)
    try:
        if context > backend.context_train:
            raise ArtifactError(
                f"{opened.path}: the manifest allows a context of {context}, the model was trained for {backend.context_train}",
                hint="convert the model again, or give --context",
            )
        for name, place in adapters.items():
            backend.load_adapter(name, place)
        return models.make_engine(
            backend, opened, context=context, parallel=spec.parallel, max_queue=spec.max_queue,
            cache_bytes=spec.cache_bytes, adapters=adapters,
        )  # fmt: skip
    except BaseException:
        backend.close()
        raise


def serve_engine(requests: IO[bytes], answers: int) -> None:
    """In the child of `load(isolate=True)`: load what the first message says and serve it.

    Args:
        answers: a file descriptor.
    """
    from edgellm.process.channel import read_message
    from edgellm.runtime.engine_process import serve

    first = read_message(requests)
    if first is None:
        return
    serve(load_engine(from_json(LoadSpec, first, "what to load")), requests, answers)


def _spec(path: str | Path, settings: Settings) -> LoadSpec:
    unknown = sorted(set(settings) - set(Settings.__annotations__))
    if unknown:
        raise TypeError(f"unknown setting {unknown[0]!r}")
    given: dict[str, Any] = {**settings}
    adapters = settings.get("adapters", {})
    if not isinstance(adapters, Mapping):
        raise TypeError(f"adapters is {type(adapters).__name__}, expected a dict: name -> file")
    given["adapters"] = {name: str(place) for name, place in adapters.items()}
    try:
        spec = msgspec.convert({"path": str(path), **given}, LoadSpec)
    except msgspec.ValidationError as err:
        raise TypeError(f"a setting of another type: {err}") from err
    for name, low, high in (("parallel", 1, 256), ("max_queue", 1, 1 << 20), ("cache_bytes", 0, 1 << 50)):
        value = getattr(spec, name)
        if not low <= value <= high:
            raise SpecError(f"{name} is {value}, outside {low} to {high}")
    return spec

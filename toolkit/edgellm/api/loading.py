"""Loading a model for generation: in this process, or with its native code in a child."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, TypedDict, Unpack, get_args

import msgspec

from edgellm.api import adapter_files, first_load, models, quarantine, room
from edgellm.artifact import Artifact
from edgellm.errors import ArtifactError, MissingInputError, NativeCrash, SpecError
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.records import Record, from_json, to_json
from edgellm.native.llama import LlamaModel, LlamaOptions
from edgellm.runtime.engine import HANG_S, EmbeddingEngine, LocalEngine
from edgellm.runtime.model import Model
from edgellm.runtime.scheduler import MAX_QUEUE

CACHE_BYTES = 256 * 1024**2
ENGINE_VERB = "_engine"
Pooling = Literal["model", "mean", "cls", "last"]
# Settings that say nothing to an encoder, which keeps no cache and computes one text after the other.
_OF_GENERATION = ("kv_type", "draft", "adapters", "parallel", "max_queue", "cache_bytes")


class LoadSpec(Record):
    """What `load` is asked for, as it travels to a child."""

    path: str
    context: int | None = None
    threads: int | None = None
    kv_type: str | None = None
    flash_attention: models.FlashAttention = "auto"
    gpu_layers: int | Literal["auto"] = "auto"
    adapters: dict[str, str] = {}
    draft: str | None = None
    parallel: int = 1
    max_queue: int = MAX_QUEUE
    cache_bytes: int = CACHE_BYTES
    pooling: Pooling = "model"


class Settings(TypedDict, total=False):
    """How a model is loaded.

    Attributes:
        context: tokens of prompt and answer together; by default the recipe's, else 4096 or what the model can.
        threads: by default the physical cores this process may use.
        kv_type: ggml type of the KV cache; by default the recipe's, else F16.
        flash_attention: auto, on or off; a quantized V cache needs it on.
        gpu_layers: `auto` uses a GPU where the library has one.
        adapters: LoRA adapters by a name of your own: GGUF files, or directories that `convert` made of them.
        draft: a smaller model with the same vocabulary, which guesses what comes next; the text is the same, see
            `speculate`. It is loaded as the model is, and has caches of the same number and length.
        parallel: generations at once; each has `context` tokens of its own.
        max_queue: requests that may wait for a place.
        cache_bytes: memory for earlier prompts, beyond those that are still in place; 0 keeps none.
        pooling: how `embed` makes one row of a text: as the model's file says (`model`), or by `mean`, `cls` or `last`.
    """

    context: int | None
    threads: int | None
    kv_type: str | None
    flash_attention: models.FlashAttention
    gpu_layers: int | Literal["auto"]
    adapters: dict[str, str]
    draft: str | Path | None
    parallel: int
    max_queue: int
    cache_bytes: int
    pooling: Pooling


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
    """Load an artifact (or a .gguf, or builtin:smollm2) for generation; an encoder for embeddings.

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
        SpecError: a setting out of bounds, or one that an encoder has no use for; the draft model has another vocabulary.
        UnsupportedError: an encoder whose file names no pooling, and none was given; or a cache that a draft model does
            not go with.
        BackendError: the native library is absent or refuses the model; or the file is quarantined.
        ResourceError: the context takes more memory than is free.
        NativeCrash: the child died while loading, isolated or trying the file first.
        NetworkAttemptError: something in the watched child tried to leave the machine.
    """
    spec = _spec(path, settings)
    artifacts = _artifacts(spec)
    opened = artifacts[0]
    _check_of_encoder(spec, opened)
    model = Path(opened.model_path)
    draft = Path(artifacts[1].model_path) if spec.draft is not None else None
    adapters = [adapter_files.find(Path(place)) for place in spec.adapters.values()]

    def check_quarantine() -> None:
        for file in (model, draft, *adapters):
            if file is not None:
                quarantine.check(file)

    def note(crash: NativeCrash) -> None:
        for file in suspects(model, draft, adapters):
            quarantine.note(file, crash)

    check_quarantine()
    if not isolate and not offline_proof:
        return Model(load_engine(spec, artifacts, check=check), opened.manifest)
    from edgellm import process
    from edgellm.runtime.isolate import IsolatedEngine

    engine = IsolatedEngine(
        process.python_argv([ENGINE_VERB]),
        to_json(spec),
        on_crash=note,
        before_start=check_quarantine,
        hang_s=hang_s,
        memory_limit_bytes=memory_limit_bytes,
        watched_argv=(lambda first: process.python_argv([*first, ENGINE_VERB])) if offline_proof else None,
    )
    return Model(engine, opened.manifest)


def suspects(model: Path, draft: Path | None, adapters: Sequence[Path]) -> list[Path]:
    """The files that a crash of an isolated engine counts for.

    Once a model has loaded and run alone, these are the draft model and the adapters that came to it, without those that
    are known too; if it was the model all the same, that shows without them. Else it is the model.
    """
    added = [*([draft] if draft else []), *adapters]
    try:
        if not added or not first_load.is_sound(model):
            return [model]
        unknown = [path for path in adapters if not first_load.is_sound(model, path)]
        if draft and not first_load.is_sound(draft):
            unknown.insert(0, draft)
    except MissingInputError:  # it was removed meanwhile, and the next start says so
        return []
    return unknown or added


def load_engine(
    spec: LoadSpec, artifacts: Sequence[Artifact] = (), *, check: bool = False
) -> LocalEngine | EmbeddingEngine:
    """The engine in this process; errors as in `load`.

    Args:
        artifacts: the model and the draft model, where they are open already.
        check: try the files in a child first, unless they came with a package that was installed here.
    """
    opened, *drafts = artifacts or _artifacts(spec)
    context = models.context_for(opened, spec.context)
    file = models.read_model(Path(opened.model_path))
    adapters = {name: adapter_files.read(Path(place), file) for name, place in spec.adapters.items()}
    room_bytes = _check_room(spec, opened, file, context, 0)
    if spec.pooling != "model" and not models.is_encoder(opened):  # `embed` makes a cache of its own
        room_bytes += room.check_context(
            file, context=context, parallel=1, kv_type="F16", taken_bytes=room_bytes
        )
    backend = _open_backend(spec, opened, list(adapters.values()), check=check)
    draft = None
    try:
        if context > backend.context_train:
            raise ArtifactError(
                f"{opened.path}: the manifest allows a context of {context}, the model was trained for {backend.context_train}",
                hint="convert the model again, or give --context",
            )
        if models.is_encoder(opened):
            return models.make_embedding_engine(backend, opened, context=context, pooling=spec.pooling)
        for name, place in adapters.items():
            backend.load_adapter(name, place)
        if drafts:
            _check_room(spec, drafts[0], models.read_model(Path(drafts[0].model_path)), context, room_bytes)
            draft = _open_backend(spec, drafts[0], [], check=check)
        return models.make_engine(
            backend, opened, context=context, parallel=spec.parallel, max_queue=spec.max_queue,
            cache_bytes=spec.cache_bytes, adapters=adapters, draft=draft, pooling=spec.pooling,
        )  # fmt: skip
    except BaseException:
        backend.close()
        if draft:
            draft.close()
        raise


def _artifacts(spec: LoadSpec) -> list[Artifact]:
    """What is to be loaded: the model, and the draft model where there is one."""
    found = [models.open_artifact(spec.path)]
    if spec.draft is not None:
        found.append(models.open_artifact(spec.draft))
        models.check_generates(found[-1])
    return found


def _options(spec: LoadSpec, opened: Artifact) -> LlamaOptions:
    return models.options_for(
        opened, threads=spec.threads, kv_type=spec.kv_type, flash_attention=spec.flash_attention,
        gpu_layers=spec.gpu_layers,
    )  # fmt: skip


def _check_room(spec: LoadSpec, opened: Artifact, file: GGUFFile, context: int, taken_bytes: int) -> int:
    """Refuse caches that do not fit beside what is taken; how much they take."""
    return room.check_context(
        file, context=min(context, opened.manifest.context_train), parallel=spec.parallel,
        kv_type=_options(spec, opened).kv_type, taken_bytes=taken_bytes,
    )  # fmt: skip


def _open_backend(spec: LoadSpec, opened: Artifact, adapters: Sequence[Path], *, check: bool) -> LlamaModel:
    path, options = Path(opened.model_path), _options(spec, opened)
    if check:
        first_load.check(path, options, adapters)
    return LlamaModel(path, options)


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
    pooling = settings.get("pooling", "model")
    if pooling not in get_args(Pooling):
        raise SpecError(f"pooling is {pooling!r}, expected one of {', '.join(get_args(Pooling))}")
    given: dict[str, Any] = {**settings}
    draft = settings.get("draft")
    given["draft"] = str(draft) if isinstance(draft, Path) else draft
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


def _check_of_encoder(spec: LoadSpec, opened: Artifact) -> None:
    default = LoadSpec(path=spec.path)
    given = [name for name in _OF_GENERATION if getattr(spec, name) != getattr(default, name)]
    if given and models.is_encoder(opened):
        raise SpecError(
            f"{given[0]} is {getattr(spec, given[0])!r}, but {opened.path} is an embedding model: it has no use for that",
            hint="leave it out",
        )

"""Models over the fake backend, and what can be seen of them from outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgellm.runtime.cache_identity import LoadedFiles
from edgellm.runtime.engine import LocalEngine
from edgellm.runtime.model import Model
from tests.samples import make_manifest
from tests.support.fake_backend import FakeBackend, FakeBatcher


def make(
    script: Sequence[int] | None = b"an answer",
    *,
    context: int = 256,
    parallel: int = 1,
    max_queue: int = 64,
    cache_bytes: int = 0,
    files: LoadedFiles | None = None,
    draft: FakeBackend | None = None,
    **options: Any,
) -> Model:
    """A model that says `script`, or what follows from the text before."""
    return over(
        FakeBackend(script, **options),
        context=context, parallel=parallel, max_queue=max_queue, cache_bytes=cache_bytes, files=files,
        draft=draft,
    )  # fmt: skip


def over(backend: FakeBackend, *, context: int = 256, **options: Any) -> Model:
    """A model over this backend."""
    manifest = make_manifest()
    engine = LocalEngine(backend, name=manifest.model, context=context, **options)
    return Model(engine, manifest)


def backend_of(model: Model) -> FakeBackend:
    """What the model runs on."""
    engine = model._engine
    assert isinstance(engine, LocalEngine)
    backend = engine._backend
    assert isinstance(backend, FakeBackend)
    return backend


def batcher_of(model: Model) -> FakeBatcher:
    """Its caches."""
    return backend_of(model).batchers[0]


def fed(model: Model) -> list[list[int]]:
    """What was fed, call by call."""
    return [list(feed.tokens) for feed in batcher_of(model).feeds]

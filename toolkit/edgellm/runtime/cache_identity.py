"""What a saved cache belongs to: a model file, adapters, and the settings of the engine that computed it.

A model file is known by its size, its time, its inode, and a hash of its beginning (a GGUF's whole header) and of
blocks spread evenly over the rest. Hashing all of it would take seconds for each start. Two different models of one
shape differ in nearly every block; whoever changes a file on purpose so that none of this shows gets wrong text, not
more: sizes and types are in the header.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from edgellm.errors import BadInputError
from edgellm.formats.paths import open_regular
from edgellm.formats.records import Record
from edgellm.report import RuntimeInfo

_WHOLE_BYTES = 16 * 1024**2
_BLOCK_BYTES = 4096
_N_BLOCKS = 1024


class FileIdentity(Record):
    """A file as it was when it was loaded.

    Attributes:
        modified_ns: its time, nanoseconds since 1970.
        inode: as text, since some file systems have more than 64 bits.
        sha256: of its first 16 MiB and 1024 blocks of 4 KiB behind.
    """

    n_bytes: int
    modified_ns: int
    inode: str
    sha256: str


class CacheIdentity(Record):
    """What must be the same for a saved cache to be used.

    Attributes:
        adapters: name -> file of each adapter that is loaded.
        engine, binding: versions.  backend: cpu or gpu.
        context: tokens of each sequence.  n_sequences: generations at once, which decides how states are laid out.
    """

    model: FileIdentity
    adapters: dict[str, FileIdentity]
    engine: str
    binding: str
    backend: str
    kv_type: str
    flash_attention: str
    context: int
    n_sequences: int

    def difference(self, other: CacheIdentity) -> str | None:
        """In words, the first thing in which a file's identity (`other`) differs from this; None where it is the same."""
        if other.model != self.model:
            return "it was saved with another model file, or this one was changed since"
        if other.adapters.keys() != self.adapters.keys():
            return f"it was saved with {_named(other.adapters)}, here is {_named(self.adapters)}"
        for name in sorted(self.adapters):
            if other.adapters[name] != self.adapters[name]:
                return f"the file of adapter {name!r} is another one, or was changed since"
        for field in ("engine", "binding", "backend", "kv_type", "flash_attention", "context", "n_sequences"):
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine != theirs:
                return f"it was saved with {_WORDS.get(field, field)} {theirs}, here it is {mine}"
        return None


_WORDS = {
    "engine": "llama.cpp",
    "kv_type": "KV type",
    "flash_attention": "flash attention",
    "n_sequences": "parallel",
}


class LoadedFiles:
    """The files of a loaded model, noted when they are loaded.

    Args:
        adapters: name -> file.
    """

    def __init__(self, model: Path, adapters: Mapping[str, Path] | None = None) -> None:
        self._model = _Noted(model)
        self._adapters = {name: _Noted(path) for name, path in (adapters or {}).items()}

    def identity(self, info: RuntimeInfo, *, context: int, n_sequences: int) -> CacheIdentity:
        """What a cache belongs to that is saved now.

        Raises:
            BadInputError: one of the files has been replaced or changed since.
        """
        return CacheIdentity(
            model=self._model.identity(),
            adapters={name: noted.identity() for name, noted in self._adapters.items()},
            engine=f"{info.engine} {info.engine_version}",
            binding=info.binding,
            backend=info.backend_actual,
            kv_type=info.kv_type,
            flash_attention=info.flash_attention,
            context=context,
            n_sequences=n_sequences,
        )


class _Noted:
    """A file with its size and time when it was noted; hashed when that is needed first."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._status = _shown(self._path.stat())
        self._sha256: str | None = None

    def identity(self) -> FileIdentity:
        if self._sha256 is None:
            with open_regular(self._path) as (file, n_bytes):
                if _shown(os.fstat(file.fileno())) != self._status:
                    raise BadInputError(
                        f"{self._path}: was changed since it was loaded", hint="load the model again"
                    )
                digest = hashlib.sha256(file.read(_WHOLE_BYTES))
                rest = max(n_bytes - _WHOLE_BYTES, 0)
                for i in range(_N_BLOCKS if rest else 0):
                    file.seek(_WHOLE_BYTES + max(rest - _BLOCK_BYTES, 0) * i // (_N_BLOCKS - 1))
                    digest.update(file.read(_BLOCK_BYTES))
                self._sha256 = digest.hexdigest()
        n_bytes, modified_ns, inode = self._status
        return FileIdentity(n_bytes=n_bytes, modified_ns=modified_ns, inode=inode, sha256=self._sha256)


def _shown(status: os.stat_result) -> tuple[int, int, str]:
    return status.st_size, status.st_mtime_ns, str(status.st_ino)


def _named(adapters: Mapping[str, object]) -> str:
    return f"adapters {', '.join(sorted(adapters))}" if adapters else "no adapter"

"""A GGUF header with its vocabulary checked; not twice for who opens a model and loads it right after."""

from __future__ import annotations

import threading
from pathlib import Path

from edgellm.formats import gguf, gguf_vocab
from edgellm.formats.gguf import GGUFFile

_Identity = tuple[int, ...]
_lock = threading.Lock()
_waiting: tuple[_Identity, GGUFFile] | None = None


def read_checked(path: Path, *, keep: bool = False) -> GGUFFile:
    """Read a header and validate its vocabulary.

    Args:
        keep: for the next call alone, which takes it if the file is still the same: device, inode, size, and the times
            of its last changes.

    Raises:
        MissingInputError, BadInputError: as `read_gguf` and `validate_vocab` do.
    """
    global _waiting
    before = _identity(path)
    with _lock:
        kept, _waiting = _waiting, None
    if kept is not None and kept[0] == before and kept[1].path == path:
        return kept[1]
    file = gguf.read_gguf(path)
    gguf_vocab.validate_vocab(file)
    if keep and before and before == _identity(path):
        with _lock:
            _waiting = before, file
    return file


def _identity(path: Path) -> _Identity:
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns

"""Saved KV caches as a file, signed, since native code trusts what is in them.

    16 bytes   the words "edgellm cache 1" and a newline
     8 bytes   which key signed it
     4 bytes   length of the header, little-endian
               the header, JSON: what the states belong to, and the length and sha256 of each
    32 bytes   HMAC-SHA256 of everything above, with the user's key
               for each state its tokens, four bytes each, little-endian, and what the engine wrote

Nothing behind the signature is read before it is right, and no state is used whose hash is another one. The header has
prompts' owners and the states have prompts: the file is readable for its user alone.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from edgellm import staging
from edgellm.errors import BadInputError, MissingInputError, OutputExistsError, SpecError
from edgellm.formats.paths import open_regular
from edgellm.formats.records import Record, from_json, to_json
from edgellm.runtime import user_key
from edgellm.runtime.cache_identity import CacheIdentity
from edgellm.runtime.prefix_cache import Key, Saved
from edgellm.units import format_bytes

MAGIC = b"edgellm cache 1\n"
MAX_HEADER_BYTES = 4 * 1024**2
MAX_STATES = 4096
_LENGTH = struct.Struct("<I")
_SIGNATURE_BYTES = 32
_ANEW = "remove it; what it held is computed anew"


class StateEntry(Record):
    """One saved sequence: whose it is, and the hash of its tokens and state."""

    owner: str
    adapters: list[tuple[str, float]]
    n_tokens: int
    n_bytes: int
    sha256: str


class CacheHeader(Record):
    """What a file holds and what it belongs to."""

    identity: CacheIdentity
    states: list[StateEntry]


class CacheSummary(Record):
    """What was saved or restored.

    Attributes:
        n_states, n_tokens, n_bytes: sequences, their tokens, and the bytes of their states.
        owners: whose they are, sorted.
        n_left_out: sequences that the budget `cache_bytes` had no room for; the least recently used.
    """

    n_states: int
    n_tokens: int
    n_bytes: int
    owners: list[str] = []
    n_left_out: int = 0


def summary(states: Sequence[Saved], n_left_out: int = 0) -> CacheSummary:
    """Counts of these states."""
    return CacheSummary(
        n_states=len(states), n_tokens=sum(len(saved.tokens) for saved in states),
        n_bytes=sum(len(saved.state) for saved in states),
        owners=sorted({saved.key.owner for saved in states}), n_left_out=n_left_out,
    )  # fmt: skip


def write(path: Path, identity: CacheIdentity, states: Sequence[Saved]) -> None:
    """Write a file that appears whole or not at all, readable for the user alone.

    Raises:
        OutputExistsError: the name is that of another kind of file.  OutputError: it, or the key, cannot be written.
        SpecError: too many states, or too long names.
    """
    check_replaceable(path)
    tokens = [np.asarray(saved.tokens, dtype="<i4").tobytes() for saved in states]
    header = to_json(
        CacheHeader(
            identity=identity,
            states=[_entry(saved, ids) for saved, ids in zip(states, tokens, strict=True)],
        )
    )
    if len(header) > MAX_HEADER_BYTES or len(states) > MAX_STATES:
        raise SpecError(
            f"{len(states)} states with {len(header)} bytes about them, at most {MAX_STATES} and {MAX_HEADER_BYTES}"
            " are saved",
            hint="use shorter owners",
        )
    key = user_key.find_or_make()
    signed = MAGIC + user_key.key_id(key) + _LENGTH.pack(len(header)) + header
    with staging.staged_file(path, place="path") as staged, open_private(staged) as file:
        file.write(signed + hmac.digest(key, signed, "sha256"))
        for saved, ids in zip(states, tokens, strict=True):
            file.write(ids)
            file.write(saved.state)


def open_private(path: Path) -> BinaryIO:
    """A new file for writing that its user alone may read."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def check_replaceable(path: Path) -> None:
    """Refuse to replace what is not such a file.

    Raises:
        OutputExistsError: it is something else.
    """
    try:
        with open_regular(path) as (file, n_bytes):
            if n_bytes and file.read(len(MAGIC)) != MAGIC:
                raise OutputExistsError(
                    f"{path}: exists and is no saved cache of edgellm", hint="choose another path"
                )
    except MissingInputError:
        return
    except BadInputError as err:
        raise OutputExistsError(err.message, hint="choose another path") from err


def remove(path: Path) -> None:
    """Remove such a file, if it is there.

    Raises:
        OutputExistsError: the name is that of another kind of file.  OutputError: it cannot be removed.
    """
    check_replaceable(path)
    try:
        path.unlink(missing_ok=True)
    except OSError as err:
        raise staging.write_error(path, err, place="path") from err


def read(path: Path, identity: CacheIdentity, *, max_bytes: int, vocab_size: int) -> list[Saved]:
    """The states of a file that this user saved with this model and these settings, and that nobody changed.

    Args:
        max_bytes: of all states together.

    Raises:
        MissingInputError: there is no such file.
        BadInputError: it is damaged, signed by another key, or belongs to another model or other settings.
        SpecError: its states exceed `max_bytes`.
    """
    with open_regular(path) as (file, n_file_bytes):
        header, n_read_bytes = _header(path, file)
        if difference := identity.difference(header.identity):
            raise BadInputError(f"{path}: {difference}", hint=_ANEW)
        n_bytes = sum(entry.n_bytes for entry in header.states)
        if n_bytes > max_bytes:
            raise SpecError(
                f"{path}: holds {format_bytes(n_bytes)} of states, cache_bytes is {format_bytes(max_bytes)}",
                hint="load the model with larger cache_bytes, or save the cache again",
            )
        expected_bytes = n_read_bytes + n_bytes + sum(4 * entry.n_tokens for entry in header.states)
        if n_file_bytes != expected_bytes:
            raise _damaged(path, f"{n_file_bytes} bytes, {expected_bytes} expected")
        return [_state(path, file, entry, vocab_size) for entry in header.states]


def _entry(saved: Saved, tokens: bytes) -> StateEntry:
    digest = hashlib.sha256(tokens)
    digest.update(saved.state)
    return StateEntry(
        owner=saved.key.owner, adapters=list(saved.key.adapters), n_tokens=len(saved.tokens),
        n_bytes=len(saved.state), sha256=digest.hexdigest(),
    )  # fmt: skip


def _header(path: Path, file: BinaryIO) -> tuple[CacheHeader, int]:
    """The header, whose signature is right, and the bytes read so far."""
    start = file.read(len(MAGIC) + user_key.KEY_ID_BYTES + _LENGTH.size)
    if start[: len(MAGIC)] != MAGIC or len(start) < len(MAGIC) + user_key.KEY_ID_BYTES + _LENGTH.size:
        raise BadInputError(f"{path}: no saved cache of this version of edgellm", hint=_ANEW)
    key = user_key.find()
    if key is None or start[len(MAGIC) : -_LENGTH.size] != user_key.key_id(key):
        raise BadInputError(
            f"{path}: was signed with another key than yours, so it is not used",
            hint="only who saved a cache may load it, on the same machine; " + _ANEW,
        )
    (n_header_bytes,) = _LENGTH.unpack(start[-_LENGTH.size :])
    if n_header_bytes > MAX_HEADER_BYTES:
        raise _damaged(path, f"a header of {n_header_bytes} bytes, at most {MAX_HEADER_BYTES} are read")
    header = file.read(n_header_bytes)
    signature = file.read(_SIGNATURE_BYTES)
    if not hmac.compare_digest(signature, hmac.digest(key, start + header, "sha256")):
        raise _damaged(path, "its signature does not fit it")
    found = from_json(CacheHeader, header, str(path))
    if len(found.states) > MAX_STATES:
        raise _damaged(path, f"{len(found.states)} states")
    for entry in found.states:
        if not 1 <= entry.n_tokens <= found.identity.context or not 0 <= entry.n_bytes < 1 << 48:
            raise _damaged(path, f"a state of {entry.n_tokens} tokens and {entry.n_bytes} bytes")
    return found, len(start) + len(header) + len(signature)


def _state(path: Path, file: BinaryIO, entry: StateEntry, vocab_size: int) -> Saved:
    tokens, state = file.read(4 * entry.n_tokens), file.read(entry.n_bytes)
    digest = hashlib.sha256(tokens)
    digest.update(state)
    if digest.hexdigest() != entry.sha256:
        raise _damaged(path, "the hash of a state does not fit it")
    ids = np.frombuffer(tokens, dtype="<i4")
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise _damaged(path, f"a token outside the vocabulary of {vocab_size}")
    return Saved(Key(entry.owner, tuple(entry.adapters)), tuple(ids.tolist()), state)


def _damaged(path: Path, why: str) -> BadInputError:
    return BadInputError(f"{path}: damaged or changed: {why}", hint=_ANEW)

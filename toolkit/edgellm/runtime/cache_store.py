"""The prefix cache of a running model, saved to a file and restored from one.

Sequences are copied in the scheduler's thread, one between two steps, so that generations go on meanwhile; hashing,
signing and the disk are left to the caller's thread.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from edgellm.errors import SpecError, UnsupportedError
from edgellm.protocols import Backend
from edgellm.runtime import cache_file
from edgellm.runtime.cache_file import CacheSummary, summary
from edgellm.runtime.cache_identity import CacheIdentity, LoadedFiles
from edgellm.runtime.prefix_cache import Key, Saved, SavedStates
from edgellm.runtime.scheduler import Scheduler


class CacheStore:
    """Saves and restores; thread-safe.

    Args:
        files: the model's, which a saved cache belongs to; None where it has none.
    """

    def __init__(self, scheduler: Scheduler, backend: Backend, files: LoadedFiles | None) -> None:
        self._scheduler, self._backend, self._files = scheduler, backend, files

    def save(self, path: Path) -> CacheSummary:
        """Save what lies in the sequences now and what was kept of earlier ones, of all owners and adapters.

        Raises:
            UnsupportedError: this model's cache cannot be used again.  SpecError: there is no budget for it.
            BadInputError: the model's file was changed since it was loaded.
            OutputExistsError, OutputError: the file, or the key that signs it, cannot be written.
        """
        identity = self._identity()
        states, n_left_out = self._everything()
        cache_file.write(path, identity, states)
        return summary(states, n_left_out)

    def save_nearest(self, path: Path, key: Key, tokens: Sequence[int]) -> CacheSummary:
        """Save the one state that has most of these tokens; without any, no file is written. Errors as in `save`."""
        identity = self._identity()
        cache = self._scheduler.cache
        kept = SavedStates(cache.saved.max_bytes)
        n_left_out = self._scheduler.between_steps(lambda: cache.copy_nearest(key, tokens, kept))
        if len(kept):
            cache_file.write(path, identity, kept.all())
        return summary(kept.all(), n_left_out)

    def load(self, path: Path) -> CacheSummary:
        """Restore what a file holds; it is used by prompts of the same owners and adapters that begin alike.

        Raises:
            UnsupportedError, SpecError: as in `save`, or the file exceeds the budget.
            MissingInputError, BadInputError: see `cache_file.read`.
        """
        identity = self._identity()
        saved = self._scheduler.cache.saved
        states = cache_file.read(
            path, identity, max_bytes=saved.max_bytes, vocab_size=self._backend.vocab_size
        )

        def put() -> None:
            for state in states:
                saved.put(state)

        self._scheduler.between_steps(put)
        return summary(states)

    def _identity(self) -> CacheIdentity:
        cache = self._scheduler.cache
        if not cache.can_reuse:
            raise UnsupportedError(
                "this model's cache (sliding window or recurrent) cannot be cut, so it is not used again"
            )
        if not cache.saved.max_bytes:
            raise SpecError("cache_bytes is 0, so no cache is kept", hint="load the model with cache_bytes")
        if self._files is None:
            raise UnsupportedError("this model has no file that a saved cache could belong to")
        return self._files.identity(
            self._backend.info, context=self._scheduler.context, n_sequences=self._scheduler.n_sequences
        )

    def _everything(self) -> tuple[list[Saved], int]:
        """States within the budget, the least recently used first, and how many had no room."""
        cache = self._scheduler.cache
        kept = SavedStates(cache.saved.max_bytes)
        held = self._scheduler.between_steps(cache.held)
        n_left_out = 0
        for sequence, key in reversed(held):  # the latest first, so that nothing is copied which has no room
            copy = functools.partial(cache.copy, sequence, key, kept)
            n_left_out += self._scheduler.between_steps(copy)
        for state in reversed(self._scheduler.between_steps(cache.saved.all)):
            if kept.whole(state.key, state.tokens):
                continue
            if len(state.state) > kept.room_bytes(state.key, state.tokens):
                n_left_out += 1
            else:
                kept.put(state)
        return kept.all()[::-1], n_left_out

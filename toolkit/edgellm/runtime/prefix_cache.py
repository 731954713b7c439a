"""Which tokens the sequences of a batcher hold, so that a prompt that begins alike need not be computed again.

A prefix is used only for the owner and the adapters it was computed for, and only as far as its tokens equal the
prompt's. What would be overwritten is kept as bytes outside the batcher, up to a budget.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from edgellm.errors import BackendError
from edgellm.protocols import Adapters, Batcher

# Fewer tokens are computed again sooner than they are copied.
LEAST_TOKENS = 32


class Key(NamedTuple):
    """What a cached prefix belongs to."""

    owner: str
    adapters: Adapters


class Saved(NamedTuple):
    """A sequence as bytes."""

    key: Key
    tokens: tuple[int, ...]
    state: bytes | bytearray


class SavedStates:
    """Sequences outside the batcher, the least recently used dropped first.

    Args:
        max_bytes: of all states together; 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes is {max_bytes}, expected 0 or more")
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self._states: OrderedDict[tuple[Key, tuple[int, ...]], Saved] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    def put(self, saved: Saved) -> int:
        """Keep a state, and no other that it begins with; nothing is kept that another one begins with.

        Returns:
            How many states had no room: this one, or the least recently used ones.
        """
        self._drop(saved.key, saved.tokens)
        if whole := self.whole(saved.key, saved.tokens):
            self._states.move_to_end((whole.key, whole.tokens))
            return 0
        if len(saved.state) > self.max_bytes:
            return 1
        for state in self._beginnings(saved.key, saved.tokens):
            self._drop(state.key, state.tokens)  # the new one holds all of it
        self._states[saved.key, saved.tokens] = saved
        self.n_bytes += len(saved.state)
        n_dropped = 0
        while self.n_bytes > self.max_bytes:
            oldest = next(iter(self._states.values()))
            self._drop(oldest.key, oldest.tokens)
            n_dropped += 1
        return n_dropped

    def whole(self, key: Key, tokens: tuple[int, ...]) -> Saved | None:
        """A state that begins with these tokens."""
        return next((s for s in self._states.values() if s.key == key and _begins(s.tokens, tokens)), None)

    def room_bytes(self, key: Key, tokens: tuple[int, ...]) -> int:
        """How large a state of these tokens may be, so that no other is lost for it."""
        freed = sum(len(s.state) for s in self._beginnings(key, tokens))
        return self.max_bytes - self.n_bytes + freed

    def all(self) -> list[Saved]:
        """All states, the least recently used first."""
        return list(self._states.values())

    def remove(self, saved: Saved) -> None:
        """Drop a state."""
        self._drop(saved.key, saved.tokens)

    def best(self, key: Key, tokens: Sequence[int]) -> tuple[int, Saved | None]:
        """Length of the longest common prefix, and the state that has it."""
        best, found = 0, None
        for saved in self._states.values():
            if saved.key == key and (n := common_prefix(saved.tokens, tokens)) > best:
                best, found = n, saved
        if found:
            self._states.move_to_end((found.key, found.tokens))
        return best, found

    def _beginnings(self, key: Key, tokens: tuple[int, ...]) -> list[Saved]:
        return [s for s in self._states.values() if s.key == key and _begins(tokens, s.tokens)]

    def _drop(self, key: Key, tokens: tuple[int, ...]) -> None:
        state = self._states.pop((key, tokens), None)
        if state:
            self.n_bytes -= len(state.state)


class PrefixCache:
    """Finds, for a prompt, the sequence that has most of it already.

    Args:
        max_saved_bytes: budget of states outside the batcher.
    """

    def __init__(self, batcher: Batcher, *, max_saved_bytes: int, can_truncate: bool, can_copy: bool) -> None:
        self._batcher = batcher
        self._can_truncate, self._can_copy = can_truncate, can_copy
        self._keys: list[Key | None] = [None] * batcher.n_sequences
        self._used = [0] * batcher.n_sequences
        self._clock = 0
        self.saved = SavedStates(max_saved_bytes if can_truncate else 0)

    def take(self, key: Key, tokens: Sequence[int], idle: Sequence[int], *, reuse: bool) -> tuple[int, int]:
        """Choose one of the idle sequences and make it hold as much of the prompt as is known.

        Args:
            tokens: the prompt; at least its last token is left to compute.

        Returns:
            The sequence, and how many tokens of the prompt it holds now.
        """
        wanted = tokens[: len(tokens) - 1]
        n, source = self._longest(key, wanted) if reuse and self._can_truncate else (0, None)
        n_saved, saved = self.saved.best(key, wanted) if reuse and self._can_truncate else (0, None)
        if saved and n_saved > n:
            chosen = self._vacated(key, wanted, idle, None)
            n = self._restore(chosen, saved, n_saved)
        elif source is not None and n:
            chosen = self._vacated(key, wanted, idle, source)
            if chosen != source:
                self._batcher.copy_prefix(source, chosen, n)
            else:
                self._batcher.truncate(chosen, n)
        else:
            chosen = self._vacated(key, wanted, idle, None)
            self._batcher.free(chosen)
            n = 0
        self._keys[chosen] = key
        self._touch(chosen)
        return chosen, n

    def _restore(self, sequence: int, saved: Saved, n_tokens: int) -> int:
        """Fill a sequence from a saved state; a state that the engine does not take is dropped, and 0 returned."""
        try:
            self._batcher.load(sequence, saved.state, saved.tokens)
        except BackendError:
            self.saved.remove(saved)
            self._batcher.free(sequence)
            return 0
        self._batcher.truncate(sequence, n_tokens)
        return n_tokens

    @property
    def can_reuse(self) -> bool:
        """Whether what was computed for one prompt can be used for another."""
        return self._can_truncate

    def held(self) -> list[tuple[int, Key]]:
        """Sequences that hold enough tokens to be kept, and whose they are; the least recently used first."""
        found = [(s, key) for s, key in enumerate(self._keys) if key is not None]
        return sorted(
            ((s, key) for s, key in found if len(self._batcher.tokens(s)) >= LEAST_TOKENS),
            key=lambda pair: self._used[pair[0]],
        )

    def copy(self, sequence: int, key: Key, into: SavedStates) -> int:
        """Copy what a sequence holds now, unless it is not that key's any more, or too little, or there already.

        Returns:
            1 where there is no room for it, which is seen before it is copied; else 0.
        """
        tokens = tuple(self._batcher.tokens(sequence))
        if self._keys[sequence] != key or len(tokens) < LEAST_TOKENS or into.whole(key, tokens):
            return 0
        if self._batcher.state_bytes(sequence) > into.room_bytes(key, tokens):
            return 1
        return into.put(Saved(key, tokens, self._batcher.save(sequence)))

    def copy_nearest(self, key: Key, tokens: Sequence[int], into: SavedStates) -> int:
        """Copy the state that has most of these tokens, if any has enough to be worth keeping; returns as `copy`."""
        n, sequence = self._longest(key, tokens)
        n_saved, saved = self.saved.best(key, tokens)
        if max(n, n_saved) < LEAST_TOKENS:
            return 0
        if sequence is not None and n >= n_saved:
            return self.copy(sequence, key, into)
        return into.put(saved) if saved else 0

    def release(self, sequence: int, *, keep: bool) -> None:
        """A generation is over; its sequence may be used by others of the same key, or is emptied."""
        self._touch(sequence)
        if not keep or not self._can_truncate:
            self.forget(sequence)

    def forget(self, sequence: int) -> None:
        """Empty a sequence."""
        self._keys[sequence] = None
        self._batcher.free(sequence)

    def _vacated(self, key: Key, tokens: Sequence[int], idle: Sequence[int], source: int | None) -> int:
        """The place to use; nobody's until it holds what it should, whatever goes wrong meanwhile."""
        chosen = self._place(key, tokens, idle, source)
        self._keys[chosen] = None
        return chosen

    def _longest(self, key: Key, tokens: Sequence[int]) -> tuple[int, int | None]:
        best, found = 0, None
        for sequence, held in enumerate(self._keys):
            if held == key and (n := common_prefix(self._batcher.tokens(sequence), tokens)) > best:
                best, found = n, sequence
        return best, found

    def _place(self, key: Key, tokens: Sequence[int], idle: Sequence[int], source: int | None) -> int:
        """The idle sequence to use, its content saved where it is worth it."""
        if source in idle and source is not None:
            held = len(self._batcher.tokens(source))
            lost = held - common_prefix(self._batcher.tokens(source), tokens)
            empty = next((s for s in idle if not self._batcher.tokens(s)), None)
            if lost < LEAST_TOKENS or not self._can_copy or empty is None:
                self._save(source, lost)
                return source
        chosen = min(idle, key=lambda s: (bool(self._batcher.tokens(s)), self._used[s]))
        if chosen != source:
            self._save(chosen, len(self._batcher.tokens(chosen)))
        return chosen

    def _save(self, sequence: int, n_lost: int) -> None:
        key = self._keys[sequence]
        if key is not None and n_lost >= LEAST_TOKENS and self.saved.max_bytes:
            tokens = tuple(self._batcher.tokens(sequence))
            with contextlib.suppress(BackendError, MemoryError):  # what cannot be kept is computed again
                if self._batcher.state_bytes(sequence) <= self.saved.max_bytes:
                    self.saved.put(Saved(key, tokens, self._batcher.save(sequence)))

    def _touch(self, sequence: int) -> None:
        self._clock += 1
        self._used[sequence] = self._clock


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens that both begin with."""
    n = 0
    for left, right in zip(a, b, strict=False):
        if left != right:
            break
        n += 1
    return n


def _begins(whole: tuple[int, ...], part: tuple[int, ...]) -> bool:
    return whole[: len(part)] == part

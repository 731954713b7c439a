"""Which tokens the sequences of a batcher hold, so that a prompt that begins alike need not be computed again.

A prefix is used only for the owner and the adapters it was computed for, and only as far as its tokens equal the
prompt's. What would be overwritten is kept as bytes outside the batcher, up to a budget.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

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
    state: bytes


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

    def put(self, saved: Saved) -> None:
        """Keep a state; one that is larger than the whole budget is not kept."""
        self._drop(saved.key, saved.tokens)
        if len(saved.state) > self.max_bytes:
            return
        for state in [s for s in self._states.values() if _begins(saved, s)]:
            self._drop(state.key, state.tokens)  # the new one holds all of it
        self._states[saved.key, saved.tokens] = saved
        self.n_bytes += len(saved.state)
        while self.n_bytes > self.max_bytes:
            oldest = next(iter(self._states.values()))
            self._drop(oldest.key, oldest.tokens)

    def best(self, key: Key, tokens: Sequence[int]) -> tuple[int, Saved | None]:
        """Length of the longest common prefix, and the state that has it."""
        best, found = 0, None
        for saved in self._states.values():
            if saved.key == key and (n := common_prefix(saved.tokens, tokens)) > best:
                best, found = n, saved
        if found:
            self._states.move_to_end((found.key, found.tokens))
        return best, found

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
            chosen = self._place(key, wanted, idle, None)
            self._batcher.load(chosen, saved.state, saved.tokens)
            self._batcher.truncate(chosen, n_saved)
            n = n_saved
        elif source is not None and n:
            chosen = self._place(key, wanted, idle, source)
            if chosen != source:
                self._batcher.copy_prefix(source, chosen, n)
            else:
                self._batcher.truncate(chosen, n)
        else:
            chosen = self._place(key, wanted, idle, None)
            self._batcher.free(chosen)
            n = 0
        self._keys[chosen] = key
        self._touch(chosen)
        return chosen, n

    def release(self, sequence: int, *, keep: bool) -> None:
        """A generation is over; its sequence may be used by others of the same key, or is emptied."""
        self._touch(sequence)
        if not keep or not self._can_truncate:
            self.forget(sequence)

    def forget(self, sequence: int) -> None:
        """Empty a sequence."""
        self._keys[sequence] = None
        self._batcher.free(sequence)

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


def _begins(whole: Saved, part: Saved) -> bool:
    return whole.key == part.key and whole.tokens[: len(part.tokens)] == part.tokens

"""The tokens of one native call, in arrays that are made once."""

from __future__ import annotations

import ctypes
import types
from typing import Any

import numpy as np
import numpy.typing as npt

from edgellm.protocols import Feed


class BatchArrays:
    """A llama_batch over numpy arrays of our own, so that filling it costs no call per token."""

    def __init__(self, lib: types.ModuleType, capacity: int) -> None:
        self._tokens = np.zeros(capacity, dtype=np.int32)
        self._positions = np.zeros(capacity, dtype=np.int32)
        self._counts = np.ones(capacity, dtype=np.int32)
        self._sequences = np.zeros(capacity, dtype=np.int32)
        self.n_outputs = 0
        first = self._sequences.ctypes.data
        self._pointers = np.arange(first, first + 4 * capacity, 4, dtype=np.uintp)
        self._outputs = np.zeros(capacity, dtype=np.int8)
        self.struct = lib.llama_batch(
            n_tokens=0,
            token=_pointer(self._tokens, ctypes.c_int32),
            embd=None,
            pos=_pointer(self._positions, ctypes.c_int32),
            n_seq_id=_pointer(self._counts, ctypes.c_int32),
            seq_id=ctypes.cast(self._pointers.ctypes.data, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            logits=_pointer(self._outputs, ctypes.c_int8),
        )

    def clear(self) -> None:
        """Begin anew."""
        self.struct.n_tokens = 0
        self.n_outputs = 0

    def append(self, feed: Feed, start: int) -> tuple[int, int]:
        """Add a feed's tokens and draft at positions start..

        Returns:
            Batch row of its first output, and that output's number.
        """
        a: int = self.struct.n_tokens
        n_fed, n_drafted = len(feed.tokens), len(feed.draft)
        b = a + n_fed + n_drafted
        every = feed.want == "all"
        n_outputs = n_fed if every else n_drafted + (feed.sampling is not None or feed.want != "none")
        if b == a + 1:
            self._tokens[a], self._positions[a], self._sequences[a] = feed.tokens[0], start, feed.sequence
            self._outputs[a] = n_outputs
        else:
            self._tokens[a : a + n_fed] = feed.tokens
            self._tokens[a + n_fed : b] = feed.draft
            self._positions[a:b] = np.arange(start, start + b - a)
            self._sequences[a:b] = feed.sequence
            self._outputs[a : b - n_outputs] = 0
            self._outputs[b - n_outputs : b] = 1
        self.struct.n_tokens = b
        first = self.n_outputs
        self.n_outputs += n_outputs
        return b - n_outputs, first


def _pointer(array: npt.NDArray[Any], kind: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))

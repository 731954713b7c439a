"""A bounded queue in which owners take turns: one that asks a hundred times does not keep the others waiting."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from edgellm.errors import QueueFullError

T = TypeVar("T")


class FairQueue(Generic[T]):
    """First in, first out for each owner, round robin between owners. Not thread-safe."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}, expected at least 1")
        self._capacity = capacity
        self._waiting: OrderedDict[str, deque[T]] = OrderedDict()
        self._n_waiting = 0

    def __len__(self) -> int:
        return self._n_waiting

    def __iter__(self) -> Iterator[T]:
        for waiting in self._waiting.values():
            yield from waiting

    def put(self, owner: str, item: T) -> None:
        """Wait in line.

        Raises:
            QueueFullError: as many as allowed wait already.
        """
        if self._n_waiting >= self._capacity:
            raise QueueFullError(
                f"{self._n_waiting} requests are waiting, which is the limit",
                hint="try again later, or raise max_queue",
            )
        self._waiting.setdefault(owner, deque()).append(item)
        self._n_waiting += 1

    def pop(self) -> T:
        """The next one of the owner whose turn it is; that owner goes to the end of the line."""
        owner, waiting = self._waiting.popitem(last=False)
        item = waiting.popleft()
        if waiting:
            self._waiting[owner] = waiting
        self._n_waiting -= 1
        return item

    def remove(self, item: T) -> bool:
        """Take one out of the line; False where it is not there."""
        for owner, waiting in self._waiting.items():
            if item in waiting:
                waiting.remove(item)
                self._n_waiting -= 1
                if not waiting:
                    del self._waiting[owner]
                return True
        return False

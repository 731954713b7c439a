"""Owners take turns, and the line has an end."""

from __future__ import annotations

import pytest

from edgellm.errors import QueueFullError
from edgellm.runtime.fair_queue import FairQueue


def filled(*items: tuple[str, int], capacity: int = 9) -> FairQueue[int]:
    queue: FairQueue[int] = FairQueue(capacity)
    for owner, item in items:
        queue.put(owner, item)
    return queue


def test_owners_take_turns_and_each_keeps_its_order() -> None:
    queue = filled(("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5), ("b", 6))
    assert sorted(queue) == [1, 2, 3, 4, 5, 6]
    assert [queue.pop() for _ in range(len(queue))] == [1, 4, 5, 2, 6, 3]
    assert not queue


def test_a_full_line_says_how_many_wait() -> None:
    queue = filled(("a", 1), ("b", 2), capacity=2)
    with pytest.raises(QueueFullError, match="2 requests are waiting"):
        queue.put("c", 3)
    assert [queue.pop(), queue.pop()] == [1, 2]
    queue.put("c", 3)
    assert len(queue) == 1


def test_one_can_leave_the_line() -> None:
    queue = filled(("a", 1), ("b", 2), ("a", 3))
    assert queue.remove(1)
    assert not queue.remove(1)
    assert queue.remove(2)
    assert [queue.pop()] == [3]


def test_a_line_without_room_is_no_line() -> None:
    with pytest.raises(ValueError, match="capacity is 0"):
        FairQueue(0)

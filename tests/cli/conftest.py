"""What several tests of the command line need."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture
def one_processor() -> Iterator[None]:
    """Children get one processor and so one thread: two that wait for each other crawl while others are busy."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    yield
    os.sched_setaffinity(0, allowed)

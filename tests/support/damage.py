"""Files that are damaged at random, the same every time: bytes that differ or are missing, values of JSON that differ."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

VALUES: list[Any] = [
    None, True, 0, -1, 1, 2**31, 2**63, 2**200, 0.5, 1e308, "", "x", "\0", "\ud83d\ude00", "x" * 5000, [], [[]], [0], [None],
    ["a", "b", "c"], {}, {"x": {}}, {"type": "x"}, {"id": 0, "content": "x"}, {"": 0}, [{}, {}],
]  # fmt: skip


def damaged(content: bytes, seed: int | str, count: int) -> Iterator[bytes]:
    """The content with a few bytes changed, sometimes cut, sometimes with a piece of it twice."""
    draw = random.Random(seed)
    for _ in range(count):
        changed = bytearray(content)
        for _ in range(draw.choice([1, 1, 2, 8])):
            changed[draw.randrange(len(changed))] = draw.choice([draw.randrange(256), *b'\0\xff"{}[],:0-\n'])
        if draw.random() < 0.1:
            del changed[draw.randrange(len(changed)) :]
        if draw.random() < 0.1:
            start = draw.randrange(len(changed) + 1)
            changed[start:start] = changed[max(0, start - draw.randrange(1, 100)) : start]
        yield bytes(changed)


def mutated(content: bytes, seed: int | str, count: int) -> Iterator[bytes]:
    """The JSON with one or two of its values replaced or removed, near the top as often as deep down."""
    draw = random.Random(seed)
    for _ in range(count):
        root = {"": json.loads(content)}
        for _ in range(draw.choice([1, 1, 2])):
            _mutate(root, draw)
        yield json.dumps(root[""]).encode()


def _mutate(root: dict[str, Any], draw: random.Random) -> None:
    parent: Any = root
    key: Any = ""
    while isinstance(parent[key], dict | list) and parent[key] and draw.random() < 0.75:
        parent = parent[key]
        key = draw.choice(list(parent)) if isinstance(parent, dict) else draw.randrange(len(parent))
    if draw.random() < 0.25 and parent is not root:
        del parent[key]
    else:
        parent[key] = json.loads(json.dumps(draw.choice(VALUES)))

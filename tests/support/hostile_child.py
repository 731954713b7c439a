"""The child of an isolated engine that was taken over: `python -m tests.support.hostile_child`.

The first message names what it does: it says it is ready, and answers what is asked with nonsense of that kind. It
imports next to nothing, since dozens of it are started.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable
from typing import Any

import msgspec

USAGE: dict[str, Any] = {
    "prompt_tokens": 1, "cached_tokens": 0, "completion_tokens": 1, "ttft_s": 0.1, "decode_s": 0.1,
    "energy": {"quantity": "energy_j", "reason": "x"},
}  # fmt: skip


def piece(**changes: Any) -> dict[str, Any]:
    return {"text": "x", "token_ids": [1], "finish_reason": None, "usage": None, "logprobs": None} | changes


def gave(number: int, **changes: Any) -> dict[str, Any]:
    return {"type": "Gave", "number": number, "piece": piece(**changes)}


def call(**changes: Any) -> dict[str, Any]:
    return {"index": 0, "id": "i", "name": "n", "arguments": "{}"} | changes


def last(number: int, **changes: Any) -> dict[str, Any]:
    return gave(number, finish_reason="stop", usage=USAGE | changes)


def answered(number: int, value: Any) -> dict[str, Any]:
    return {"type": "Answered", "number": number, "value": value}


READY = {
    "type": "Ready", "context": 100, "chat_template": None,
    "info": {
        "engine": "", "engine_version": "", "binding": "", "backend_asked": "", "backend_actual": "cpu", "build_features": "",
        "n_threads": 1, "kv_type": "F16", "flash_attention": "auto", "mmap": True, "n_batch": 1,
    },
}  # fmt: skip
TOKEN = {"token_id": 1, "logprob": 0.0, "top": [[1, 0.0]] * 1000}
# Said once in answer to a generation.
SAYS: dict[str, Callable[[int], Any]] = {
    "negative token": lambda n: gave(n, token_ids=[-1]),
    "huge token": lambda n: gave(n, token_ids=[2**62]),
    "many tokens": lambda n: gave(n, token_ids=[1] * 100_000),
    "long text": lambda n: gave(n, text="x" * (4 << 20)),
    "a long id of a call": lambda n: gave(n, tool_calls=[call(id="i" * 65)]),
    "a long name of a call": lambda n: gave(n, tool_calls=[call(name="n" * 65)]),
    "many likely tokens": lambda n: gave(n, logprobs=[TOKEN]),
    "an end without usage": lambda n: gave(n, finish_reason="stop"),
    "usage without an end": lambda n: gave(n, usage=USAGE),
    "another end": lambda n: gave(n, finish_reason="bored", usage=USAGE),
    "endless time": lambda n: last(n, ttft_s=float("inf")),
    "no number": lambda n: last(n, decode_s=float("nan")),
    "time backwards": lambda n: last(n, queue_s=-1.0),
    "negative count": lambda n: last(n, completion_tokens=-5),
    "ready again": lambda n: READY,
    "no message": lambda n: {"type": "Hello", "number": n},
    "an unknown field": lambda n: answered(n, None) | {"more": 1},
    "no map": lambda n: [n] * 5,
    "deep": lambda n: None,
    "a length beyond all bounds": lambda n: None,
    "no end of a message": lambda n: None,
}  # fmt: skip
# Said in answer to a question.
ANSWERS: dict[str, Any] = {
    "nothing": None, "text": "abc", "texts": ["a"], "a map": {"a": 1}, "a huge number": [2**63], "a fraction": [0.5],
    "a negative number": [-1], "lists": [[1]], "yes": [True],
}  # fmt: skip


def send(value: Any) -> None:
    data = msgspec.msgpack.encode(value)
    write(struct.pack("<I", len(data)) + data)


def write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def misbehave(kind: str, number: int) -> None:
    if kind == "deep":
        data = b"\x81\xa4type" + b"\x91" * 100_000 + b"\x90"
        write(struct.pack("<I", len(data)) + data)
    elif kind == "a length beyond all bounds":
        write(struct.pack("<I", 0xFFFFFFFF) + b"x" * 100)
    elif kind == "no end of a message":
        write(struct.pack("<I", 1000) + b"x" * 100)
        os.close(1)
    elif kind == "flood":
        send(answered(number, None))
        while True:
            send(gave(number))
    elif kind == "flood of text":
        send(answered(number, None))
        while True:
            send(gave(number, text="x" * (1 << 20)))
    elif kind == "flood of calls":
        send(answered(number, None))
        while True:
            send(gave(number, tool_calls=[call(id="i" * 64, name="n" * 64)] * 100))
    elif kind == "flood of others":
        send(answered(number, None))
        for other in range(20_000):
            send(gave(10**6 + other))
            send(answered(10**6 + other, 3))
        send(last(number))
    elif kind == "end of another":
        send(answered(number, None))
        send(last(10**6))
        os.abort()
    elif kind == "long error":
        send(
            {
                "type": "Failed",
                "number": number,
                "kind": "SpecError",
                "message": "a\n" * 10**6,
                "hint": "\n" * 10**6,
            }
        )
    elif kind == "unknown error":
        send({"type": "Failed", "number": number, "kind": "K" * 10**6, "message": "m", "hint": None})
    else:
        send(SAYS[kind](number))


def read_message() -> bytes:
    head = sys.stdin.buffer.read(4)
    return sys.stdin.buffer.read(struct.unpack("<I", head)[0]) if head else b""


def main() -> None:
    kind = read_message().decode()
    send(READY | {"context": -3} if kind == "negative context" else READY)
    while data := read_message():
        message = msgspec.msgpack.decode(data)
        if message["type"] == "Ask":
            send(answered(message["number"], ANSWERS.get(kind)))
        elif message["type"] == "Submit":
            misbehave(kind, message["number"])


if __name__ == "__main__":
    main()

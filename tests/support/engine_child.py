"""The child of an isolated engine over the fake backend: `python -m tests.support.engine_child`; some prompts misbehave."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from edgellm.process.channel import read_message
from edgellm.protocols import Feed, Sampled
from edgellm.runtime import engine_process
from edgellm.runtime.cache_identity import LoadedFiles
from edgellm.runtime.engine import EmbeddingEngine, LocalEngine
from tests.support.fake_backend import FakeBackend, FakeBatcher, FakeEmbedder

CALL = "call"
SCRIPTS = {b"crash": "SIGSEGV", b"abort": "SIGABRT", b"hang": "", b"phone": CALL, b"gobble": "", b"quit": ""}


def call_home() -> None:
    """As native code might; nothing answers at this address."""
    libc = ctypes.CDLL(None)
    address = (2).to_bytes(2, sys.byteorder) + (443).to_bytes(2, "big") + bytes([192, 0, 2, 1]) + bytes(8)
    libc.connect(libc.socket(2, 1, 0), address, len(address))


def gobble() -> None:
    """Takes memory as C++ does until there is none."""
    new = ctypes.CDLL("libstdc++.so.6")._Znwm
    new.argtypes, new.restype = [ctypes.c_size_t], ctypes.c_void_p
    while True:
        new(1 << 28)


class Misbehaving(FakeBackend):
    """Dies or hangs where the text says so: while it is tokenized, or while it is computed."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        if "ponder" in text:
            time.sleep(600)
        return super().tokenize(text, add_special=add_special, parse_special=parse_special)

    def open(self, *, n_sequences: int, context: int, observer: object = None) -> FakeBatcher:
        batcher = super().open(n_sequences=n_sequences, context=context)
        plain = batcher.step

        def step(feeds: Sequence[Feed]) -> list[Sampled]:
            for feed in feeds:
                misbehave(feed.tokens)
            return plain(feeds)

        batcher.step = step  # type: ignore[method-assign]
        return batcher


def misbehave(tokens: Sequence[int]) -> None:
    """Die or hang where the text says so."""
    for word, name in SCRIPTS.items():
        if word in bytes(token for token in tokens if token < 256):
            if word == b"gobble":
                gobble()
            if word == b"quit":
                raise SystemExit  # as a bug of ours might, in the scheduler's thread
            if not name:
                time.sleep(600)
            if name == CALL:
                call_home()
                continue
            os.kill(os.getpid(), signal.Signals[name])


def main() -> None:
    answers = os.dup(1)
    os.dup2(2, 1)
    first = read_message(sys.stdin.buffer)
    if first == b"die":
        os.kill(os.getpid(), signal.SIGILL)
    if first == b"call":
        call_home()
        time.sleep(600)
    if first == b"brief":  # gone as soon as it is ready
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        first = b"any"
    if first == b"stall":  # waits early for a consumer that does not read
        engine_process.MAX_UNREAD = 64
        first = b"x" * 900
    if first == b"embed":
        FakeEmbedder.before_text = staticmethod(misbehave)  # type: ignore[method-assign]
        encoder = FakeBackend(pooling="mean", chat_template=None)
        engine_process.serve(EmbeddingEngine(encoder, name="tiny", context=64), sys.stdin.buffer, answers)
        return
    script = first or None
    backend = Misbehaving(None if script == b"any" else script)
    files = LoadedFiles(Path(__file__))
    engine = LocalEngine(
        backend, name="tiny", context=30000, parallel=3, cache_bytes=1 << 20, files=files
    )  # fmt: skip
    engine_process.serve(engine, sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()

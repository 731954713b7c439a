"""A child that stays: messages both ways, and nobody who waits is left waiting."""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from edgellm.errors import EdgeLLMError, MissingInputError, NativeCrash
from edgellm.process.channel import Channel

ECHO = """
import sys
from edgellm.process.channel import read_message, write_message
while (message := read_message(sys.stdin.buffer)) is not None:
    write_message(1, message)
"""


class Echo:
    """A child that says again what it is told."""

    def __init__(self, on_message: Any = None) -> None:
        self.heard: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.ended: queue.SimpleQueue[EdgeLLMError] = queue.SimpleQueue()
        self.channel = Channel(
            [sys.executable, "-c", ECHO], on_message=on_message or self.heard.put, on_end=self.ended.put
        )
        self.channel.listen()


@pytest.fixture
def echo() -> Iterator[Echo]:
    made = Echo()
    yield made
    made.channel.close()


def test_it_outlives_the_thread_that_started_it() -> None:
    made: list[Echo] = []
    starter = threading.Thread(target=lambda: made.append(Echo()))
    starter.start()
    starter.join()
    echo = made[0]
    for word in (b"one", b"two"):
        echo.channel.send(word)
        assert echo.heard.get(timeout=60) == word
    echo.channel.close(60)
    assert "ended" in str(echo.ended.get(timeout=60))


def test_sending_does_not_wait_for_a_child_that_does_not_read(echo: Echo) -> None:
    os.kill(echo.channel.pid, signal.SIGSTOP)
    messages = [bytes([i]) * 300_000 for i in range(20)]

    def send() -> None:
        for message in messages:
            echo.channel.send(message)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    sender.join(60)
    assert not sender.is_alive()
    os.kill(echo.channel.pid, signal.SIGCONT)
    assert [echo.heard.get(timeout=60) for _ in messages] == messages


def test_what_a_message_breaks_here_ends_the_channel_and_is_said() -> None:
    def stumble(_: bytes) -> None:
        raise KeyError("no such number")

    echo = Echo(stumble)
    echo.channel.send(b"x")
    found = echo.ended.get(timeout=60)
    assert isinstance(found, NativeCrash)
    assert "no such number" in found.message


def test_closing_twice_and_before_anyone_listens_ends_the_child() -> None:
    ended: queue.SimpleQueue[EdgeLLMError] = queue.SimpleQueue()
    channel = Channel([sys.executable, "-c", ECHO], on_message=lambda _: None, on_end=ended.put)
    channel.close()
    channel.close()
    assert isinstance(ended.get(timeout=60), NativeCrash)
    with pytest.raises(ProcessLookupError):
        os.kill(channel.pid, 0)


def test_a_program_that_is_not_there_is_said_where_it_was_asked_for() -> None:
    with pytest.raises(MissingInputError, match="cannot start"):
        Channel(["/no/such/program"], on_message=lambda _: None, on_end=lambda _: None)

"""llama-server as a peer: started on the loopback interface, asked for streams, ended by id."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.support import oracle

from edgellm.machine import default_threads


def free_port() -> int:
    """A port of the loopback interface that nothing listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class LlamaServer:
    """A running llama-server; a context manager."""

    def __init__(self, model: Path, port: int, *, n_slots: int, context: int) -> None:
        self._port = port
        threads = str(default_threads())
        self._child = subprocess.Popen(
            [
                str(oracle.native_build() / "bin" / "llama-server"), "-m", str(model), "--host", "127.0.0.1",
                "--port", str(port), "-np", str(n_slots), "-c", str(n_slots * context), "-t", threads,
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def __enter__(self) -> LlamaServer:
        deadline = time.monotonic() + 120
        while not self._is_ready():
            if self._child.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError("llama-server did not start")
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._child.terminate()
        try:
            self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _is_ready(self) -> bool:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False

    def complete(self, text: str, n_tokens: int, token: Callable[[], None]) -> int:
        """Stream the greedy continuation of a text, without reusing what was computed before; its tokens.

        Args:
            token: called with each part of the answer.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=300)
        asked = {
            "prompt": text,
            "n_predict": n_tokens,
            "temperature": 0,
            "stream": True,
            "cache_prompt": False,
        }
        connection.request("POST", "/completion", json.dumps(asked), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"llama-server answered {answer.status}: {answer.read(500)!r}")
        last = b""
        for line in answer:
            if line.startswith(b"data: "):
                token()
                last = line
        connection.close()
        return int(json.loads(last[6:])["tokens_predicted"])

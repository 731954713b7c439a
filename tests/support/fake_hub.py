"""A hub of one's own on the loopback interface: the API of models, files, and a CDN on another origin; and its faults.

It speaks as huggingface.co does where a client can tell: commits, sizes and hashes in the listing, large files behind
a redirect to the CDN with `X-Linked-Etag`, ranges, `X-Error-Code`.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

MAX_WAIT_S = 20.0
LARGE = (".safetensors", ".gguf", ".bin", "tokenizer.json")
REDIRECT_STATUS = 302


@dataclasses.dataclass
class Seen:
    """A request that arrived."""

    server: str
    path: str
    start: int
    headers: dict[str, str]
    sent: int = 0


@dataclasses.dataclass
class Fault:
    """What goes wrong with requests whose path holds `path`: the first `times` of them.

    Attributes:
        server: `hub` or `cdn`.
        status, headers: answered instead.
        cut_after: bytes of the body after which the connection is closed.
        body: changes the content that is sent; its length is declared as it then is.
        declared: the length that is declared instead of the true one.
        encoding: a Content-Encoding that was not asked for.
        ignores_range: the whole file, always.  hangs: nothing is sent.
    """

    path: str
    server: str = "cdn"
    times: int = 1
    status: int | None = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    cut_after: int | None = None
    body: Callable[[bytes], bytes] | None = None
    declared: int | None = None
    encoding: str | None = None
    ignores_range: bool = False
    hangs: bool = False


class FakeHub:
    """Both servers, in threads of this process; use as a context."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}  # repository -> commit -> file -> content
        self.refs: dict[tuple[str, str], str] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.token: str | None = None  # needed for every answer of the hub, where set
        self.gated: set[str] = set()
        self.listing: Callable[[dict[str, Any]], Any] = lambda listing: listing
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.servers = {name: _Server(("127.0.0.1", 0), name, self) for name in ("hub", "cdn")}

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.servers['hub'].server_port}"

    @property
    def cdn(self) -> str:
        """The same machine by another name: another origin."""
        return f"http://localhost:{self.servers['cdn'].server_port}"

    def __enter__(self) -> FakeHub:
        for server in self.servers.values():
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for server in self.servers.values():
            server.shutdown()
            server.server_close()

    def add(self, repo: str, files: dict[str, bytes] | Path, revision: str = "main") -> str:
        """Put a commit there and point a revision at it; returns the commit."""
        if isinstance(files, Path):
            files = {
                str(p.relative_to(files)): p.read_bytes() for p in sorted(files.rglob("*")) if p.is_file()
            }
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.repos.setdefault(repo, {})[commit] = dict(files)
        self.refs[repo, revision] = commit
        return commit

    def take_fault(self, server: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.server == server and fault.path in path and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def bytes_sent(self, path: str) -> int:
        """Bytes of content sent for paths that hold a text."""
        return sum(seen.sent for seen in self.seen if path in seen.path)

    def paths(self, server: str) -> list[str]:
        return [seen.path for seen in self.seen if seen.server == server]


def is_large(name: str) -> bool:
    return name.endswith(LARGE)


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def listing_of(repo: str, commit: str, files: dict[str, bytes]) -> dict[str, Any]:
    """The hub's answer about a model, with `blobs=true`."""
    siblings = []
    for name, data in files.items():
        sibling: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_sha1(data)}
        if is_large(name):
            sibling["blobId"] = git_sha1(b"version https://git-lfs.github.com/spec/v1\n" + name.encode())
            sibling["lfs"] = {
                "sha256": hashlib.sha256(data).hexdigest(),
                "size": len(data),
                "pointerSize": 134,
            }
        siblings.append(sibling)
    return {
        "id": repo,
        "modelId": repo,
        "sha": commit,
        "private": False,
        "gated": False,
        "siblings": siblings,
    }


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], name: str, hub: FakeHub) -> None:
        super().__init__(address, _Handler)
        self.name, self.hub = name, hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Silent."""

    def do_GET(self) -> None:
        hub, server = self.server.hub, self.server.name
        found = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        self.seen = Seen(server, self.path, int(found[1]) if found else 0, dict(self.headers))
        hub.seen.append(self.seen)
        fault = hub.take_fault(server, self.path) or Fault("")
        if fault.hangs:
            hub.stopping.wait(MAX_WAIT_S)
        elif fault.status is not None:
            self.answer(fault.status, b"{}", fault.headers)
        elif server == "cdn":
            self.content(hub.blobs[self.path.rpartition("/")[2]], fault, {})
        else:
            self.of_hub(fault)

    def of_hub(self, fault: Fault) -> None:
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self.error(401, "RepoNotFound")
            return
        api = re.match(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path)
        resolve = re.match(r"/([^/]+/[^/]+)/resolve/([0-9a-f]{40})/(.+)", path)
        repo, revision = ((api or resolve)[1], (api or resolve)[2]) if api or resolve else ("", "")  # type: ignore[index]
        if repo not in hub.repos:
            self.error(404, "RepoNotFound")
            return
        if repo in hub.gated and resolve:
            self.error(403, "GatedRepo")
            return
        commit = revision if revision in hub.repos[repo] else hub.refs.get((repo, revision), "")
        if not commit:
            self.error(404, "RevisionNotFound")
        elif api:
            assert "blobs=true" in self.path
            listing = hub.listing(listing_of(repo, commit, hub.repos[repo][commit]))
            self.content(listing if isinstance(listing, bytes) else json.dumps(listing).encode(), fault, {})
        elif resolve and resolve[3] in hub.repos[repo][commit]:
            self.file(hub.repos[repo][commit][resolve[3]], resolve[3], commit, fault)
        else:
            self.error(404, "EntryNotFound")

    def file(self, data: bytes, name: str, commit: str, fault: Fault) -> None:
        if not is_large(name):
            self.content(data, fault, {"ETag": f'"{git_sha1(data)}"', "X-Repo-Commit": commit})
            return
        sha256 = hashlib.sha256(data).hexdigest()
        self.server.hub.blobs[sha256] = data
        headers = {
            "Location": f"{self.server.hub.cdn}/{quote(name)}/{sha256}", "X-Repo-Commit": commit,
            "X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(data)), **fault.headers,
        }  # fmt: skip
        self.answer(REDIRECT_STATUS, b"", headers)

    def content(self, data: bytes, fault: Fault, headers: dict[str, str]) -> None:
        data = fault.body(data) if fault.body else data
        total, start, end, status = len(data), 0, len(data), 200
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and not fault.ignores_range:
            start, end, status = int(asked[1]), min(int(asked[2] or total) + 1, total), 206
            if start >= total:
                self.answer(416, b"", {"Content-Range": f"bytes */{total}"})
                return
            headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{total}"}
        part = data[start:end]
        if fault.encoding:
            part = gzip.compress(part)
            headers = {**headers, "Content-Encoding": fault.encoding}
        self.answer(status, part, {**headers, **fault.headers}, fault)

    def answer(self, status: int, body: bytes, headers: dict[str, str], fault: Fault | None = None) -> None:
        fault = fault or Fault("")
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if fault.declared is None else fault.declared))
        self.end_headers()
        cut = body if fault.cut_after is None else body[: fault.cut_after]
        self.seen.sent += len(cut)
        self.wfile.write(cut)
        if fault.cut_after is not None or fault.declared is not None:
            self.wfile.flush()
            time.sleep(0.05)  # let it arrive before the reset does
            self.close_connection = True

    def error(self, status: int, code: str) -> None:
        # The real hub echoes what it likes into this text; a client must not show it.
        text = f"token was {self.headers.get('Authorization')}"
        self.answer(
            status, json.dumps({"error": text}).encode(), {"X-Error-Code": code, "X-Error-Message": text}
        )

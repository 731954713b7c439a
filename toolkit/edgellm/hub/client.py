"""Requests to the hub: bounded, retried, resumed, and never with the token anywhere but at the hub itself.

The session, its proxies and certificates, the token and the endpoint are huggingface_hub's. Its own downloads are
not used: they drop a partial file when the process ends, do not check hashes, follow a redirect from https to http,
read an answer of any size, and wait as long as a server says. The Xet protocol is never spoken.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO, TypeVar
from urllib.parse import quote, urljoin, urlsplit

from edgellm import __version__
from edgellm.errors import (
    BackendUnavailable,
    BadInputError,
    EdgeLLMError,
    MissingInputError,
    NetworkError,
    NetworkInterrupted,
    SpecError,
)
from edgellm.hub.names import INSTALL_HINT, ODD_ANSWER_HINT, ModelId

if TYPE_CHECKING:
    import httpx2

    from edgellm.hub.listing import HubFile

MAX_TRIES = 5  # in a row without a new byte
MAX_ATTEMPTS = 200  # of one file in all: a server that gives a byte a time does not hold us for ever
MAX_WAIT_S = 60.0
FIRST_WAIT_S = 0.5
MAX_REDIRECTS = 5
CHUNK_BYTES = 1 << 20
_RETRIED = {408, 425, 429, 500, 502, 503, 504}
_HASH = re.compile(r"(?:[0-9a-f]{40}|[0-9a-f]{64})\Z")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)\Z")

T = TypeVar("T")
Advance = Callable[[int], None]


class _AgainError(Exception):
    """What was tried may work when tried again; the error to raise where it does not."""

    def __init__(self, error: EdgeLLMError, wait_s: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait_s = wait_s


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE (or its older name) forbids every request."""
    values = (os.environ.get("HF_HUB_OFFLINE"), os.environ.get("TRANSFORMERS_OFFLINE"))
    return any(value and value.upper() in {"1", "ON", "YES", "TRUE"} for value in values)


class HubClient:
    """One hub, as the environment names it (HF_ENDPOINT, HF_TOKEN or the stored login, proxies).

    Args:
        session: an httpx2 client; by default huggingface_hub's own.
        sleep: called with seconds between tries.

    Raises:
        BackendUnavailable: huggingface_hub is not installed.  SpecError: HF_ENDPOINT is no web address.
    """

    def __init__(
        self, *, session: httpx2.Client | None = None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        # Before its first import: otherwise it asks the hub which coding agents there are.
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        try:
            import httpx2
            import huggingface_hub
            from huggingface_hub import constants, get_session
        except ImportError as err:
            raise BackendUnavailable(
                "models from the hub need the Python package huggingface_hub 2.4 or newer", hint=INSTALL_HINT
            ) from err
        self._httpx = httpx2
        self._session = session or get_session()
        self._sleep = sleep
        self.endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        if urlsplit(self.endpoint).scheme not in {"http", "https"} or not urlsplit(self.endpoint).hostname:
            raise SpecError("HF_ENDPOINT is not a web address", hint="for example https://huggingface.co")
        timeout = os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT", "")
        self._timeout_s = (
            int(timeout) if timeout.isdecimal() and int(timeout) else constants.HF_HUB_DOWNLOAD_TIMEOUT
        )
        self._agent = f"edgellm/{__version__}; hf_hub/{huggingface_hub.__version__}"
        self._token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else huggingface_hub.get_token()

    def read_listing(self, model: ModelId, max_bytes: int) -> bytes:
        """The hub's description of a repository at a revision: commit, files, sizes and hashes, as JSON.

        Raises:
            MissingInputError: no such repository or revision.  NetworkError: refused, or not as it should be.
        """
        revision = quote(model.revision or "main", safe="")
        url = f"{self.endpoint}/api/models/{model.repo}/revision/{revision}?blobs=true"

        def attempt() -> bytes:
            with self._open(url, model, model.repo) as response:
                return b"".join(self._body(response, max_bytes, model.repo))

        return self._retry(attempt, lambda: 0)

    def read_start(self, model: ModelId, commit: str, file: HubFile, start: int, end: int) -> bytes:
        """Bytes start to end (exclusive) of a file, or what there is of them; a server without ranges is cut short."""
        url, where = self._url(model, commit, file.name), f"{model.repo}: {file.name}"
        end = min(end, file.n_bytes)

        def attempt() -> bytes:
            headers = {"Range": f"bytes={start}-{end - 1}"}
            with self._open(url, model, where, headers, file) as response:
                skip = 0 if response.status_code == 206 else start
                self._check_extent(response, start if skip == 0 else 0, file, where)
                data = bytearray()
                for chunk in self._body(response, file.n_bytes, where):
                    data += chunk[skip:]
                    skip = max(0, skip - len(chunk))
                    if len(data) >= end - start:
                        break
            if len(data) < end - start:
                raise _AgainError(_cut_off(where, len(data), end - start))
            return bytes(data[: end - start])

        return self._retry(attempt, lambda: 0)

    def fetch(self, model: ModelId, commit: str, file: HubFile, part: BinaryIO, advance: Advance) -> None:
        """Append what is missing of a file to `part`, which is open for update and at its end.

        Args:
            advance: called with numbers of new bytes; negative where some had to be thrown away.

        Raises:
            NetworkError, NetworkInterrupted, MissingInputError: it did not arrive whole. OSError: from writing.
        """
        url, where = self._url(model, commit, file.name), f"{model.repo}: {file.name}"

        def attempt() -> None:
            start = part.tell()
            if start >= file.n_bytes > 0:
                return
            headers = {"Range": f"bytes={start}-"} if start else {}
            with self._open(url, model, where, headers, file) as response:
                if start and response.status_code != 206:  # it gives the whole file again
                    advance(-start)
                    start = 0
                    part.seek(0)
                    part.truncate()
                self._check_extent(response, start, file, where)
                for chunk in self._body(response, file.n_bytes - start, where):
                    part.write(chunk)
                    advance(len(chunk))
            if part.tell() != file.n_bytes:
                raise _AgainError(_cut_off(where, part.tell(), file.n_bytes))

        self._retry(attempt, part.tell)

    def _url(self, model: ModelId, commit: str, name: str) -> str:
        return f"{self.endpoint}/{model.repo}/resolve/{commit}/{quote(name)}"

    def _retry(self, attempt: Callable[[], T], position: Callable[[], int]) -> T:
        failures = 0
        for _ in range(MAX_ATTEMPTS):
            before = position()
            try:
                return attempt()
            except _AgainError as again:
                last = again
            failures = 1 if position() > before else failures + 1
            wait_s = last.wait_s if last.wait_s is not None else FIRST_WAIT_S * 2 ** (failures - 1)
            if failures >= MAX_TRIES or wait_s > MAX_WAIT_S:
                break
            self._sleep(wait_s)
        raise last.error

    @contextlib.contextmanager
    def _open(
        self,
        url: str,
        model: ModelId,
        where: str,
        headers: dict[str, str] | None = None,
        file: HubFile | None = None,
    ) -> Iterator[httpx2.Response]:
        """The answer behind at most a few redirects; the token goes to the hub's own origin only."""
        sent = {"User-Agent": self._agent, "Accept-Encoding": "identity", **(headers or {})}
        host = urlsplit(self.endpoint).hostname
        try:
            for _ in range(MAX_REDIRECTS + 1):
                own = _origin(url) == _origin(self.endpoint)
                secret = {"Authorization": f"Bearer {self._token}"} if own and self._token else {}
                with self._session.stream(
                    "GET", url, headers=sent | secret, follow_redirects=False, timeout=self._timeout_s
                ) as response:
                    if own and file is not None:
                        _check_etag(response, file, where)
                    if response.status_code not in {301, 302, 303, 307, 308}:
                        if response.status_code not in {200, 206}:
                            raise self._refusal(response, model, where, own=own)
                        yield response
                        return
                    url = _redirected(url, response.headers.get("Location"), where)
            raise NetworkError(f"{where}: more than {MAX_REDIRECTS} redirects", hint=ODD_ANSWER_HINT)
        except (self._httpx.UnsupportedProtocol, self._httpx.InvalidURL) as err:
            raise NetworkError(
                f"{where}: the address of the hub cannot be used", hint="check HF_ENDPOINT"
            ) from err
        except ConnectionError as err:  # raised by huggingface_hub's session
            raise NetworkError(
                f"{where}: huggingface_hub is in offline mode", hint="unset HF_HUB_OFFLINE"
            ) from err
        except self._httpx.TransportError as err:
            kind = (
                "did not answer in time"
                if isinstance(err, self._httpx.TimeoutException)
                else "connection lost"
            )
            raise _AgainError(
                NetworkInterrupted(
                    f"{where}: {host}: {kind} ({type(err).__name__})",
                    hint="check the network and run it again: what has arrived is kept",
                )
            ) from err

    def _refusal(self, response: httpx2.Response, model: ModelId, where: str, *, own: bool) -> Exception:
        """What an answer that is not the content means. Texts of the server are not shown: they could hold anything."""
        status, code = response.status_code, response.headers.get("X-Error-Code", "") if own else ""
        host = urlsplit(self.endpoint).hostname
        if status == 416:
            return _AgainError(
                NetworkInterrupted(
                    f"{where}: {host} does not have the bytes that are missing",
                    hint="run it again; if that stays, remove what has arrived: edgellm rm",
                )
            )
        if status in _RETRIED:
            after = response.headers.get("Retry-After", "").strip()
            wait_s = float(after) if after.isdecimal() and len(after) < 9 else None
            said = f", and asks to wait {after} s" if wait_s else ""
            what = "too many requests" if status == 429 else "cannot answer now"
            hint = "log in for a higher limit (hf auth login), or try later" if status == 429 else "try later"
            return _AgainError(
                NetworkInterrupted(f"{where}: {host}: {what} (HTTP {status}){said}", hint=hint), wait_s
            )
        page = f"{self.endpoint}/{model.repo}"
        if code == "GatedRepo" or (status == 403 and own):
            known = "the stored token has no access" if self._token else "no token was sent"
            return NetworkError(
                f"{model.repo}: gated or not open to this account (HTTP {status}; {known})",
                hint=f"accept its licence at {page}, then log in: hf auth login, or set HF_TOKEN",
            )
        if status == 401:
            return NetworkError(
                f"{model.repo}: no such model on {host}, or it is private"
                + (", and the stored token does not open it" if self._token else ""),
                hint="check the name; for a private model log in: hf auth login, or set HF_TOKEN",
            )
        if status == 404 and own:
            return _not_found(code, model, where, host)
        return NetworkError(f"{where}: refused (HTTP {status})", hint="try later, or check HF_ENDPOINT")

    def _check_extent(self, response: httpx2.Response, start: int, file: HubFile, where: str) -> None:
        """Before a byte is kept: the answer is the part that was asked for, of a file of the right length."""
        total: int | None = None
        if response.status_code == 206:
            match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
            if not match or int(match[1]) != start:
                raise NetworkError(
                    f"{where}: the answer is another part of the file than asked for", hint=ODD_ANSWER_HINT
                )
            total = int(match[3])
        elif "Content-Length" in response.headers and _encoding(response) == "identity":
            length = response.headers["Content-Length"]
            total = int(length) if length.isdecimal() and len(length) < 20 else -1
        if total is not None and total != file.n_bytes:
            raise NetworkError(
                f"{where}: the server's file has {total} bytes, the hub's listing says {file.n_bytes}",
                hint="run it again; if that stays, the hub or a proxy is at fault",
            )

    def _body(self, response: httpx2.Response, max_bytes: int, where: str) -> Iterator[bytes]:
        """The content in chunks, at most `max_bytes` of it; gzip, which was not asked for, is unpacked within them."""
        encoding, seen = _encoding(response), 0
        if encoding not in {"identity", "gzip"}:
            raise NetworkError(
                f"{where}: sent as {encoding!r:.40}, though plain bytes were asked for", hint=ODD_ANSWER_HINT
            )
        unpacker = zlib.decompressobj(31) if encoding == "gzip" else None
        for raw in (
            response.iter_raw()
        ):  # without a size: what is gathered for one would be lost with the connection
            while raw:
                try:
                    chunk = unpacker.decompress(raw, CHUNK_BYTES) if unpacker else raw
                except zlib.error as err:
                    raise NetworkError(f"{where}: broken gzip: {err}", hint=ODD_ANSWER_HINT) from err
                raw = unpacker.unconsumed_tail if unpacker else b""
                seen += len(chunk)
                if seen > max_bytes:
                    raise NetworkError(
                        f"{where}: the answer is longer than the {max_bytes} bytes it may have",
                        hint=ODD_ANSWER_HINT,
                    )
                if chunk:
                    yield chunk


def _check_etag(response: httpx2.Response, file: HubFile, where: str) -> None:
    """The hub still means the file that its listing described; an ETag that is no hash (of a mirror) says nothing."""
    etag = (
        (response.headers.get("X-Linked-Etag") or response.headers.get("ETag") or "")
        .removeprefix("W/")
        .strip('"')
    )
    if _HASH.match(etag) and response.status_code < 400 and etag not in {file.sha256, file.git_sha1}:
        raise BadInputError(
            f"{where}: its hash on the hub is {etag}, the hub's listing says {file.digest}",
            hint="run it again; if that stays, the repository or a proxy is at fault",
        )


def _redirected(url: str, location: str | None, where: str) -> str:
    target = urljoin(url, location or "")
    old, new = urlsplit(url), urlsplit(target)
    if not location or new.scheme not in {"http", "https"} or not new.hostname:
        raise NetworkError(f"{where}: redirected to something that is no web address", hint=ODD_ANSWER_HINT)
    if old.scheme == "https" and new.scheme == "http":
        raise NetworkError(
            f"{where}: redirected from https to http ({new.hostname}), refused", hint=ODD_ANSWER_HINT
        )
    return target


def _not_found(code: str, model: ModelId, where: str, host: str | None) -> EdgeLLMError:
    revision = model.revision or "main"
    if code == "RevisionNotFound":
        return MissingInputError(
            f"{model.repo}: no revision {revision!r}",
            hint="give a branch, a tag or a commit of that repository",
        )
    if code == "EntryNotFound":
        return MissingInputError(
            f"{where}: not in the repository at {revision!r}",
            hint="look at its files on the hub, or give another revision",
        )
    return MissingInputError(
        f"no model {model.repo!r} here or on {host}",
        hint="check the name; for a private model log in: hf auth login",
    )


def _cut_off(where: str, seen: int, expected: int) -> NetworkInterrupted:
    return NetworkInterrupted(
        f"{where}: cut off after {seen} of {expected} bytes",
        hint="run it again: what has arrived is kept",
    )


def _encoding(response: httpx2.Response) -> str:
    return response.headers.get("Content-Encoding", "identity").strip().lower() or "identity"


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme)

"""Children that are to stay offline: every way out that they try is refused, named and counted, by each method alone too."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgellm.errors import NetworkAttemptError, OutputError, UnsupportedError
from edgellm.process import Streams, namespace, seccomp
from edgellm.process import proof as proofs
from edgellm.process.offline import Watch
from edgellm.process.proof import Attempt, OfflineProof

# 192.0.2.0/24 and 2001:db8::/32 are for documentation: nothing answers there.
HOOKED = "import sys; from edgellm.process import audit; audit.install(sys.argv[1])\n"
NATIVE = """
import ctypes, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
IPV4 = struct.pack("=H", 2) + (443).to_bytes(2, "big") + bytes([192, 0, 2, 1]) + bytes(8)
IPV6 = struct.pack("=H", 10) + (53).to_bytes(2, "big") + bytes(4) + bytes.fromhex("20010db8" + "0" * 23 + "1") + bytes(4)
"""
SENDMSG = """
address = ctypes.create_string_buffer(IPV4)
header = struct.pack("@PIPLPLi", ctypes.addressof(address), 16, 0, 0, 0, 0, 0)
libc.sendmsg(libc.socket(2, 2, 0), header, 0)
"""
# push rbx; eax = 359 (socket), ebx = 2, ecx = 1, edx = 0; int 0x80; pop rbx; ret
I386 = """
import mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write(bytes.fromhex("53b867010000bb02000000b90100000031d2cd805bc3"))
place = ctypes.addressof(ctypes.c_char.from_buffer(page))
assert ctypes.CFUNCTYPE(ctypes.c_int)(place)() == -38
"""
TRY = "try:\n    {}\nexcept OSError as err:\n    print(err)\n"


def command(code: str, *, hooked: bool) -> Watch:
    watch = Watch()
    child = watch.start(
        lambda first: [sys.executable, "-c", (HOOKED if hooked else "") + code, first[1]],
        streams=Streams(subprocess.DEVNULL, subprocess.DEVNULL, None),
    )
    assert child.wait(60) == 0
    return watch


def watched(code: str, *, hooked: bool = False) -> OfflineProof:
    """What is seen of a Python program."""
    return command(code, hooked=hooked).proof()


def said(proof: OfflineProof) -> list[str]:
    assert all(attempt.by for attempt in proof.attempts)
    return [attempt.what for attempt in proof.attempts]


@pytest.fixture(scope="module")
def methods() -> list[str]:
    """What this machine can do."""
    return list(watched("", hooked=True).methods)


@pytest.fixture
def held(methods: list[str]) -> None:
    if "seccomp" not in methods:
        pytest.skip("this machine holds no system calls for a listener")


@pytest.fixture
def unheld(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without seccomp."""

    def refuse() -> seccomp.Listener:
        raise seccomp.UnavailableError("switched off by a test")

    monkeypatch.setattr(seccomp, "install", refuse)


@pytest.fixture
def without_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace.Entrance, "enter", lambda self: None)


def test_a_child_that_stays_offline_is_said_to_by_every_method_and_zero_is_counted(
    methods: list[str],
) -> None:
    proof = watched("import socket; a, b = socket.socketpair(); a.sendmsg([b'x']); b.recv(1)", hooked=True)
    assert proof.verdict == "offline"
    assert proof.attempts == []
    assert proof.n_attempts == 0
    assert "audit hook" in methods
    if "namespace" in methods:
        assert (proof.sent_bytes, proof.received_bytes) == (0, 0)
    proofs.check(proof)


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("socket.create_connection(('192.0.2.1', 443))", "look up '192.0.2.1'"),
        ("socket.socket().connect(('192.0.2.1', 443))", "connect to 192.0.2.1 port 443"),
        (
            "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))",
            "send to 192.0.2.1 port 53",
        ),
        ("urllib.request.urlopen('http://telemetry.invalid/')", "look up 'telemetry.invalid'"),
        ("socket.getaddrinfo('name.invalid', 80)", "look up 'name.invalid'"),
        ("socket.gethostbyname('name.invalid')", "look up 'name.invalid'"),
        ("socket.socket().connect(('127.0.0.1', 8080))", "connect to 127.0.0.1 port 8080"),
    ],
)
def test_python_code_that_tries_is_named_with_its_place(code: str, what: str) -> None:
    proof = watched("import socket, urllib.request\n" + TRY.format(code), hooked=True)
    assert proof.verdict == "attempted"
    by_hook = [attempt for attempt in proof.attempts if attempt.seen_by == "audit hook"]
    assert [attempt.what for attempt in by_hook] == [what]
    assert " line " in by_hook[0].by
    with pytest.raises(NetworkAttemptError) as caught:
        proofs.check(proof)
    assert what in caught.value.message
    assert caught.value.exit_code == 77


@pytest.mark.parametrize(
    ("code", "last"),
    [
        ("libc.connect(libc.socket(2, 1, 0), IPV4, 16)", "connect to 192.0.2.1 port 443"),
        ("libc.connect(libc.socket(10, 1, 0), IPV6, 28)", "connect to 2001:db8::1 port 53"),
        ("libc.sendto(libc.socket(2, 2, 0), b'x', 1, 0, IPV4, 16)", "send to 192.0.2.1 port 443"),
        ("libc.bind(libc.socket(2, 1, 0), IPV4, 16)", "bind to 192.0.2.1 port 443"),
        ("libc.getaddrinfo(b'name.invalid', b'1', None, ctypes.byref(ctypes.c_void_p()))", "open an IPv4 datagram socket"),
        ("libc.syscall(425, 8, ctypes.create_string_buffer(120))", "start io_uring, which could open connections unseen"),
        ("libc.socket(17, 3, 0)", "open a packet raw socket"),
        ("libc.socketpair(1, 2, 0, (ctypes.c_int * 2)())", "open a Unix datagram socket pair"),
        ("libc.connect(libc.socket(1, 1, 0), b'\\1\\0/run/proxy', 12)", "connect to the Unix socket /run/proxy"),
        ("libc.connect(libc.socket(2, 1, 0), ctypes.c_void_p(8), 16)", "connect to an address that could not be read"),
        (SENDMSG, "send to 192.0.2.1 port 443"),
    ],
)  # fmt: skip
def test_native_code_that_tries_is_named_with_the_address(code: str, last: str, held: None) -> None:
    proof = watched(NATIVE + code)
    assert proof.verdict == "attempted"
    assert said(proof)[-1] == last
    assert all(attempt.seen_by == "seccomp" and "process" in attempt.by for attempt in proof.attempts)
    assert proof.sent_bytes in (0, None)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these are x86-64's other doors to the kernel")
@pytest.mark.parametrize(
    "code",
    [
        "libc.syscall(ctypes.c_long(0x40000000 + 41), 2, 1, 0)",
        I386,
    ],
    ids=["x32", "i386"],
)
def test_the_numbers_of_another_instruction_set_are_no_way_around(code: str, held: None) -> None:
    assert "another instruction set" in said(watched(NATIVE + code))[0]


def test_a_program_that_the_child_starts_is_watched_too(held: None) -> None:
    tries = "import socket; socket.socket().connect(('192.0.2.7', 80))"
    proof = watched(
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {tries!r}], stderr=subprocess.DEVNULL)",
        hooked=True,
    )
    assert "connect to 192.0.2.7 port 80" in said(proof)
    assert proof.attempts[-1].seen_by == "seccomp"


def test_what_outlives_the_watch_gets_no_socket_from_the_kernel(held: None, tmp_path: Path) -> None:
    found, go = tmp_path / "found", tmp_path / "go"
    survivor = (
        "import pathlib, socket, sys, time\n"
        "found, go = map(pathlib.Path, sys.argv[1:])\n"
        "while not go.exists(): time.sleep(0.01)\n"
        "try:\n    socket.socket(); said = 'opened'\n"
        "except OSError as err:\n    said = str(err.errno)\n"
        "found.with_suffix('.new').write_text(said); found.with_suffix('.new').rename(found)"
    )
    proof = watched(
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {survivor!r}, {str(found)!r}, {str(go)!r}],"
        " start_new_session=True)"
    )
    assert proof.verdict == "offline"
    go.touch()
    for _ in range(6000):
        if found.exists():
            break
        time.sleep(0.01)
    assert found.read_text() == "38"


def test_without_seccomp_the_namespace_counts_what_native_code_tries(
    methods: list[str], unheld: None
) -> None:
    if "namespace" not in methods:
        pytest.skip("this machine gives no network namespace")
    proof = watched(NATIVE + "libc.connect(libc.socket(2, 1, 0), IPV4, 16)")
    assert proof.verdict == "attempted"
    assert said(proof) == ["send 1 packets, which found no route"]
    assert (proof.sent_bytes, proof.received_bytes) == (0, 0)
    assert proof.methods == ["namespace"]
    assert proof.missing[0].reason == "switched off by a test"


def test_what_no_method_watches_is_missing_with_its_reason(unheld: None, without_namespace: None) -> None:
    proof = watched("", hooked=True)
    assert proof.verdict == "offline"
    proofs.check_whole(proof)
    assert proof.methods == ["audit hook"]
    assert proof.sent_bytes is None
    assert proof.received_bytes is None
    assert {gap.quantity for gap in proof.missing} == {
        "attempts of native code and of other programs", "bytes"
    }  # fmt: skip
    assert all(gap.reason for gap in proof.missing)


def test_a_child_without_the_hook_is_not_said_to_have_it() -> None:
    proof = watched("")
    assert "audit hook" not in proof.methods
    assert "requests of Python code, by name" in {gap.quantity for gap in proof.missing}


def test_what_nothing_watched_is_no_proof(unheld: None, without_namespace: None) -> None:
    proof = watched("")
    assert proof.methods == []
    assert proof.verdict == "unwatched"
    with pytest.raises(UnsupportedError, match="switched off by a test") as caught:
        proofs.check_whole(proof)
    assert caught.value.exit_code


def test_without_a_place_for_the_hooks_words_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(OutputError, match="temporary file"):
        watched("")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def fail(_: list[str]) -> list[str]:
        raise UnsupportedError("no command")

    with pytest.raises(UnsupportedError, match="no command"):
        Watch().start(fail)
    assert list(tmp_path.iterdir()) == []


def test_a_namespace_that_is_forbidden_is_missing_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = namespace.Entrance.enter

    def enter(entrance: namespace.Entrance) -> None:
        monkeypatch.setattr(entrance, "_unshare", lambda flags: -1)
        plain(entrance)

    monkeypatch.setattr(namespace.Entrance, "enter", enter)
    monkeypatch.setattr(namespace.ctypes, "get_errno", lambda: 1)
    proof = watched("")
    assert proof.sent_bytes is None
    assert any("unshare: not permitted" in gap.reason for gap in proof.missing)


def test_many_attempts_are_counted_and_the_first_are_kept(held: None) -> None:
    proof = watched(NATIVE + "for _ in range(150): libc.socket(2, 1, 0)")
    assert proof.n_attempts == 150
    assert len(proof.attempts) == proofs.MAX_ATTEMPTS
    with pytest.raises(NetworkAttemptError, match="150 attempts"):
        proofs.check(proof)


def test_the_error_tells_the_address_first_and_repeats_nothing() -> None:
    opened = Attempt(what="open an IPv4 stream socket", by="x (process 1)", seen_by="seccomp")
    connected = Attempt(what="connect to 192.0.2.1 port 443", by="x (process 1)", seen_by="seccomp")
    error = proofs.failure(3, [opened, opened, connected])
    assert error.message.startswith(
        "3 attempts to leave this machine, refused: connect to 192.0.2.1 port 443"
    )
    assert error.table == [
        "open an IPv4 stream socket, by x (process 1) (2 times)", "connect to 192.0.2.1 port 443, by x (process 1)"
    ]  # fmt: skip
    assert error.hint


def test_one_proof_of_several_children_has_only_what_all_of_them_had(held: None) -> None:
    watch = Watch()
    for code in (HOOKED, NATIVE + "libc.socket(2, 1, 0)"):
        child = watch.start(
            lambda first, code=code: [sys.executable, "-c", code, first[1]],  # type: ignore[misc]
            streams=Streams(None, None, None),
        )
        child.wait()
    proof = watch.proof()
    assert proof.verdict == "attempted"
    assert proof.n_attempts == 1
    assert "audit hook" not in proof.methods
    assert proof.methods[0] == "seccomp"


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors in /proc")
def test_watching_leaves_nothing_behind(
    methods: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    n_before = len(list(Path("/proc/self/fd").iterdir()))
    watched("", hooked=True)
    assert len(list(Path("/proc/self/fd").iterdir())) == n_before
    assert list(tmp_path.iterdir()) == []

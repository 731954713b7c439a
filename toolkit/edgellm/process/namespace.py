"""A network namespace of one's own: no interface but a loopback that is down, no route, and counters that begin at zero.

What is counted there is counted by the kernel, whoever sends: native code, another program, io_uring. Linux only;
without the right to make one (CAP_SYS_ADMIN), a user namespace around it gives it, where the system allows those.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from pathlib import Path
from typing import IO, NamedTuple

_NEW_USER, _NEW_NET = 0x10000000, 0x40000000
_WHY = {
    errno.EPERM: "not permitted, nor is a user namespace that would permit it",
    errno.ENOSPC: "no user namespaces are allowed here (user.max_user_namespaces)",
}
_COUNTERS = ("net/dev", "net/snmp", "net/snmp6")


class Traffic(NamedTuple):
    """What a namespace has seen: bytes on all its interfaces, and packets that found no way out."""

    received_bytes: int
    sent_bytes: int
    n_unroutable: int


class Entrance:
    """Takes a child into a namespace of its own between fork and exec; afterwards tells whether that worked."""

    def __init__(self) -> None:
        self._error: mmap.mmap | None = None
        if sys.platform == "linux":
            self._error = mmap.mmap(-1, mmap.PAGESIZE)  # shared with the child
            self._unshare = ctypes.CDLL(None, use_errno=True).unshare
            self._maps = (
                ("/proc/self/setgroups", b"deny"),
                ("/proc/self/uid_map", b"%d %d 1" % (os.geteuid(), os.geteuid())),
                ("/proc/self/gid_map", b"%d %d 1" % (os.getegid(), os.getegid())),
            )

    def enter(self) -> None:
        """Called in the child; it goes on where it was if it may not leave."""
        if self._error is None or self._unshare(_NEW_NET) == 0:
            return
        if self._unshare(_NEW_USER | _NEW_NET):
            self._error[:4] = ctypes.get_errno().to_bytes(4, "little")
            return
        for path, line in self._maps:
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
                os.write(descriptor, line)
                os.close(descriptor)
            except OSError:  # it is nobody to itself then, but not to the kernel
                return

    def counters(self, pid: int) -> Counters | str:
        """The counters of the child that entered; or why there are none."""
        if self._error is None:
            return f"{sys.platform} has no network namespaces"
        number = int.from_bytes(self._error[:4], "little")
        if number:
            why = _WHY.get(number, os.strerror(number))
            return f"no network namespace of its own: unshare: {why}"
        try:
            is_own = Path(f"/proc/{pid}/ns/net").stat().st_ino != Path("/proc/self/ns/net").stat().st_ino
            return Counters(pid) if is_own else "no network namespace of its own"
        except OSError as err:
            return f"its network namespace cannot be seen: {err.strerror}"


class Counters:
    """A namespace's counters; they can be read after its last process has ended too, until `close`.

    Raises:
        OSError: they cannot be read.
    """

    def __init__(self, pid: int) -> None:
        self._files: list[IO[bytes]] = []
        try:
            for name in _COUNTERS:
                path = Path(f"/proc/{pid}/{name}")
                if name == "net/dev" or path.exists():  # a kernel without IPv6 has no snmp6
                    self._files.append(path.open("rb", buffering=0))
            self.read()
        except BaseException:
            self.close()
            raise

    def read(self) -> Traffic:
        """What they say now.

        Raises:
            OSError: they say nothing that can be understood.
        """
        try:
            texts = [self._text(file) for file in self._files]
            received_bytes, sent_bytes = _bytes_of_interfaces(texts[0])
            return Traffic(received_bytes, sent_bytes, sum(map(_unroutable, texts[1:])))
        except (ValueError, IndexError) as err:
            raise OSError(f"the counters of the namespace are not understood: {err}") from err

    @staticmethod
    def _text(file: IO[bytes]) -> str:
        file.seek(0)
        return file.read().decode("ascii", "replace")

    def close(self) -> None:
        """Let the namespace go."""
        for file in self._files:
            file.close()


def _bytes_of_interfaces(text: str) -> tuple[int, int]:
    rows = [line.partition(":")[2].split() for line in text.splitlines()[2:]]
    return sum(int(row[0]) for row in rows), sum(int(row[8]) for row in rows)


def _unroutable(text: str) -> int:
    """Of /proc/net/snmp, where names stand above their values, and of snmp6, where each stands before its own."""
    lines = text.splitlines()
    if text.startswith("Ip6"):
        return sum(int(value) for name, value in map(str.split, lines) if name == "Ip6OutNoRoutes")
    names, values = lines[0].split(), lines[1].split()
    return int(values[names.index("OutNoRoutes")])

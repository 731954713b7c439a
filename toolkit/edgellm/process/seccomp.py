"""System calls that could open a way off the machine, held by the Linux kernel until they are answered here.

A filter on a thread holds for all that the thread starts from then on: native code, other threads, other programs. No
process can take it off again. When nobody listens any more, the kernel answers each such call with an error.
x86-64 and AArch64, from Linux 5.0 on.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct
import sys
from dataclasses import dataclass

_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER, _NEW_LISTENER = 1, 8
_RET_ALLOW, _RET_USER_NOTIF = 0x7FFF0000, 0x7FC00000
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16
_FOREIGN_NUMBERS = 0x40000000  # x86-64's kernel runs those of x32 under the same architecture

_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_ANSWER = struct.Struct("=QqiI")
_DESCRIPTOR = struct.Struct("=QIIII")
_RECEIVE, _SEND, _ADD_DESCRIPTOR = 0xC0502100, 0xC0182101, 0x40182103
_CONTINUE = 1
_O_CLOEXEC = 0o2000000

_AF_UNIX = 1


@dataclass(frozen=True)
class _Machine:
    """How an architecture names itself and numbers its calls."""

    arch: int
    calls: dict[str, int]


_NEWER = {"io_uring_setup": 425, "pidfd_getfd": 438}
_MACHINES = {
    "x86_64": _Machine(
        0xC000003E,
        {"socket": 41, "connect": 42, "sendto": 44, "sendmsg": 46, "bind": 49, "socketpair": 53, "sendmmsg": 307,
         "setns": 308, "seccomp": 317, **_NEWER},
    ),
    "aarch64": _Machine(
        0xC00000B7,
        {"socket": 198, "socketpair": 199, "bind": 200, "connect": 203, "sendto": 206, "sendmsg": 211, "setns": 268,
         "sendmmsg": 269, "seccomp": 277, **_NEWER},
    ),
}  # fmt: skip
_ALWAYS_HELD = ("socket", "connect", "bind", "sendmsg", "sendmmsg", "setns", "io_uring_setup", "pidfd_getfd")


class UnavailableError(Exception):
    """This machine cannot do it; the text says why."""


@dataclass(frozen=True)
class Call:
    """A system call that waits for its answer.

    Attributes:
        name: of the call; empty where it came by the numbers of another architecture.
        pid: the thread that makes it.  arguments: six, as the kernel got them.
    """

    id: int
    pid: int
    name: str
    number: int
    arguments: tuple[int, ...]


def install() -> Listener:
    """Put the filter on the calling thread and all that it starts from now on.

    Raises:
        UnavailableError: another system or architecture, or the kernel refuses it.
    """
    machine = _machine()
    program = _program(machine)
    code = ctypes.create_string_buffer(program, len(program))
    filter_program = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise UnavailableError(f"prctl: {os.strerror(ctypes.get_errno())}")
    libc.syscall.restype = ctypes.c_long
    descriptor = libc.syscall(
        ctypes.c_long(machine.calls["seccomp"]), ctypes.c_long(_SET_MODE_FILTER), ctypes.c_long(_NEW_LISTENER),
        ctypes.c_char_p(filter_program),
    )  # fmt: skip
    if descriptor < 0:
        raise UnavailableError(f"seccomp: {_why(ctypes.get_errno())}")
    return Listener(int(descriptor), machine)


def _why(number: int) -> str:
    known = {
        errno.EBUSY: "another program listens to this process already",
        errno.EINVAL: "this kernel cannot hold calls for a listener",
    }
    return known.get(number, os.strerror(number))


def _machine() -> _Machine:
    if sys.platform != "linux":
        raise UnavailableError(f"{sys.platform} has no seccomp")
    machine = _MACHINES.get(platform.machine())
    if machine is None or sys.maxsize < 2**32:
        raise UnavailableError(f"the system calls of {platform.machine()} are not known here")
    return machine


def _program(machine: _Machine) -> bytes:
    """The filter in the kernel's instructions; a jump's targets are names until they are all placed."""
    hold, allow, pair, send = "hold", "allow", "pair", "send"
    lines: list[tuple[str | None, int, int, str, str]] = [
        (None, _LOAD, _ARCH_AT, "", ""),
        (None, _JUMP_IF_EQUAL, machine.arch, "", hold),
        (None, _LOAD, _NUMBER_AT, "", ""),
        (None, _JUMP_IF_AT_LEAST, _FOREIGN_NUMBERS, hold, ""),
        *((None, _JUMP_IF_EQUAL, machine.calls[name], hold, "") for name in _ALWAYS_HELD),
        (None, _JUMP_IF_EQUAL, machine.calls["socketpair"], pair, ""),
        (None, _JUMP_IF_EQUAL, machine.calls["sendto"], send, allow),
        # A pair reaches nobody else, if it is not of datagrams: those could be addressed.
        (pair, _LOAD, _ARGUMENTS_AT, "", ""),
        (None, _JUMP_IF_EQUAL, _AF_UNIX, "", hold),
        (None, _LOAD, _ARGUMENTS_AT + 8, "", ""),
        (None, _AND, 0xF, "", ""),
        (None, _JUMP_IF_EQUAL, 1, allow, ""),
        (None, _JUMP_IF_EQUAL, 5, allow, hold),
        # `send` is `sendto` without an address.
        (send, _LOAD, _ARGUMENTS_AT + 8 * 4, "", ""),
        (None, _JUMP_IF_EQUAL, 0, "", hold),
        (None, _LOAD, _ARGUMENTS_AT + 8 * 4 + 4, "", ""),
        (None, _JUMP_IF_EQUAL, 0, allow, hold),
        (allow, _RETURN, _RET_ALLOW, "", ""),
        (hold, _RETURN, _RET_USER_NOTIF, "", ""),
    ]
    places = {label: at for at, (label, *_) in enumerate(lines) if label}
    return b"".join(
        struct.pack(
            "=HBBI",
            code,
            places[yes] - at - 1 if yes else 0,
            places[no] - at - 1 if no else 0,
            value,
        )
        for at, (_, code, value, yes, no) in enumerate(lines)
    )


class Listener:
    """Where held calls arrive. One thread at a time.

    Args:
        descriptor: readable when a call waits; closed by `close`.
    """

    def __init__(self, descriptor: int, machine: _Machine) -> None:
        self.descriptor = descriptor
        self._arch = machine.arch
        self._names = {number: name for name, number in machine.calls.items()}
        # Given in place of a socket, so that the call that names an address still comes.
        self._nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    def next_call(self) -> Call | None:
        """The call that waits longest; None where its process has ended meanwhile. Blocks where none waits."""
        import fcntl

        buffer = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self.descriptor, _RECEIVE, buffer)
        except OSError as err:
            if err.errno in (errno.ENOENT, errno.EINTR):
                return None
            raise
        number_of_call, pid, _, number, arch, _, *arguments = _NOTIFICATION.unpack(buffer)
        name = self._names.get(number, "") if arch == self._arch else ""
        return Call(number_of_call, pid, name, number, tuple(arguments))

    def refuse(self, call: Call, number: int = errno.ENETUNREACH) -> None:
        """Answer with this error."""
        self._send(_ANSWER.pack(call.id, 0, -number, 0))

    def let(self, call: Call) -> None:
        """Let the kernel do it."""
        self._send(_ANSWER.pack(call.id, 0, 0, _CONTINUE))

    def give_nothing(self, call: Call) -> None:
        """Answer with a descriptor that is no socket; with an error where the kernel cannot (before Linux 5.9)."""
        import fcntl

        asked = _DESCRIPTOR.pack(call.id, 0, self._nothing, 0, call.arguments[1] & _O_CLOEXEC)
        try:
            given = fcntl.ioctl(self.descriptor, _ADD_DESCRIPTOR, bytearray(asked))
        except OSError:
            self.refuse(call, errno.EACCES)
        else:
            self._send(_ANSWER.pack(call.id, given, 0, 0))

    def _send(self, answer: bytes) -> None:
        import fcntl

        with contextlib.suppress(FileNotFoundError):  # the process has ended
            fcntl.ioctl(self.descriptor, _SEND, bytearray(answer))

    def close(self) -> None:
        """Listen no more; the kernel refuses what is held from then on."""
        os.close(self.descriptor)
        os.close(self._nothing)

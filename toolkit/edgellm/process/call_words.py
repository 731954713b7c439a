"""What a held system call would do, in words: `connect to 192.0.2.1 port 443`."""

from __future__ import annotations

import ipaddress
import os
import struct
from pathlib import Path

from edgellm.process.seccomp import Call

_UNIX, _IPV4, _IPV6 = 1, 2, 10
_FAMILIES = {
    1: "a Unix", 2: "an IPv4", 10: "an IPv6", 16: "a netlink", 17: "a packet", 31: "a Bluetooth", 38: "a crypto",
    40: "a VM",
}  # fmt: skip
_KINDS = {1: "stream", 2: "datagram", 3: "raw", 5: "packet"}
_KIND_MASK = 0xF
_MAX_ADDRESS_BYTES = 128
_MESSAGE_HEADER = struct.Struct("@PI")


def describe(call: Call) -> str:
    """What it would do."""
    first, second, third, _, fifth, sixth = call.arguments
    match call.name:
        case "socket" | "socketpair":
            family = _FAMILIES.get(first, f"a family {first}")
            kind = _KINDS.get(second & _KIND_MASK, f"type {second & _KIND_MASK}")
            return f"open {family} {kind} socket" + (" pair" if call.name == "socketpair" else "")
        case "connect" | "bind":
            return f"{call.name} to {_address(call.pid, second, third)}"
        case "sendto":
            return f"send to {_address(call.pid, fifth, sixth)}"
        case "sendmsg" | "sendmmsg":
            return f"send to {_address(call.pid, *(recipient(call) or (0, 0)))}"
        case "io_uring_setup":
            return "start io_uring, which could open connections unseen"
        case "pidfd_getfd":
            return "take a descriptor of another process"
        case "setns":
            return "enter another namespace"
        case _:
            return f"make system call {call.number} of another instruction set"


def recipient(call: Call) -> tuple[int, int] | None:
    """Of `sendmsg`: where its memory holds the address it names, and how long that is; None where it names none.

    What cannot be read counts as an address.
    """
    header = _memory(call.pid, call.arguments[1], _MESSAGE_HEADER.size)
    if header is None:
        return (0, 0)
    place, n_bytes = _MESSAGE_HEADER.unpack(header)
    return (place, n_bytes) if place and n_bytes else None


def caller(pid: int) -> str:
    """The program that a thread belongs to, with the id of its process."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
        found = {
            key: value.strip() for key, _, value in (line.partition(":") for line in status.splitlines())
        }
        group = int(found["Tgid"])
        name = Path(f"/proc/{group}/comm").read_text(errors="replace").strip()
    except (OSError, KeyError, ValueError):
        return f"process {pid}"
    thread = "" if group == pid or found["Name"] == name else f", thread {found['Name']!r}"
    return f"{name} (process {group}{thread})"


def _address(pid: int, place: int, n_bytes: int) -> str:
    data = _memory(pid, place, min(n_bytes & 0xFFFFFFFF, _MAX_ADDRESS_BYTES)) if place else None
    if data is None or len(data) < 2:
        return "an address that could not be read"
    (family,) = struct.unpack_from("=H", data)
    if family == _IPV4 and len(data) >= 8:
        return f"{ipaddress.IPv4Address(data[4:8])} port {int.from_bytes(data[2:4], 'big')}"
    if family == _IPV6 and len(data) >= 24:
        return f"{ipaddress.IPv6Address(data[8:24])} port {int.from_bytes(data[2:4], 'big')}"
    if family == _UNIX:
        name = data[2:]
        hidden = name[:1] == b"\0"
        text = (name[1:] if hidden else name.split(b"\0")[0]).decode("utf-8", "replace").rstrip("\0")
        return f"the Unix socket {'@' if hidden else ''}{text}"
    return f"an address of family {family}"


def _memory(pid: int, place: int, n_bytes: int) -> bytes | None:
    """Bytes of a process's memory; None where they cannot be read."""
    if n_bytes <= 0:
        return None
    try:
        descriptor = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.pread(descriptor, n_bytes, place)
    except (OSError, OverflowError):
        return None
    finally:
        os.close(descriptor)

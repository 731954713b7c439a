"""What was seen of the network while children ran that were to stay offline, and whether that proves anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from edgellm.errors import NetworkAttemptError, UnsupportedError
from edgellm.formats.records import Record
from edgellm.report import Missing

Method = Literal["seccomp", "namespace", "audit hook"]
Verdict = Literal["offline", "attempted", "unwatched"]
MAX_ATTEMPTS = 100


class Attempt(Record):
    """One attempt to leave the machine, or to open what could.

    Attributes:
        what: for example `connect to 192.0.2.1 port 443`.  by: the program or the place in its code.
        seen_by: the method that noticed it.
    """

    what: str
    by: str
    seen_by: Method


class OfflineProof(Record):
    """What was seen of the network while a child ran.

    Attributes:
        verdict: `offline` where no attempt was seen by any of the methods, `unwatched` where there was no method.
        methods: that watched from the start to the end, the strongest first.
        n_attempts: all of them; `attempts` holds the first.
        received_bytes, sent_bytes: on all interfaces of the child's own network namespace.
        missing: what was not watched or not counted, and why.
    """

    verdict: Verdict
    methods: list[Method]
    n_attempts: int
    attempts: list[Attempt]
    received_bytes: int | None
    sent_bytes: int | None
    missing: list[Missing]


def check(proof: OfflineProof) -> None:
    """Refuse a proof with attempts in it.

    Raises:
        NetworkAttemptError: there are; the table has the first of them.
    """
    if proof.verdict == "attempted":
        raise failure(proof.n_attempts, proof.attempts)


def check_whole(proof: OfflineProof) -> None:
    """Refuse what proves nothing, too, once the children have ended.

    Raises:
        NetworkAttemptError: as `check`.  UnsupportedError: no method watched all the time; the first reasons are named.
    """
    if proof.verdict == "unwatched":
        reasons = "; ".join(f"{gap.quantity}: {gap.reason}" for gap in proof.missing[:3])
        raise UnsupportedError(
            f"nothing watched whether the command stayed offline: {reasons[:600]}",
            hint="run it on a Linux kernel with seccomp or network namespaces, or without --offline-proof",
        )
    check(proof)


def verdict_of(n_attempts: int, methods: Sequence[Method]) -> Verdict:
    """What so many attempts, seen by these methods, say."""
    if n_attempts:
        return "attempted"
    return "offline" if methods else "unwatched"


def failure(n_attempts: int, attempts: Sequence[Attempt]) -> NetworkAttemptError:
    """The error that attempts are."""
    times = Counter(f"{attempt.what}, by {attempt.by}" for attempt in attempts)
    lines = [line if n == 1 else f"{line} ({n} times)" for line, n in times.items()]
    told = min(lines, key=_says_little)
    words = "an attempt" if n_attempts == 1 else f"{n_attempts} attempts"
    return NetworkAttemptError(
        f"{words} to leave this machine, refused: {told}",
        hint="find the place with: strace -f -k -e trace=network COMMAND",
        table=lines if len(lines) > 1 else (),
    )


def _says_little(line: str) -> int:
    """0 for a line that names a place on the network, more for those that name less."""
    kinds = (" port ", "look up", "connect to the", "open ")
    return next((rank for rank, words in enumerate(kinds) if words in line), len(kinds))


def together(proofs: Sequence[OfflineProof]) -> OfflineProof:
    """One proof of several children: a method counts only where all of them had it."""
    if not proofs:
        raise ValueError("no child was watched")
    if len(proofs) == 1:
        return proofs[0]
    attempts = [attempt for proof in proofs for attempt in proof.attempts]
    missing = {(gap.quantity, gap.reason): gap for proof in proofs for gap in proof.missing}

    def total(counts: Sequence[int | None]) -> int | None:
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    methods = [method for method in proofs[0].methods if all(method in proof.methods for proof in proofs)]
    n_attempts = sum(proof.n_attempts for proof in proofs)
    return OfflineProof(
        verdict=verdict_of(n_attempts, methods),
        methods=methods,
        n_attempts=n_attempts,
        attempts=attempts[:MAX_ATTEMPTS],
        received_bytes=total([proof.received_bytes for proof in proofs]),
        sent_bytes=total([proof.sent_bytes for proof in proofs]),
        missing=list(missing.values()),
    )

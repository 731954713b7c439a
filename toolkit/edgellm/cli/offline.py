"""`--offline-proof`: the command again, in a watched child, and what was seen of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from edgellm.cli.common import print_json, show

if TYPE_CHECKING:
    from edgellm.process.proof import OfflineProof

offline_option = click.option(
    "--offline-proof",
    is_flag=True,
    help="Watch for attempts to leave this machine: refuse and name them and fail, or say how none was seen.",
)
_WORDS = {
    "seccomp": "no call that opens a way off this machine, by native code and other programs too (seccomp)",
    "namespace": "{sent} bytes sent and {received} received, counted in a network namespace of its own",
    "audit hook": "no request by Python code (audit hook)",
}


def is_watched() -> bool:
    """Whether this is the watched child."""
    from edgellm.process import audit

    return audit.is_watched()


def prove_offline(*, as_json: bool) -> int:
    """Run the command line of this process in a watched child; the exit code.

    Raises:
        NetworkAttemptError: it tried to leave the machine; what it printed is printed.
        NativeCrash: it died of a signal.  UnsupportedError: nothing could watch it.
    """
    from edgellm.errors import NativeCrash
    from edgellm.formats.records import to_builtins
    from edgellm.process import proof, signal_name
    from edgellm.process.offline_command import run_watched

    arguments = click.get_current_context().find_root().obj
    done = run_watched(arguments, capture=as_json)
    proof.check(done.proof)
    if name := signal_name(done.status):
        raise NativeCrash(f"the watched command died of {name}", signal_name=name)
    if done.status:
        return done.status
    proof.check_whole(done.proof)
    if as_json:
        print_json({**json.loads(done.stdout), "offline_proof": to_builtins(done.proof)})
    else:
        for line in proof_lines(done.proof):
            show(line, err=True)
    return 0


def proof_lines(proof: OfflineProof) -> list[str]:
    """What was seen, and what was not watched."""
    said = "; ".join(_WORDS[method] for method in proof.methods)
    lines = ["offline: " + said.format(sent=proof.sent_bytes, received=proof.received_bytes)]
    return lines + [f"offline: not watched: {gap.quantity}: {gap.reason}" for gap in proof.missing]

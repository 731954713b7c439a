"""`edgellm doctor`"""

from __future__ import annotations

import click

from edgellm.cli.common import json_option, print_json, show


@click.command("doctor")
@click.option("--model", default="builtin:smollm2", show_default=True, help="The model to decode with.")
@click.option("--decode-only", is_flag=True, help="Only prove that a decode works.")
@click.option(
    "--unquarantine", metavar="HASH", help="Let a model file be loaded again that crashed three times."
)
@json_option
def command(model: str, decode_only: bool, unquarantine: str | None, as_json: bool) -> None:
    """Check that this machine and this installation can run models.

    The decode runs in a child process, so a native library that crashes is reported, not suffered. Exit code 69 if
    something needed does not work.
    """
    from edgellm import doctor
    from edgellm.api import launch, quarantine
    from edgellm.errors import BackendError
    from edgellm.formats.records import to_builtins

    if unquarantine is not None:
        _release(unquarantine, as_json=as_json)
        return
    findings = [doctor.check_decode(lambda: launch.prove_decode(model))]
    if not decode_only:
        findings += doctor.check_machine()
        findings += doctor.check_crashes(
            {record.sha256: (record.n_crashes, record.last) for record in quarantine.records()}
        )
    if as_json:
        print_json([to_builtins(finding) for finding in findings])
    else:
        for finding in findings:
            show(f"{finding.state:<8} {finding.subject}: {finding.found}")
            if finding.remedy:
                show(f"         do: {finding.remedy}")
    broken = [finding.subject for finding in findings if finding.state == "broken"]
    if broken:
        raise BackendError(f"not working: {', '.join(broken)}", hint="see the lines above")


def _release(prefix: str, *, as_json: bool) -> None:
    from edgellm.api import quarantine
    from edgellm.errors import MissingInputError
    from edgellm.formats.records import to_builtins

    released = quarantine.release(prefix)
    if not released:
        known = ", ".join(record.sha256[:12] for record in quarantine.records()) or "none has crashed"
        raise MissingInputError(
            f"no file whose hash begins with {prefix[:64]!r} has crashed", hint=f"known: {known}"
        )
    if as_json:
        print_json([to_builtins(record) for record in released])
        return
    for record in released:
        show(f"{record.sha256[:12]}: {record.n_crashes} crashes forgotten")

"""`edgellm verify`"""

from __future__ import annotations

from pathlib import Path

import click

from edgellm.cli.common import (
    FiniteRange,
    engine_option,
    json_option,
    min_cosine_option,
    print_json,
    progress_bars,
    show,
)


@click.command("verify")
@click.argument("artifact")
@click.option("--reference", metavar="MODEL", help="Compare with this model on a text.")
@click.option(
    "--lora",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The PEFT adapter that was merged while converting: the reference is MODEL with it.",
)
@click.option(
    "--text", type=click.Path(path_type=Path), help="Text to compare on; by default one that edgellm ships."
)
@click.option(
    "--full", is_flag=True, help="Compare on the whole text (at most 32,768 tokens) instead of 1,024 tokens."
)
@click.option(
    "--max-kl",
    type=FiniteRange(0),
    metavar="NATS",
    help="Fail if it is further from the reference than this.",
)
@min_cosine_option
@engine_option
@json_option
def command(
    artifact: str,
    reference: str | None,
    lora: Path | None,
    text: Path | None,
    full: bool,
    max_kl: float | None,
    min_cosine: float | None,
    engine: str,
    as_json: bool,
) -> None:
    """Check an artifact, and how far it is from its source.

    Without --reference: the structure of its files, every hash in its manifest, and the manifest itself by the hash in
    the model's header.
    """
    from edgellm import api
    from edgellm.api.verification import knows_manifest, warnings
    from edgellm.formats.records import to_builtins

    with progress_bars() as progress:
        receipt = api.verify(
            artifact,
            reference=reference,
            lora=lora,
            text=text,
            mode="full" if full else "quick",
            max_kl=max_kl,
            min_cosine=min_cosine,
            engine=engine,  # type: ignore[arg-type]
            progress=progress,
        )
    opened = api.open_artifact(artifact)
    has_hash = knows_manifest(opened)
    found = warnings(opened)
    if as_json:
        print_json(
            {
                "manifest": to_builtins(opened.manifest),
                "manifest_hash_in_model": has_hash,
                "receipt": to_builtins(receipt) if receipt else None,
                "warnings": found,
            }
        )
        return
    from edgellm.cli.words import receipt_line

    show(f"{opened.path}: {_said(len(opened.manifest.files), has_hash=has_hash)}")
    for line in found:
        show(f"warning: {line}", err=True)
    if receipt:
        show(receipt_line(receipt))


def _said(n_files: int, *, has_hash: bool) -> str:
    if not n_files:
        return "a plain GGUF: its structure is sound; no manifest, so no hashes"
    files = "1 file matches its" if n_files == 1 else f"{n_files} files match their"
    rest = (
        ""
        if has_hash
        else "; the model has no hash of the manifest: what that says of its making is not checked"
    )
    return f"{files} manifest{rest}"

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

    Without --reference: the structure of its files and every hash in its manifest.
    """
    from edgellm import api
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
    if as_json:
        print_json(
            {"manifest": to_builtins(opened.manifest), "receipt": to_builtins(receipt) if receipt else None}
        )
        return
    from edgellm.cli.words import receipt_line

    n_files = len(opened.manifest.files)
    said = (
        f"{n_files} files match their manifest"
        if n_files
        else "a plain GGUF: its structure is sound; no manifest, so no hashes"
    )
    show(f"{opened.path}: {said}")
    if receipt:
        show(receipt_line(receipt))

"""`edgellm run`"""

from __future__ import annotations

import sys
from typing import Any

import click

from edgellm.cli.common import (
    context_option,
    gpu_option,
    json_option,
    print_json,
    show_answer,
    threads_option,
)
from edgellm.cli.sampling import sampling_options

MAX_PROMPT_BYTES = 64 * 1024**2


@click.command("run")
@click.argument("artifact")
@click.argument("prompt", required=False)
@click.option("--system", metavar="TEXT", help="A system message before the prompt.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without the model's chat template.")
@sampling_options
@context_option
@threads_option
@gpu_option
@click.option("--kv-type", metavar="TYPE", help="Type of the KV cache, for example F16 or Q8_0.")
@click.option(
    "--flash-attention", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True
)
@click.option("--quiet", is_flag=True, help="No line about speed on stderr.")
@json_option
def command(
    artifact: str,
    prompt: str | None,
    system: str | None,
    raw: bool,
    context: int | None,
    threads: int | None,
    gpu_layers: Any,
    kv_type: str | None,
    flash_attention: Any,
    quiet: bool,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Answer one PROMPT, read from standard input if it is not given.

    ARTIFACT is a converted model, a .gguf file, or builtin:smollm2.
    """
    from edgellm import api

    prompt = _read_stdin() if prompt is None else prompt
    with api.load(
        artifact,
        context=context,
        threads=threads,
        gpu_layers=gpu_layers,
        kv_type=kv_type,
        flash_attention=flash_attention,
    ) as model:
        asked: Any = prompt
        if model.has_chat_template and not raw:
            asked = [{"role": "system", "content": system}] if system is not None else []
            asked.append({"role": "user", "content": prompt})
        elif system is not None:
            raise click.UsageError("--system needs a model with a chat template, and no --raw")
        if as_json:
            print_json(model.generate(asked, **sampling))
            return
        usage = None
        for piece in model.stream(asked, **sampling):
            show_answer(piece.text)
            usage = piece.usage
        click.echo()
    if usage and not quiet:
        from edgellm.cli.usage import usage_line

        click.echo(usage_line(usage), err=True)


def _read_stdin() -> str:
    if sys.stdin is None or sys.stdin.isatty():
        raise click.UsageError("missing PROMPT: give it as an argument or on standard input")
    data = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
    if len(data) > MAX_PROMPT_BYTES:
        raise click.UsageError(f"the prompt is longer than {MAX_PROMPT_BYTES} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as err:
        raise click.UsageError(f"standard input is not UTF-8 text: {err}") from err

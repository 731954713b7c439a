"""`edgellm run`"""

from __future__ import annotations

import sys
from typing import Any

import click

from edgellm.cli.common import json_option, print_json, show_answer
from edgellm.cli.engine import engine_of, engine_options, spare_threads
from edgellm.cli.grouping import GroupedCommand
from edgellm.cli.offline import is_watched, offline_option, prove_offline
from edgellm.cli.sampling import sampling_of, sampling_options

MAX_PROMPT_BYTES = 64 * 1024**2


@click.command("run", cls=GroupedCommand)
@click.argument("artifact")
@click.argument("prompt", required=False)
@click.option("--system", metavar="TEXT", help="A system message before the prompt.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without the model's chat template.")
@sampling_options
@click.option(
    "--logprobs",
    "top_logprobs",
    type=click.IntRange(0, 20),
    metavar="N",
    help="With --json: log-probabilities of each token, and of the N likeliest beside it.",
)
@engine_options
@offline_option
@click.option("--quiet", is_flag=True, help="No line about speed on stderr.")
@json_option
def command(
    artifact: str,
    prompt: str | None,
    system: str | None,
    raw: bool,
    offline_proof: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Answer one PROMPT, read from standard input if it is not given.

    ARTIFACT is a converted model, a .gguf file, or builtin:smollm2.
    """
    if options["top_logprobs"] is not None and not as_json:
        raise click.UsageError("--logprobs needs --json, which has a place for them")
    engine = engine_of(options)
    sampling = {**sampling_of(options), **engine.options}
    if offline_proof and not is_watched():
        return prove_offline(as_json=as_json)
    spare_threads()
    from edgellm import api

    prompt = _read_stdin() if prompt is None else prompt
    if not prompt.strip() and not raw:
        raise click.UsageError("the prompt is empty")
    with api.load(artifact, **engine.settings) as model:
        asked: Any = prompt
        if model.has_chat_template and not raw:
            asked = [{"role": "system", "content": system}] if system is not None else []
            asked.append({"role": "user", "content": prompt})
        elif system is not None:
            raise click.UsageError("--system needs a model with a chat template, and no --raw")
        if as_json:
            print_json(model.generate(asked, **sampling))
            return 0
        last = None
        for piece in model.stream(asked, **sampling):
            show_answer(piece.text)
            last = piece
        click.echo()
    if last and last.usage and not quiet:
        from edgellm.cli.usage import usage_line

        click.echo(usage_line(last.usage, is_cut=last.finish_reason == "length"), err=True)
    return 0


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

"""`edgellm chat`"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import click

from edgellm.cli.common import (
    context_option,
    gpu_option,
    show,
    show_answer,
    threads_option,
)
from edgellm.cli.sampling import sampling_options

_HELP = "/reset forgets the conversation, /exit (or Ctrl-D) leaves, Ctrl-C stops an answer."


@click.command("chat")
@click.argument("artifact")
@click.option("--system", metavar="TEXT", help="A system message before the conversation.")
@sampling_options
@context_option
@threads_option
@gpu_option
@click.option("--quiet", is_flag=True, help="No lines about speed on stderr.")
def command(
    artifact: str,
    system: str | None,
    context: int | None,
    threads: int | None,
    gpu_layers: Any,
    quiet: bool,
    **sampling: Any,
) -> None:
    """Talk to a model.

    ARTIFACT is a converted model, a .gguf file, or builtin:smollm2. Within the chat: /reset forgets the conversation,
    /exit (or Ctrl-D) leaves, Ctrl-C stops an answer.
    """
    from edgellm import api
    from edgellm.errors import SpecError

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing and history for input())
    opening = [{"role": "system", "content": system}] if system is not None else []
    with api.load(artifact, context=context, threads=threads, gpu_layers=gpu_layers) as model:
        if not model.has_chat_template:
            raise SpecError(
                f"{artifact} has no chat template", hint=f"use: edgellm run --raw {artifact} TEXT"
            )
        if sys.stdin.isatty():
            show(f"{model.manifest.model} {model.manifest.quant}, context {model.context}. {_HELP}", err=True)
        messages = list(opening)
        while (line := _read_line()) is not None:
            if line == "/exit":
                break
            if line == "/reset":
                messages = list(opening)
                click.echo("forgotten", err=True)
            elif line.startswith("/"):
                click.echo(_HELP, err=True)
            elif line.strip():
                _answer(model, messages, line, sampling, quiet=quiet)


def _read_line() -> str | None:
    try:
        line = input("> " if sys.stdin.isatty() else "")
        line.encode()  # Python may have let bytes through that are not UTF-8
        return line
    except (EOFError, KeyboardInterrupt):
        click.echo(err=True)
        return None
    except UnicodeError as err:
        raise click.UsageError(f"standard input is not UTF-8 text: {err}") from err


def _answer(
    model: Any, messages: list[dict[str, str]], line: str, sampling: dict[str, Any], *, quiet: bool
) -> None:
    from edgellm.cli.usage import usage_line
    from edgellm.errors import ContextOverflowError

    messages.append({"role": "user", "content": line})
    said: list[str] = []
    usage = None
    try:
        with model.stream(messages, **sampling) as stream:
            for piece in stream:
                said.append(piece.text)
                usage = piece.usage
                show_answer(piece.text)
        click.echo()
    except KeyboardInterrupt:
        click.echo("\n(stopped)", err=True)
    except ContextOverflowError as err:
        messages.pop()
        show(f"error: {err.message}\nhint: /reset, or start again with a larger --context", err=True)
        return
    messages.append({"role": "assistant", "content": "".join(said)})
    if usage and not quiet:
        click.echo(usage_line(usage), err=True)

"""`edgellm chat`"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import click

from edgellm.cli.common import NewPath, show, show_answer
from edgellm.cli.engine import engine_of, engine_options, spare_threads
from edgellm.cli.grouping import GroupedCommand
from edgellm.cli.offline import is_watched, offline_option, prove_offline
from edgellm.cli.sampling import sampling_of, sampling_options

_HELP = "/reset forgets the conversation, /exit (or Ctrl-D) leaves, Ctrl-C stops an answer."


@click.command("chat", cls=GroupedCommand)
@click.argument("artifact")
@click.option("--system", metavar="TEXT", help="A system message before the conversation.")
@click.option(
    "--session",
    "session_path",
    type=NewPath(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Go on with the conversation in FILE, if it is there; save it there after each answer.",
)
@sampling_options
@engine_options
@offline_option
@click.option("--quiet", is_flag=True, help="No lines about speed on stderr.")
def command(
    artifact: str,
    system: str | None,
    session_path: Path | None,
    offline_proof: bool,
    quiet: bool,
    **options: Any,
) -> int:
    """Talk to a model.

    ARTIFACT is a converted model, a .gguf file, or builtin:smollm2. Within the chat: /reset forgets the conversation,
    /exit (or Ctrl-D) leaves, Ctrl-C stops an answer.
    """
    engine = engine_of(options)
    sampling = {**sampling_of(options), **engine.options}
    if offline_proof and not is_watched():
        return prove_offline(as_json=False)
    spare_threads()
    from edgellm import api
    from edgellm.errors import SpecError

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing and history for input())
    with api.load(artifact, **engine.settings) as model:
        model.check_generates()
        if not model.has_chat_template:
            raise SpecError(
                f"{artifact} has no chat template", hint=f"use: edgellm run --raw {artifact} TEXT"
            )
        if sys.stdin.isatty():
            show(f"{model.manifest.model} {model.manifest.quant}, context {model.context}. {_HELP}", err=True)
        session = _open(model, session_path, system, quiet=quiet)
        n_before = len(session.messages)
        while (line := _read_line()) is not None:
            if line == "/exit":
                break
            if line == "/reset":
                session.reset()
                click.echo("forgotten", err=True)
            elif line.startswith("/"):
                click.echo(_HELP, err=True)
            elif line.strip():
                _answer(session, line, sampling, quiet=quiet)
            _save(session, session_path)
        if session_path is not None and len(session.messages) != n_before:
            saved = session.save(session_path)
            has_answers = any(message["role"] == "assistant" for message in session.messages)
            if saved.recomputed_because and has_answers and not quiet:
                show(f"the cache was not saved: {saved.recomputed_because}", err=True)
    return 0


def _open(model: Any, path: Path | None, system: str | None, *, quiet: bool) -> Any:
    """The conversation in the file, or a new one, which is saved at once: that it cannot be is better known now."""
    if path is None or not path.exists() or (path.is_file() and not path.stat().st_size):
        session = model.session(system=system)
        if path is not None:
            session.save(path, cache=False)
        return session
    session = model.resume(path)
    if system is not None and {"role": "system", "content": system} not in session.messages[:1]:
        raise click.UsageError(f"--system: the conversation in {path} began without it; give another file")
    found = session.restored
    if not quiet:
        kept = f"{found.cache.n_tokens} tokens in the cache" if found.cache else "they are computed again: "
        why = found.recomputed_because or ""
        show(f"resumed {found.n_messages} messages with {found.model}; {kept}{why}", err=True)
    return session


def _save(session: Any, path: Path | None) -> None:
    from edgellm.errors import OutputError

    try:
        if path is not None:
            session.save(path, cache=False)
    except OutputError as err:  # there may be room again after the next answer; at the end it must succeed
        show(f"error: {err.message}\nhint: {err.hint}", err=True)


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


def _answer(session: Any, line: str, sampling: dict[str, Any], *, quiet: bool) -> None:
    from edgellm.cli.usage import usage_line
    from edgellm.errors import ContextOverflowError

    last = None
    try:
        with session.stream(line, **sampling) as turn:
            for piece in turn:
                last = piece
                show_answer(piece.text)
        click.echo()
    except KeyboardInterrupt:
        click.echo("\n(stopped)", err=True)
    except ContextOverflowError as err:
        show(f"error: {err.message}\nhint: /reset, or start again with a larger --context", err=True)
        return
    if last and last.usage and not quiet:
        click.echo(usage_line(last.usage, is_cut=last.finish_reason == "length"), err=True)

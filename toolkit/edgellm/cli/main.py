"""The group of all commands, and the one place where errors become words and exit codes."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import click

from edgellm import __version__
from edgellm.cli.common import printable
from edgellm.errors import EXIT_INTERRUPTED, EXIT_USAGE, EdgeLLMError, OutputError

# After Ctrl-C or SIGTERM; removing what was begun takes a second or two.
STUCK_S = 20

COMMANDS = {
    "demo": "The whole story on this machine, offline, with the embedded model.",
    "targets": "Devices that models can be converted for.",
    "convert": "Convert a model for a device.",
    "verify": "Check an artifact, and how far it is from its source.",
    "run": "Answer one prompt.",
    "chat": "Talk to a model.",
    "profile": "Measure tokens per second, memory and energy on this machine.",
    "pull": "Download a model from the hub.",
    "ls": "List the models downloaded from the hub.",
    "rm": "Remove downloads from the hub.",
    "cost": "What a million tokens cost, from a report and a tariff.",
    "doctor": "Check that this machine and this installation can run models.",
    "completion": "Print the shell completion script.",
}
HIDDEN = ("_tokenize", "_decode", "_measure", "_first_load", "_engine")


class _ReaderGoneError(Exception):
    """Nobody reads our standard output any more."""


class _StoppedError(Exception):
    """Ctrl-C."""


class LazyGroup(click.Group):
    """Imports a command's module only when that command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in HIDDEN:
            module = importlib.import_module("edgellm.cli.children")
            return module.command(cmd_name)  # type: ignore[no-any-return]
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"edgellm.cli.{cmd_name}")
        return module.command  # type: ignore[no-any-return]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = args and (args[0] in COMMANDS or args[0] in HIDDEN or args[0].startswith("-"))
        if args and not known and not ctx.resilient_parsing:  # resilient: while completing
            from edgellm.registry import unknown

            raise unknown(args[0], list(COMMANDS), "command")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as err:  # click would end with exit code 1
            raise _ReaderGoneError from err
        except KeyboardInterrupt as err:  # click would print an empty line
            raise _StoppedError from err

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, "--version", prog_name="edgellm")
def group() -> None:
    """Convert a language model for a device you own, run it there, and measure what a token costs."""


def run(argv: Sequence[str]) -> int:
    """Run a command line and return its exit code."""
    with contextlib.suppress(
        ValueError
    ):  # not in the main thread: an embedding program keeps its own handler
        signal.signal(signal.SIGTERM, _terminate)
        signal.signal(signal.SIGINT, _interrupt)
    as_json = "--json" in argv or (bool(argv) and argv[0] in HIDDEN)
    try:
        _check_text(argv)
        code = group.main(args=list(argv), prog_name="edgellm", standalone_mode=False, obj=list(argv))
        sys.stdout.flush()
    except EdgeLLMError as err:
        return _say(err, as_json=as_json)
    except click.exceptions.NoArgsIsHelpError as err:
        click.echo(err.ctx.get_help() if err.ctx else str(err), err=True)
        return EXIT_USAGE
    except click.UsageError as err:
        where = err.ctx.command_path if err.ctx else "edgellm"
        return _say(_usage(err.format_message(), f"see: {where} --help"), as_json=as_json)
    except (KeyboardInterrupt, _StoppedError, click.Abort):
        click.echo("\nstopped" if sys.stderr.isatty() else "stopped", err=True)  # a terminal shows ^C before
        return EXIT_INTERRUPTED
    except (BrokenPipeError, _ReaderGoneError):  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as err:
        return _say(OutputError(f"{err.filename or 'input/output'}: {err.strerror or err}"), as_json=as_json)
    except Exception as err:
        if not _lacks_memory(err):
            return _bug(err, as_json=as_json)
    else:
        return code if isinstance(code, int) else 0
    return _say(_out_of_memory(), as_json=as_json)  # here the frames that held the memory are gone


def _lacks_memory(err: Exception) -> bool:
    """Whether it is what Python, the loader of libraries or a pool of threads says where memory ran out."""
    said = str(err)
    return (
        isinstance(err, MemoryError)
        or (isinstance(err, ImportError) and "failed to map segment" in said)
        or (isinstance(err, RuntimeError) and "can't start new thread" in said)
    )


def _out_of_memory() -> EdgeLLMError:
    from edgellm.errors import ResourceError
    from edgellm.machine import headroom
    from edgellm.units import format_bytes

    hint = "use a smaller model or --context, fewer --jobs, or give it more memory"
    try:
        bound = headroom()
    except MemoryError:
        return ResourceError("out of memory", hint=hint)
    return ResourceError(
        f"out of memory: more was needed than {format_bytes(bound.limit_bytes)} ({bound.name}) allow",
        hint=hint,
    )


def _bug(err: Exception, *, as_json: bool) -> int:
    """The last resort: a bug of ours becomes one line too."""
    if os.environ.get("EDGELLM_DEBUG"):
        raise err
    bug = EdgeLLMError(
        f"internal error: {type(err).__name__}: {err}",
        hint="this is a bug; EDGELLM_DEBUG=1 shows where it happened",
    )
    return _say(bug, as_json=as_json)


def _usage(message: str, hint: str) -> EdgeLLMError:
    from edgellm.errors import SpecError

    return SpecError(message[:1].lower() + message[1:].rstrip("."), hint=hint)


def _say(err: EdgeLLMError, *, as_json: bool) -> int:
    if as_json:
        envelope: dict[str, Any] = {"type": type(err).__name__, "message": err.message, "hint": err.hint}
        if table := getattr(err, "table", None):
            envelope["table"] = table
        click.echo(json.dumps({"error": {**envelope, "exit_code": err.exit_code}}), err=True)
    else:
        click.echo(f"error: {printable(err.message)}", err=True)
        for line in getattr(err, "table", ()):
            click.echo(f"  {printable(line)}", err=True)
        if err.hint:
            click.echo(f"hint: {printable(err.hint)}", err=True)
    return err.exit_code


def _check_text(argv: Sequence[str]) -> None:
    """Names and prompts go into JSON files and to tokenizers, which know only Unicode."""
    for argument in argv:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise _usage(f"argument is not UTF-8: {argument}", "give the file or text in UTF-8") from None


def _terminate(number: int, _: FrameType | None) -> None:
    _end_within(STUCK_S, 128 + number)
    raise SystemExit(128 + number)


def _interrupt(_number: int, _: FrameType | None) -> None:
    _end_within(STUCK_S, EXIT_INTERRUPTED)
    raise KeyboardInterrupt


def _end_within(seconds: int, code: int) -> None:
    """Leave the process after this time, whatever it waits for.

    An exception that strikes inside the standard library can leave a lock taken, for which another thread then waits
    for ever. What lies half-written is in staging directories, which the next run sweeps.
    """
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, lambda *_: os._exit(code))
        signal.alarm(seconds)

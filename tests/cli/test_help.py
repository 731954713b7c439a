"""Help and usage errors; and that neither imports anything heavy."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from edgellm.cli.main import COMMANDS, HIDDEN, group
from tests.support.cli import edgellm, refused, succeed

HEAVY = (
    "llama_cpp", "onnxruntime", "torch", "transformers", "dask", "tokenizers", "jinja2", "rich", "gguf", "huggingface_hub",
    "httpx2",
)  # fmt: skip


def imported_by(code: str) -> set[str]:
    program = f"import sys\n{code}\nprint(','.join(sorted(sys.modules)), file=sys.__stdout__)"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split(","))


def command(name: str) -> click.Command:
    found = group.get_command(click.Context(group), name)
    assert found is not None
    return found


def test_help_lists_every_command_and_no_hidden_one() -> None:
    text = succeed("--help")
    for name, words in COMMANDS.items():
        assert f"  {name} " in text
        assert words.split()[0] in text
    assert not any(name in text for name in HIDDEN)
    assert succeed("-h") == text


@pytest.mark.parametrize("name", COMMANDS)
def test_the_short_help_is_the_first_line_of_the_long_one(name: str) -> None:
    first = (command(name).help or "").strip().splitlines()[0]
    # An upper-case argument name stands for what the short help calls by its article.
    assert first.replace("MODEL", "a model").replace("one PROMPT", "one prompt").replace("a REPORT of `edgellm profile`", "a report").partition(", read")[0].rstrip(".") == COMMANDS[name].rstrip(".")  # fmt: skip  # noqa: E501


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_subcommand_has_help(name: str) -> None:
    found = command(name)
    subcommands = list(found.commands) if isinstance(found, click.Group) else []
    for path in ([name], *([name, sub] for sub in subcommands)):
        done = edgellm(*path, "--help")
        assert done.returncode == 0
        assert done.stdout.startswith(f"Usage: edgellm {' '.join(path)}")
        assert done.stderr == ""


def test_every_option_is_explained() -> None:
    silent = []
    for name in COMMANDS:
        found = command(name)
        for each in [found, *(found.commands.values() if isinstance(found, click.Group) else [])]:
            silent += [
                f"{name} {p.opts[0]}"
                for p in each.params
                if isinstance(p, click.Option) and not (p.help or p.show_default)
            ]
    assert silent == []


def test_version_is_the_packages() -> None:
    import edgellm as package

    assert package.__version__ in succeed("--version")


def test_no_arguments_show_the_help_and_are_a_usage_error() -> None:
    done = edgellm()
    assert done.returncode == 64
    assert "Usage: edgellm" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("typed", "meant"), [("convrt", "convert"), ("profil", "profile"), ("dctor", "doctor")]
)
def test_an_unknown_command_names_the_nearest(typed: str, meant: str) -> None:
    error, hint = refused(64, typed)
    assert typed in error
    assert f"did you mean '{meant}'" in hint


def test_an_unknown_subcommand_is_a_usage_error() -> None:
    error, hint = refused(64, "targets", "shwo", "rpi5")
    assert "shwo" in error
    assert "edgellm targets --help" in hint


def test_an_unknown_option_names_the_nearest() -> None:
    error, hint = refused(64, "convert", "x", "--qunat", "Q8_0")
    assert "--qunat" in error
    assert "--quant" in error + hint
    assert "edgellm convert --help" in hint


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"], ["convert"], ["cost", "x"], ["run", "m", "p", "extra"], ["run", "m", "p", "--max-tokens", "0"],
        ["run", "m", "p", "--temperature", "hot"], ["run", "m", "p", "--temperature", "nan"],
        ["convert", "m", "--verify", "maybe"], ["profile", "m", "--reps", "0"], ["completion", "csh"],
        ["run", "m", "p", "--seed", "-1"], ["run", "m", "p", "--top-k", "9999999"],
        ["cost", "x", "--tariff", "y", "--watts", "0"],
        ["cost", "x", "--tariff", "y", "--watts", "inf"], ["convert", "m", "--max-kl", "nan"],
        ["run", "m", "p", "--stop", ""], ["chat", "m", "--top-p", "nan"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage_is_exit_64_and_one_line(arguments: list[str]) -> None:
    refused(64, *arguments)


def test_help_imports_nothing_heavy() -> None:
    for code in ("import edgellm", "from edgellm.cli.main import run\nrun(['--help'])"):
        found = imported_by(code)
        assert not found.intersection((*HEAVY, "numpy", "msgspec"))


def test_a_command_that_needs_no_model_loads_no_engine() -> None:
    for arguments in (
        ["targets", "list"],
        ["targets", "show", "rpi5"],
        ["completion", "bash"],
        ["run", "--help"],
    ):
        found = imported_by(f"from edgellm.cli.main import run\nassert run({arguments!r}) == 0")
        assert not found.intersection(("llama_cpp", "onnxruntime", "torch", "transformers", "dask"))


def test_a_run_imports_only_what_it_needs_before_the_first_token() -> None:
    ask = ["run", "builtin:smollm2", "Hi", "--raw", "--max-tokens", "1", "--threads", "1", "--quiet"]
    found = imported_by(f"from edgellm.cli.main import run\nassert run({ask!r}) == 0")
    assert "edgellm.native.llama_batcher" in found
    unneeded = (
        "asyncio", "diskcache", "edgellm.convert.pipeline", "edgellm.hub.snapshot", "edgellm.runtime.isolate", "gguf",
        "jinja2", "llama_cpp.llama", "llguidance", "rich", "tokenizers",
    )  # fmt: skip
    assert found.intersection(unneeded) == set()

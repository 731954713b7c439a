"""Shell completion: a script per shell, and answers for what was typed so far."""

from __future__ import annotations

import pytest

from edgellm.cli.main import COMMANDS, HIDDEN
from tests.support.cli import edgellm, refused, succeed


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(shell: str) -> None:
    script = succeed("completion", shell)
    assert "_EDGELLM_COMPLETE" in script
    assert f"{shell}_complete" in script


def complete(words: str) -> set[str]:
    env = {"_EDGELLM_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    return {line.partition(",")[2] for line in succeed(**env).splitlines()}


def test_commands_are_completed_and_hidden_ones_are_not() -> None:
    assert complete("edgellm ") == set(COMMANDS)
    assert complete("edgellm co") == {"convert", "cost", "completion"}
    assert not complete("edgellm _").intersection(HIDDEN)


def test_options_and_choices_are_completed() -> None:
    assert "--quant" in complete("edgellm convert --q")
    assert complete("edgellm convert m --verify ") == {"none", "quick", "full"}
    assert complete("edgellm targets ") == {"list", "show", "detect"}


def test_a_word_that_is_no_command_completes_to_nothing() -> None:
    env = {"_EDGELLM_COMPLETE": "bash_complete", "COMP_WORDS": "edgellm nothing --", "COMP_CWORD": "2"}
    done = edgellm(**env)
    assert done.stderr == ""
    assert "--quant" not in done.stdout


def test_an_unknown_shell_is_a_usage_error() -> None:
    refused(64, "completion", "csh")

"""`edgellm completion`"""

from __future__ import annotations

import click


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the shell completion script.

    \b
    bash: eval "$(edgellm completion bash)"          in ~/.bashrc
    zsh:  eval "$(edgellm completion zsh)"           in ~/.zshrc
    fish: edgellm completion fish > ~/.config/fish/completions/edgellm.fish
    """
    from click.shell_completion import get_completion_class

    from edgellm.cli.main import group

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(group, {}, "edgellm", "_EDGELLM_COMPLETE").source())

"""The verb `oncue completion`: what a shell has to know to complete commands, options and names of queues."""

from __future__ import annotations

import os
from pathlib import Path

import click

from oncue.cli.failure import Failed
from oncue.cli.group import Verb

SHELLS = ("bash", "zsh", "fish")
_WHERE = {
    "bash": 'eval "$(oncue completion bash)"            # in ~/.bashrc',
    "zsh": 'eval "$(oncue completion zsh)"             # in ~/.zshrc',
    "fish": "oncue completion fish | source            # in ~/.config/fish/config.fish",
}


@click.command(cls=Verb, epilog="\b\n" + "\n".join(_WHERE.values()))
@click.argument("shell", required=False, type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str | None) -> None:
    """Print the completion script for SHELL (without it: for the shell that SHELL in the environment names)."""
    from click.shell_completion import get_completion_class

    shell = shell or Path(os.environ.get("SHELL", "")).name
    found = get_completion_class(shell) if shell in SHELLS else None
    if found is None:
        raise Failed(f"no completion for shell {shell!r}", hint=f"oncue completion {'|'.join(SHELLS)}", code=2)
    root = context.find_root().command
    click.echo(found(root, {}, "oncue", "_ONCUE_COMPLETE").source())

"""``completion``: the script that makes a shell complete alknet's commands."""

import click

from alknet.errors import UsageError

__all__ = ["completion"]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a completion script for SHELL.

    \b
    bash: source <(alknet completion bash)
    zsh:  source <(alknet completion zsh)
    fish: alknet completion fish | source
    """
    from click.shell_completion import get_completion_class

    from alknet.cli.app import app

    kind = get_completion_class(shell)
    if kind is None:
        raise UsageError(f"there is no completion for {shell}")
    click.echo(kind(app, {}, "alknet", "_ALKNET_COMPLETE").source())

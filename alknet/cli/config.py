"""``config``: check, show and reload the configuration."""

import json

import click

from alknet.cli.app import Invocation, pass_invocation
from alknet.cli.client import ask_node
from alknet.cli.output import print_json

__all__ = ["config"]


@click.group()
def config() -> None:
    """The configuration on disk, and telling the running node to take it."""


@config.command()
@pass_invocation
def check(invocation: Invocation) -> None:
    """Check the files on disk, the certificate among them; exits 7 and says what is wrong where."""
    from alknet.certificates import load_certificate
    from alknet.config.certificate import tls_files
    from alknet.config.load import load, revision

    settings = load(invocation.home)
    if settings.tls.mode == "files":
        load_certificate(*tls_files(invocation.home, settings.tls))
    if invocation.json:
        print_json({"ok": True, "revision": revision(settings), "peers": len(settings.peers)})
    else:
        click.echo(f"ok: revision {revision(settings)}, {len(settings.peers)} peers")


@config.command()
@pass_invocation
def show(invocation: Invocation) -> None:
    """The whole configuration on disk, defaults included."""
    import tomlkit

    from alknet.config.load import load

    settings = load(invocation.home)
    if invocation.json:
        print_json(settings.model_dump(mode="json"))
    else:
        click.echo(tomlkit.dumps(settings.model_dump(mode="json", exclude_none=True)), nl=False)


@config.command()
def schema() -> None:
    """Print the JSON Schema of the configuration.

    It has every key with its meaning and whether a change of it needs a restart.
    """
    from alknet.config.model import Settings

    click.echo(json.dumps(Settings.model_json_schema(), indent=2))


@config.command()
@pass_invocation
def reload(invocation: Invocation) -> None:
    """Have the running node read its files again; a wrong configuration changes nothing."""
    report = ask_node(invocation, "node/reload")
    if invocation.json:
        print_json(report)
        return
    live = [key for key in report["changed"] if key not in report["needs_restart"]]
    if live:
        click.echo(f"changed: {', '.join(live)}")
    else:
        click.echo(f"nothing to change: revision {report['revision']} is in force")
    if report["needs_restart"]:
        click.echo(f"needs a restart: {', '.join(report['needs_restart'])}")

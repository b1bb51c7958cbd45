"""The command tree, what all commands share, and how errors are shown."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import click

from alknet._version import __version__
from alknet.errors import AlknetError, ConfigError
from alknet.logs import printable

__all__ = ["COMMANDS", "Invocation", "app", "common_options", "jump_option", "pass_invocation", "run"]

COMMANDS: Final = {
    # name: (module, help shown in the list); the module's attribute `command` is the click command
    "up": (
        "alknet.cli.daemon:up",
        "Make a home if there is none, run the node, print how to enter it.",
    ),
    "init": ("alknet.cli.daemon:init", "Make a home: keys, configuration, the peer 'owner'."),
    "serve": ("alknet.cli.daemon:serve", "Run the node in the foreground."),
    "id": ("alknet.cli.daemon:identity", "This node's keys and addresses, ready to paste."),
    "status": ("alknet.cli.running:status", "The running node: listeners, connections, peers."),
    "sessions": ("alknet.cli.running:sessions", "Live connections; end one."),
    "peer": ("alknet.cli.peers:peer", "Add, show, disable and remove peers."),
    "token": ("alknet.cli.tokens:token", "Make, list and revoke bearer tokens."),
    "ca": ("alknet.cli.ca:ca", "Sign user and host certificates."),
    "can": ("alknet.cli.running:can", "May this peer do that? And which rule says so."),
    "config": ("alknet.cli.config:config", "Check, show and reload the configuration."),
    "audit": ("alknet.cli.audit:audit", "Read and verify the audit log."),
    "ssh": ("alknet.cli.ssh:ssh", "Run a command or a shell on a peer."),
    "cp": ("alknet.cli.cp:cp", "Copy files and directories from and to a peer."),
    "sftp": ("alknet.cli.sftp:sftp", "A peer's files, command by command."),
    "forward": ("alknet.cli.forward:forward", "Keep ports and sockets forwarded."),
    "ssh-config": ("alknet.cli.ssh_config:ssh_config", "Host blocks for stock ssh, scp, rsync and git."),
    "proxy": ("alknet.cli.proxy:proxy", "A peer's SSH door on stdin and stdout, for stock ssh."),
    "ping": ("alknet.cli.ping:ping", "Reach a peer: over what, how fast, and is it the right one."),
    "ops": ("alknet.cli.ops:ops", "The operations that you may call on a peer, and how."),
    "call": ("alknet.cli.call:call", "Call an operation of a peer, or subscribe to it."),
    "openapi": ("alknet.cli.openapi:openapi", "The OpenAPI document of what you may call."),
    "mcp": ("alknet.cli.mcp:mcp", "The operations as tools, for MCP clients."),
    "completion": ("alknet.cli.completion:completion", "Completion for a shell."),
}

EPILOG: Final = (
    "Exit codes: 0 ok; 1 failed; 2 usage; 3 denied; 4 not found; 5 unavailable or timeout; 6 invalid input;"
    " 7 configuration or start-up."
)


@dataclass
class Invocation:
    """The options that every command takes, before or after its name."""

    home_path: Path | None = None
    json: bool = False
    debug: bool = False
    identity: Path | None = None
    jump: str | None = None
    """The node through which PEER is reached, for commands that reach one."""

    @property
    def home(self) -> Any:
        """The `Home` that the command works on."""
        from alknet.config.home import Home, default_home

        return Home((self.home_path or default_home()).absolute())


pass_invocation = click.make_pass_decorator(Invocation, ensure=True)


def _set(name: str) -> Any:
    def callback(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        if value:
            setattr(context.ensure_object(Invocation), name, value)
        return value

    return callback


def common_options() -> list[click.Parameter]:
    """--home, --json, --identity and --debug, as every command has them."""
    path = click.Path(path_type=Path, readable=False)  # whether it can be read is said where it is read

    def option(*names: str, to: str, **keywords: Any) -> click.Option:
        return click.Option(names, expose_value=False, callback=_set(to), **keywords)

    return [
        option("--home", to="home_path", type=path, metavar="DIR", help="The node's home."),
        option("--json", to="json", is_flag=True, help="Print JSON for programs."),
        option(
            "--identity", to="identity", type=path, metavar="FILE",
            help="Private key to prove who you are with; else keys/owner, else ssh-agent.",
        ),
        option("--debug", to="debug", is_flag=True, help="Show a traceback with an error."),
    ]  # fmt: skip


def jump_option() -> click.Option:
    """-J, as every command has it that reaches a peer."""
    return click.Option(
        ("-J", "--jump"),
        expose_value=False,
        callback=_set("jump"),
        metavar="HUB",
        help="Reach PEER through HUB, a node that it is connected to.",
    )


class _Commands(click.Group):
    """Loads a subcommand when it is called; lists all from the table alone."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        _add_common(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name = click.utils.make_str(args[0])
        if name not in COMMANDS and not name.startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(name, COMMANDS, n=1)
            meant = f" Did you mean '{near[0]}'?" if near else ""
            raise click.UsageError(f"No such command {name!r}.{meant}", ctx)
        return super().resolve_command(ctx, args)


def _add_common(command: click.Command) -> None:
    """Give `command` and everything below it the common options, once."""
    have = {option for parameter in command.params for option in parameter.opts}
    command.params += [option for option in common_options() if option.opts[0] not in have]
    if isinstance(command, click.Group):
        for child in command.commands.values():
            _add_common(child)


@click.group(
    cls=_Commands,
    params=common_options(),
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="alknet")
def app() -> None:
    """One port, one identity, one policy: a node that people and programs reach by ssh, operation calls and HTTP."""


def run(argv: list[str] | None) -> int:
    """Run the command line and turn every error into one or two lines and an exit code."""
    invocation = Invocation()
    try:
        result = app.main(argv, prog_name="alknet", standalone_mode=False, obj=invocation)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except click.exceptions.NoArgsIsHelpError as exc:
        click.echo(exc.format_message(), err=True)
        return 2
    except SystemExit:
        return 0  # click's answer to a reader (head, less) that has seen enough
    except click.UsageError as exc:
        where = exc.ctx.command_path if exc.ctx is not None else "alknet"
        return _fail(exc.format_message(), f"see '{where} --help'", 2)
    except click.ClickException as exc:
        return _fail(exc.format_message(), "", 2)
    except (click.Abort, KeyboardInterrupt):
        return 130
    except AlknetError as exc:
        if invocation.debug:
            raise
        text, denial_id = str(exc), getattr(exc, "denial_id", None)
        if denial_id and denial_id not in text:
            text += f" ({denial_id})"
        return _fail(text, exc.hint, exc.exit_code)
    except OSError as exc:
        if invocation.debug or exc.filename is None:
            raise
        return _fail(f"{exc.filename}: {exc.strerror}", "", ConfigError.exit_code)
    except Exception as exc:
        if invocation.debug:
            raise
        return _fail(f"unexpected {type(exc).__name__}: {exc}", "--debug shows where; please report it", 1)


def _fail(message: str, hint: str, code: int) -> int:
    lines = [printable(line) for line in message.splitlines()] or ["failed"]
    click.echo(f"alknet: {lines[0]}", err=True)
    for line in lines[1:]:
        click.echo(f"        {line}", err=True)
    if hint:
        click.echo(f"  hint: {printable(hint)}", err=True)
    return code

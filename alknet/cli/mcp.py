"""``mcp``: a node's operations as tools for MCP clients, and what to write into the configuration of such clients."""

import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from alknet.cli.app import Invocation, pass_invocation
from alknet.cli.client import accept_new_option, accepter, call_options, open_peer, run_async
from alknet.cli.values import to_json
from alknet.errors import AlknetError

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

__all__ = ["mcp"]

DEFAULT_MAX_TOOLS: Final = 100
TOKEN: Final = "TOKEN"
"""What stands for the token in a configuration."""
TOKEN_FILE: Final = "alknet.token-file"

Server = Mapping[str, Any]


def _standard(stdio: Server, http: Server) -> tuple[Any, Any]:
    return {"mcpServers": {"alknet": stdio}}, {"mcpServers": {"alknet": http}}


def _claude_code(stdio: Server, http: Server) -> tuple[Any, Any]:
    return {"mcpServers": {"alknet": {"type": "stdio", **stdio}}}, {"mcpServers": {"alknet": {"type": "http", **http}}}


def _claude_desktop(stdio: Server, http: Server) -> tuple[Any, Any]:
    return {"mcpServers": {"alknet": stdio}}, None


def _vscode(stdio: Server, http: Server) -> tuple[Any, Any]:
    return {"servers": {"alknet": {"type": "stdio", **stdio}}}, {"servers": {"alknet": {"type": "http", **http}}}


CLIENTS: Final[Mapping[str, tuple[str, str, Callable[[Server, Server], tuple[Any, Any]]]]] = {
    # client: (its name, the file that it reads, what stands in there)
    "claude-desktop": (
        "Claude Desktop",
        "claude_desktop_config.json (Settings, Developer, Edit Config)",
        _claude_desktop,
    ),
    "claude-code": ("Claude Code", ".mcp.json in the project", _claude_code),
    "cursor": ("Cursor", "~/.cursor/mcp.json, or .cursor/mcp.json in the project", _standard),
    "vscode": ("VS Code", ".vscode/mcp.json in the workspace", _vscode),
    "generic": ("other clients", "wherever they read their servers from", _standard),
}


@click.command()
@call_options
@accept_new_option
@click.option(
    "--config",
    "client",
    is_flag=False,
    flag_value="all",
    type=click.Choice([*CLIENTS, "all"]),
    help="Print what to write into a client's configuration instead (all clients, if none is named).",
)
@click.option("--gateway", is_flag=True, help="Show only the tools search, schema, call and batch.")
@click.option(
    "--max-tools",
    type=click.IntRange(0, 10_000),
    default=DEFAULT_MAX_TOOLS,
    show_default=True,
    help="Above so many operations, show these four instead of one tool for each.",
)
@click.argument("peer", default=".")
@pass_invocation
def mcp(
    invocation: Invocation,
    carrier: str,
    token: str | None,
    verbose: bool,
    accept_new: bool,
    client: str | None,
    gateway: bool,
    max_tools: int,
    peer: str,
) -> None:
    """Speak MCP on stdin and stdout for PEER (the local node if none is given): a tool for each operation.

    MCP clients start this themselves. What they read is printed by --config, together with the form for clients that
    reach the node over HTTP; what an agent may do is then what its token may.

    \b
    alknet mcp --config claude-code
    alknet mcp hub --config
    """
    options = _options(carrier, accept_new=accept_new, gateway=gateway, max_tools=max_tools)
    if client is not None:
        return _print_config(invocation, peer, client, options)
    from alknet.gateway.mcp.bridge import serve_stdio

    # stdin is read in a thread, which nothing but its end interrupts: Ctrl-C is to end the process as it is.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    def connect() -> "AbstractAsyncContextManager[Any]":
        # Nobody can be asked: stdin is the client's. A host that is not known is accepted with --accept-new or not.
        who = accepter(yes=True) if accept_new else None
        return open_peer(invocation, peer, carrier=carrier, token=token, verbose=verbose, accept_new=who)

    return run_async(lambda: serve_stdio(connect, max_tools=max_tools, is_general=gateway))


def _note_token_file(command: click.Command) -> None:
    """The token is for this command, its file's name for the configuration that it prints."""
    (option,) = [one for one in command.params if one.name == "token"]
    read = option.callback

    def note(context: click.Context, parameter: click.Parameter, file: Any) -> Any:
        if file is not None:
            if file is sys.stdin:
                raise click.UsageError("stdin is the MCP client's: give the token in a file", context)
            context.meta[TOKEN_FILE] = str(Path(file.name).absolute())
        return read(context, parameter, file) if read is not None else file

    option.callback = note


_note_token_file(mcp)


def _options(carrier: str, *, accept_new: bool, gateway: bool, max_tools: int) -> list[str]:
    """This command's own options, as they stand in a configuration."""
    token_file = click.get_current_context().meta.get(TOKEN_FILE)
    return [
        *(["--token-file", token_file] if token_file is not None else []),
        *(["--carrier", carrier] if carrier != "auto" else []),
        *(["--accept-new"] if accept_new else []),
        *(["--gateway"] if gateway else []),
        *(["--max-tools", str(max_tools)] if max_tools != DEFAULT_MAX_TOOLS else []),
    ]


def _print_config(invocation: Invocation, peer: str, client: str, options: list[str]) -> None:
    command = [*_command(), *_arguments(invocation, peer, options)]
    stdio = {"command": command[0], "args": command[1:]}
    http = {"url": _url(invocation, peer) + ("/gateway" if "--gateway" in options else ""), "headers": _headers()}
    chosen = list(CLIENTS) if client == "all" else [client]
    made = {name: CLIENTS[name][2](stdio, http) for name in chosen}
    if invocation.json:
        found = {name: {"stdio": local, "http": remote} for name, (local, remote) in made.items()}
        click.echo(to_json(found if client == "all" else found[client], escaped=True))
        return
    for name in chosen:
        title, file, _ = CLIENTS[name]
        local, remote = made[name]
        click.echo(f"# {title}: {file}")
        who = "whom the token is of" if "--token-file" in options else "you"
        click.echo(f"# The client starts a process, which calls as {who}:")
        click.echo(to_json(local, indent=2))
        if remote is None:
            click.echo("# It reaches servers over HTTP only through its own service; take the form above.")
        else:
            click.echo(f"# Or over HTTP, as whom {TOKEN} is of:")
            click.echo(to_json(remote, indent=2))
        click.echo()
    click.echo(f"# {TOKEN} is what this prints, once; it may do what its scopes and those of its peer allow:")
    click.echo("#   alknet token create --peer NAME --scope 'fs:read' --description 'an agent'")


def _command() -> list[str]:
    """This program, as it is found by a client that has another PATH."""
    beside = Path(sys.executable).with_name("alknet")
    found = str(beside) if beside.exists() else shutil.which("alknet")
    return [str(Path(found).absolute())] if found is not None else [sys.executable, "-m", "alknet"]


def _arguments(invocation: Invocation, peer: str, options: list[str]) -> list[str]:
    common: list[str] = []
    for name, path in (("--home", invocation.home_path), ("--identity", invocation.identity)):
        if path is not None:
            common += [name, str(path.absolute())]
    jump = [] if invocation.jump is None else ["--jump", invocation.jump]
    return [*common, "mcp", *jump, *options, *([peer] if peer != "." else [])]


def _url(invocation: Invocation, peer: str) -> str:
    """Where the node speaks MCP over HTTP, as far as is known here."""
    from alknet.destination import find_destination

    try:
        to = find_destination(invocation.home, peer, jump=invocation.jump)
    except AlknetError:
        return "https://HOST:PORT/mcp"  # no node runs, so nobody knows its port
    if to.through is not None:
        to = to.through.hub  # it has the tools that it exposes
    host, port = to.addresses[0]
    return f"{'http' if to.is_local else 'https'}://{f'[{host}]' if ':' in host else host}:{port}/mcp"


def _headers() -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKEN}"}

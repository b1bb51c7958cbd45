"""Reaching a node from the command line: whom a PEER means, over what, and asking its operations."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from alknet.cli.app import Invocation, jump_option
from alknet.errors import ConfigError
from alknet.logs import printable

if TYPE_CHECKING:
    from alknet.client import Peer
    from alknet.config.home import Home
    from alknet.config.model import Settings
    from alknet.ssh.client import Target

__all__ = [
    "CANNOT_CONNECT",
    "accept_new_option",
    "accepter",
    "ask_node",
    "bulk_first",
    "call_options",
    "carrier_options",
    "find_target",
    "node_is_running",
    "open_peer",
    "reachable_addresses",
    "reporter",
    "run_async",
]

T = TypeVar("T")
MAX_TOKEN_CHARS: Final = 1024
CANNOT_CONNECT: Final = 255
"""What a command exits with, as ssh does, that did not get as far as the far side."""


def run_async(main: Callable[[], Awaitable[T]]) -> T:
    """Run a coroutine function to its end."""

    async def call() -> T:
        return await main()

    return asyncio.run(call())


def reachable_addresses(home: "Home", settings: "Settings") -> tuple[tuple[str, int], ...]:
    """Where other machines reach the local node: its listen addresses, the host's name for "every address"."""
    from alknet.lock import find_running

    running = find_running(home.lock)
    if running is not None:
        addresses = running.addresses
    else:
        addresses = tuple((host, a.port) for a in settings.node.listen for host in a.hosts())
    name = os.uname().nodename
    return tuple(dict.fromkeys((name if host in ("0.0.0.0", "::") else host, port) for host, port in addresses))


def node_is_running(home: "Home") -> bool:
    from alknet.lock import find_running

    return find_running(home.lock) is not None


def find_target(invocation: Invocation, peer: str, *, accept_new: Callable[[Any], bool] | None = None) -> "Target":
    """Whom PEER means to the SSH client: where it is, who the user is, and what proves that it is PEER."""
    from dataclasses import replace

    from alknet.destination import find_destination, private_key, ssh_target

    home = invocation.home
    to = find_destination(home, peer, jump=invocation.jump)
    target = ssh_target(home, to, private_key(home, invocation.identity), accept_new)
    return replace(target, may_ask=accept_new is _ask_user)


@asynccontextmanager
async def open_peer(
    invocation: Invocation,
    peer: str,
    *,
    carrier: str = "auto",
    token: str | None = None,
    verbose: bool = False,
    accept_new: Callable[[Any], bool] | None = None,
) -> "AsyncIterator[Peer]":
    """A connection for operation calls to PEER."""
    from alknet.client import connect

    async with connect(
        peer,
        via=invocation.jump,
        home=invocation.home.path,
        identity=invocation.identity,
        token=token,
        carrier=carrier,
        accept_new=accept_new,
        report=reporter(verbose),
    ) as opened:
        yield opened


def carrier_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--carrier and -v, as every command has them that dials; the command gets `carriers` and `verbose`."""

    def chosen(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
        return ("quic", "tls") if value == "auto" else (value,)

    for option in (
        _jump,
        click.option("-v", "--verbose", is_flag=True, help="Say on stderr how the peer is reached."),
        click.option(
            "--carrier",
            "carriers",
            type=click.Choice(["auto", "quic", "tls"]),
            default="auto",
            callback=chosen,
            help="What to reach the peer over; auto races QUIC and TLS.",
        ),
    ):
        command = option(command)
    return command


def bulk_first(carriers: tuple[str, ...]) -> tuple[str, ...]:
    """The carriers in the order for commands that are measured by bytes: over TLS where both are wanted and it answers,
    which moves several times as much as QUIC."""
    return tuple(sorted(carriers, key=("tls", "quic").index))


def call_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--carrier, --token-file and -v, as every command has them that calls operations; the command gets `carrier`,
    `token` and `verbose`."""

    def read(context: click.Context, parameter: click.Parameter, file: Any) -> str | None:
        if file is None:
            return None
        token = str(file.read(MAX_TOKEN_CHARS)).strip()
        if not token:
            raise click.BadParameter("there is no token in it", context, parameter)
        return token

    for option in (
        _jump,
        click.option("-v", "--verbose", is_flag=True, help="Say on stderr how the peer is reached."),
        click.option(
            "--token-file",
            "token",
            type=click.File("r"),
            callback=read,
            help="Prove who you are with the token in this file (- is stdin) instead of a key.",
        ),
        click.option(
            "--carrier",
            type=click.Choice(["auto", "quic", "tls", "ssh"]),
            default="auto",
            help="What to reach the peer over; auto races QUIC and TLS, and takes TLS to the local node.",
        ),
    ):
        command = option(command)
    return command


def _jump(command: Any) -> Any:
    """Add -J, as click's own decorators add options."""
    option = jump_option()
    if isinstance(command, click.Command):
        command.params.append(option)
    else:
        command.__dict__.setdefault("__click_params__", []).append(option)
    return command


def accept_new_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--accept-new, as every command has it that checks host keys."""
    return click.option(
        "--accept-new", is_flag=True, help="Trust a host that is not known yet, and remember its key in known_nodes."
    )(command)


def accepter(*, yes: bool) -> Callable[[Any], bool] | None:
    """Who decides about a host that nobody knows: --accept-new, else the user, else (None) nobody."""
    if yes:
        return _accept
    try:
        can_ask = os.isatty(0) and os.isatty(2)
    except OSError:
        can_ask = False
    return _ask_user if can_ask else None


def _accept(new: Any) -> bool:
    click.echo(f"alknet: {printable(str(new))} It is remembered.", err=True)
    return True


def _ask_user(new: Any) -> bool:
    click.echo(f"alknet: {printable(str(new))}", err=True)
    question = "Is that right? yes, no, or the fingerprint that it should be"
    answer = click.prompt(question, prompt_suffix=": ", default="no", show_default=False, err=True)
    return answer == "yes" or answer == new.key.fingerprint


def reporter(verbose: bool) -> Callable[[str], None]:
    """Where the dialer's reports go."""
    return (lambda line: click.echo(f"alknet: {printable(line)}", err=True)) if verbose else (lambda line: None)


def ask_node(invocation: Invocation, operation: str, values: dict[str, Any] | None = None) -> Any:
    """Call an operation of the running local node; raises `CallError`, and `UnavailableError` when none runs."""
    from alknet.call.errors import CallError

    async def main() -> Any:
        async with open_peer(invocation, ".") as peer:
            return await peer.call(operation, values or {})

    try:
        return run_async(main)
    except CallError as exc:
        if exc.code != "CONFIG_INVALID":
            raise
        hint = exc.details.get("hint", "") if isinstance(exc.details, dict) else ""
        raise ConfigError(str(exc), hint=str(hint)) from exc

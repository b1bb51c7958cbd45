"""Reaching a node from the command line: whom a PEER means, and asking the running local node."""

import asyncio
import getpass
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from alknet.cli.app import Invocation
from alknet.errors import (
    AlknetError,
    DeniedError,
    InvalidInputError,
    NotFoundError,
    RemoteError,
    UnavailableError,
)
from alknet.keys import check_private
from alknet.logs import printable

if TYPE_CHECKING:
    from alknet.config.home import Home
    from alknet.config.model import Settings
    from alknet.keys import PublicKey
    from alknet.ssh.client import Target
    from alknet.ssh.trust import NewHost

__all__ = [
    "CANNOT_CONNECT",
    "LOCAL",
    "Destination",
    "accept_new_option",
    "accepter",
    "ask_node",
    "carrier_options",
    "find_destination",
    "find_target",
    "node_is_running",
    "reachable_addresses",
    "reporter",
    "run_async",
]

T = TypeVar("T")
LOCAL: Final = "."
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


@dataclass(frozen=True, slots=True)
class Destination:
    """What PEER means: where it is, as whom to log in, and how it is known."""

    addresses: tuple[tuple[str, int], ...]
    user: str
    host_key: "PublicKey | None"
    """The only one that it may have."""
    host_key_source: str
    """Where that stands, for messages."""
    name: str
    """For messages."""
    is_local: bool = False


def find_destination(invocation: Invocation, peer: str) -> Destination:
    """What PEER means: ``.`` the local node, a configured peer, or ``[user@]host[:port]``."""
    from alknet.config.addresses import split_host_port
    from alknet.config.load import load
    from alknet.config.model import DEFAULT_PORT

    home = invocation.home
    user, _, rest = peer.rpartition("@")
    if rest == LOCAL:
        return _local_node(invocation, user or "owner")
    settings = load(home) if home.exists else None
    entry = next((p for p in settings.peers if p.id == rest), None) if settings else None
    name, user = (f"peer {rest!r}" if entry else rest), user or getpass.getuser()
    if entry is not None and not entry.addresses:
        raise UnavailableError(
            f"{name} has no address to reach it at",
            hint=f'add addresses = ["host:port"] to {home.peer(rest)}',
        )
    try:
        texts = entry.addresses if entry is not None else (rest,)
        addresses = tuple(split_host_port(text, default_port=DEFAULT_PORT) for text in texts)
    except ValueError as exc:
        raise InvalidInputError(str(exc)) from None
    if not all(host for host, _ in addresses):
        raise NotFoundError(f"{peer!r} is neither a configured peer nor a host")
    return Destination(addresses, user, entry.host_key if entry else None, str(home.peer(rest)), name)


def find_target(
    invocation: Invocation, peer: str, *, accept_new: "Callable[[NewHost], bool] | None" = None
) -> "Target":
    """`find_destination`, and who the user is and what proves that it is PEER."""
    return _target(invocation, find_destination(invocation, peer), accept_new)


def _target(invocation: Invocation, to: Destination, accept_new: "Callable[[NewHost], bool] | None" = None) -> "Target":
    from alknet.known_nodes import KnownNodes
    from alknet.ssh.client import Target
    from alknet.ssh.trust import HostTrust

    trust = HostTrust(
        pin=to.host_key,
        pin_source=to.host_key_source,
        known_nodes=KnownNodes(invocation.home.path / "known_nodes"),
        use_known_hosts=not to.is_local,
        accept_new=accept_new,
    )
    return Target(to.addresses, to.user, _identity(invocation), trust, to.name, may_ask=accept_new is _ask_user)


def carrier_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--carrier and -v, as every command has them that dials; the command gets `carriers` and `verbose`."""

    def chosen(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
        return ("quic", "tls") if value == "auto" else (value,)

    for option in (
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


def accept_new_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--accept-new, as every command has it that checks host keys."""
    return click.option(
        "--accept-new", is_flag=True, help="Trust a host that is not known yet, and remember its key in known_nodes."
    )(command)


def accepter(*, yes: bool) -> "Callable[[NewHost], bool] | None":
    """Who decides about a host that nobody knows: --accept-new, else the user, else (None) nobody."""
    if yes:
        return _accept
    try:
        can_ask = os.isatty(0) and os.isatty(2)
    except OSError:
        can_ask = False
    return _ask_user if can_ask else None


def _accept(new: "NewHost") -> bool:
    click.echo(f"alknet: {printable(str(new))} It is remembered.", err=True)
    return True


def _ask_user(new: "NewHost") -> bool:
    click.echo(f"alknet: {printable(str(new))}", err=True)
    question = "Is that right? yes, no, or the fingerprint that it should be"
    answer = click.prompt(question, prompt_suffix=": ", default="no", show_default=False, err=True)
    return answer == "yes" or answer == new.key.fingerprint


def reporter(verbose: bool) -> Callable[[str], None]:
    """Where the dialer's reports go."""
    return (lambda line: click.echo(f"alknet: {printable(line)}", err=True)) if verbose else (lambda line: None)


def ask_node(invocation: Invocation, operation: str, values: dict[str, Any] | None = None) -> Any:
    """Ask the running local node; raises what it answers as the error that it is."""
    from alknet.control import SUBSYSTEM
    from alknet.ssh.client import ask, connect

    target = _target(invocation, _local_node(invocation, "owner"))
    request = json.dumps({"op": operation, "input": values or {}}).encode()

    async def main() -> bytes:
        async with connect(target, carriers=("tls",)) as link:  # on loopback QUIC has nothing to offer a question
            return await ask(link.ssh, SUBSYSTEM, request)

    answer = run_async(main)
    try:
        body = json.loads(answer)
    except ValueError:
        raise RemoteError("the node's answer is not JSON", hint="see the node's own log") from None
    if "error" in body:
        raise _as_error(body["error"])
    return body["output"]


def _local_node(invocation: Invocation, user: str) -> Destination:
    from alknet.keys import PublicKey
    from alknet.lock import find_running

    home = invocation.home
    running = find_running(home.lock)
    if running is None:
        raise UnavailableError(f"no node runs on {home.path}", hint="'alknet up' starts one; --home names another home")
    public = home.host_key.with_name(home.host_key.name + ".pub")
    key = PublicKey.parse(public.read_text(encoding="ascii"))
    addresses = tuple(({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port) for host, port in running.addresses)
    return Destination(addresses, user, key, str(public), "the local node", is_local=True)


def _identity(invocation: Invocation) -> Path | None:
    """--identity, else keys/owner, else (None) ssh-agent."""
    if invocation.identity is not None:
        if not invocation.identity.exists():
            raise NotFoundError(f"{invocation.identity}: there is no such key file")
        return invocation.identity
    owner = Path(invocation.home.owner_key)
    if owner.exists():
        check_private(owner)
        return owner
    if "SSH_AUTH_SOCK" in os.environ:
        return None
    raise NotFoundError(
        f"there is no key to log in with: {owner} is missing and no ssh-agent runs",
        hint="--identity names a private key file",
    )


def _as_error(error: dict[str, Any]) -> AlknetError:
    message, hint = str(error.get("message", "failed")), str(error.get("hint", ""))
    if "denial_id" in error:
        return DeniedError(message, denial_id=error["denial_id"], hint=hint)
    exc = AlknetError(message, hint=hint)
    exc.exit_code = int(error.get("exit_code", 1))
    return exc

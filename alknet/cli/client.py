"""Reaching a node from the command line: whom a PEER means, and asking the running local node."""

import asyncio
import getpass
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

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

if TYPE_CHECKING:
    from alknet.config.home import Home
    from alknet.config.model import Settings
    from alknet.ssh.client import Target

__all__ = ["ask_node", "find_target", "node_is_running", "reachable_addresses", "run_async"]

T = TypeVar("T")
LOCAL = "."


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


def find_target(invocation: Invocation, peer: str) -> "Target":
    """What PEER means: ``.`` the local node, a configured peer, or ``[user@]host[:port]``."""
    from alknet.config.addresses import split_host_port
    from alknet.config.load import load
    from alknet.config.model import DEFAULT_PORT
    from alknet.ssh.client import Target

    home = invocation.home
    user, _, rest = peer.rpartition("@")
    if rest == LOCAL:
        return _local_target(invocation, user or "owner")
    settings = load(home) if home.exists else None
    entry = next((p for p in settings.peers if p.id == rest), None) if settings else None
    identity = _identity(invocation)
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
    return Target(addresses, user, identity, entry.host_key if entry else None, name)


def ask_node(invocation: Invocation, operation: str, values: dict[str, Any] | None = None) -> Any:
    """Ask the running local node; raises what it answers as the error that it is."""
    from alknet.control import SUBSYSTEM
    from alknet.ssh.client import ask, connect

    target = _local_target(invocation)
    request = json.dumps({"op": operation, "input": values or {}}).encode()

    async def main() -> bytes:
        connection = await connect(target)
        try:
            return await ask(connection, SUBSYSTEM, request)
        finally:
            connection.close()
            await connection.wait_closed()

    answer = run_async(main)
    try:
        body = json.loads(answer)
    except ValueError:
        raise RemoteError("the node's answer is not JSON", hint="see the node's own log") from None
    if "error" in body:
        raise _as_error(body["error"])
    return body["output"]


def _local_target(invocation: Invocation, user: str = "owner") -> "Target":
    from alknet.keys import PublicKey
    from alknet.lock import find_running
    from alknet.ssh.client import Target

    home = invocation.home
    running = find_running(home.lock)
    if running is None:
        raise UnavailableError(f"no node runs on {home.path}", hint="'alknet up' starts one; --home names another home")
    line = home.host_key.with_name(home.host_key.name + ".pub").read_text(encoding="ascii")
    addresses = tuple(({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port) for host, port in running.addresses)
    return Target(addresses, user, _identity(invocation), PublicKey.parse(line), "the local node")


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

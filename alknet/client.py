"""Calling a node's operations from a program.

::

    async with alknet.connect("hub") as peer:
        chunk = await peer.call("fs/read", path="notes.txt")
        async with peer.subscribe("logs/follow", unit="web") as lines:
            async for line in lines:
                print(line)
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from alknet.alpn.dial import CARRIERS
from alknet.call.carried import SUBSYSTEM
from alknet.call.client import Credentials, Link, over_stream
from alknet.call.client import connect as connect_calls
from alknet.call.context import input_of
from alknet.call.errors import CallError
from alknet.call.machine import DEFAULT_CREDIT
from alknet.call.subscription import Subscription
from alknet.config.home import Home, default_home
from alknet.destination import LOCAL, call_target, find_destination, private_key, ssh_target
from alknet.errors import UsageError
from alknet.keys import PublicKey

__all__ = ["CALL_CARRIERS", "Peer", "connect", "credentials_of"]

DISCOVERY: Final = ("services/list", "services/schema")
CALL_CARRIERS: Final = ("auto", "quic", "tls", "ssh")


class Peer:
    """A node at the other end of a connection, made by :func:`connect`."""

    def __init__(self, link: Link, *, behind: str | None = None) -> None:
        """`behind`: the peer of that node which is meant, not the node itself."""
        self._link = link
        self._session = link.session
        self._behind = behind

    @property
    def node(self) -> str:
        """What the node calls itself that is connected: the one in between, where there is one."""
        return self._link.node

    @property
    def behind(self) -> str | None:
        """The peer of that node which is reached through it; None when the node itself is."""
        return self._behind

    @property
    def node_key(self) -> PublicKey | None:
        """The key that it has proven; None over SSH, where the host key was."""
        return self._link.node_key

    @property
    def identity(self) -> str | None:
        """As which of its peers the node knows this side; None for nobody in particular."""
        return self._link.identity

    @property
    def transport(self) -> str:
        """``quic``, ``tls`` or ``ssh``."""
        return self._session.connection.transport

    @property
    def address(self) -> str:
        return str(self._link.carrier.remote)

    async def call(self, name: str, value: Any = None, /, *, timeout: float | None = None, **inputs: Any) -> Any:
        """Call an operation: ``await peer.call("fs/read", path="a")``, or with a ready dictionary as input.

        `timeout` is in seconds and shortens what the node allows. Raises `CallError`; cancelling it stops the handler.
        """
        asked, route = self._routed(name, input_of(name, value, inputs))
        return await self._session.call(name, asked, timeout_s=timeout, **route)

    async def batch(
        self, calls: Iterable[tuple[str, dict[str, Any]]], *, timeout: float | None = None
    ) -> list[Any | CallError]:
        """Several calls at once; their outputs in order, with a `CallError` in place of each that failed."""
        return await self._session.batch(
            [(name, *self._routed(name, value)) for name, value in calls], timeout_s=timeout
        )

    def subscribe(
        self,
        name: str,
        value: Any = None,
        /,
        *,
        timeout: float | None = None,
        credit: int = DEFAULT_CREDIT,
        **inputs: Any,
    ) -> Subscription:
        """Subscribe to an operation; `credit` items are on their way at once, however slowly they are read."""
        asked, route = self._routed(name, input_of(name, value, inputs))
        return self._session.subscribe(name, asked, credit=credit, timeout_s=timeout, **route)

    def _routed(self, name: str, value: Any) -> tuple[Any, dict[str, str]]:
        """(the input, further fields of the request). The node in between knows what the peer offers, and to whom."""
        if self._behind is None:
            return value, {}
        if name in DISCOVERY:
            return {**value, "peer": self._behind}, {}
        return value, {"peer": self._behind}

    async def round_trip(self) -> float:
        """Seconds that a question takes to the peer and back, whatever it lets this side do."""
        began = time.monotonic()
        if self._behind is None:
            await self._session.call("services/list", {"limit": 1})  # public, and on every node
        else:
            (await self._session.open_channel("ssh", peer=self._behind)).reset()
        return time.monotonic() - began

    async def wait_closed(self) -> str:
        """Wait until the connection has ended; why."""
        await self._session.wait_ended()
        return self._session.end_reason or ""


@asynccontextmanager
async def connect(
    peer: str = LOCAL,
    *,
    via: str | None = None,
    home: Path | str | None = None,
    identity: Path | str | None = None,
    token: str | None = None,
    anonymous: bool = False,
    carrier: str = "auto",
    codecs: Sequence[str] = ("msgpack", "json"),
    operations: Iterable[Any] = (),
    accept_new: Callable[[Any], bool] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> AsyncIterator[Peer]:
    """Reach a node: ``.`` for the one that runs on `home`, a configured peer's name, or ``host[:port]``.

    With `via`, which names a node in the same ways, it is a peer that this node has a connection with; so is, through
    the local node, a configured peer that has no address. What is called is what that peer offers to the node between.

    What proves who calls is `identity` (a private-key file), else the home's ``keys/owner``, else ssh-agent; with
    `token` alone, or `anonymous`, no key is used. `carrier` is one of `CALL_CARRIERS`. `operations` (decorated
    functions, modules, services) are offered to the node, and to nobody else, while the connection lasts. `accept_new`
    is asked about a node that nobody knows.

    Raises `UnavailableError` when it cannot be reached or is not the right node, and `CallError` when it refuses.
    """
    if carrier not in CALL_CARRIERS:
        raise UsageError(f"carrier must be one of {', '.join(CALL_CARRIERS)}, not {carrier!r}")
    if carrier == "ssh" and (anonymous or token is not None):
        what = "a token" if token is not None else "nobody in particular"
        raise UsageError(f"SSH lets in keys, not {what}", hint="take the carrier quic or tls")
    if anonymous and identity is not None:
        raise UsageError("anonymous and identity contradict each other", hint="leave out one of them")
    where = _home(home)
    to = find_destination(where, peer, jump=via)
    behind = None
    if to.through is not None:
        behind, to = to.through.peer, to.through.hub
    key = Path(identity) if identity is not None else None
    async with AsyncExitStack() as stack:
        server_of = None
        if offered := list(operations):
            from alknet.offer import Offer

            offer = Offer(offered)
            stack.push_async_callback(offer.aclose)
            server_of = offer.server_of
        if carrier == "ssh":
            from alknet.ssh.client import connect as connect_ssh
            from alknet.ssh.client import open_subsystem

            host = ssh_target(where, to, private_key(where, key), accept_new)
            ssh = await stack.enter_async_context(connect_ssh(host, report=report))
            stream = await open_subsystem(ssh.ssh, SUBSYSTEM)
            link = await over_stream(stream, ssh.carrier, codecs=codecs, server_of=server_of)
            stack.push_async_callback(link.session.aclose)
        else:
            credentials = await _credentials(where, key, token, anonymous=anonymous)
            node = call_target(where, to, credentials, accept_new)
            # On loopback QUIC has nothing to offer.
            carriers = {"auto": ("tls",) if to.is_local else CARRIERS}.get(carrier, (carrier,))
            link = await stack.enter_async_context(
                connect_calls(node, carriers=carriers, codecs=codecs, server_of=server_of, report=report)
            )
        yield Peer(link, behind=behind)


def _home(home: Path | str | None) -> Home:
    return Home(Path(home or default_home()).absolute())


async def credentials_of(path: Path | None, token: str | None = None) -> Credentials:
    """The key in a file, or (None) those of the ssh-agent; with a token as well, if there is one."""
    if path is None:
        from alknet.ssh.agent import agent_signers

        return Credentials(await agent_signers(), token)
    from alknet.sshsig import KeySigner

    return Credentials((await asyncio.to_thread(KeySigner.from_file, path),), token)


async def _credentials(home: Home, identity: Path | None, token: str | None, *, anonymous: bool) -> Credentials:
    if anonymous or (token is not None and identity is None):
        return Credentials(token=token)
    return await credentials_of(private_key(home, identity), token)

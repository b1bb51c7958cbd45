"""Reaching a peer inside of the connection that another node has with it."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from alknet.alpn.dial import CARRIERS
from alknet.alpn.streams import Connection, Stream
from alknet.call.carried import ChannelConnection
from alknet.call.client import connect
from alknet.client import credentials_of
from alknet.destination import Through, call_target

if TYPE_CHECKING:
    from alknet.config.home import Home
    from alknet.ssh.client import Reach

__all__ = ["ssh_through"]

SSH: Final = "ssh"
"""The service of a byte channel that leads to a node's SSH door."""


def ssh_through(
    home: "Home", through: Through, key: Path | None, accept_new: Callable[[Any], bool] | None = None
) -> "Reach":
    """The way to the SSH door of a peer, for the SSH client. `key` (None: the ssh-agent's) proves this side to the node
    in between, which carries what it cannot read."""

    @asynccontextmanager
    async def reach(
        *, carriers: Sequence[str], report: Callable[[str], None]
    ) -> AsyncIterator[tuple[Connection, Stream]]:
        target = call_target(home, through.hub, await credentials_of(key), accept_new)
        # On loopback QUIC has nothing to offer.
        chosen = ("tls",) if through.hub.is_local and tuple(carriers) == CARRIERS else carriers
        async with connect(target, carriers=chosen, report=report) as link:
            stream = await link.session.open_channel(SSH, peer=through.peer)
            report(f"{through.hub.name}: a channel leads to the SSH door of {through.peer!r}")
            yield ChannelConnection(link.carrier, stream, transport="channel"), stream

    return reach

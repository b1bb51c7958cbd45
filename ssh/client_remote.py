"""Asking a node to listen for this client: ``tcpip-forward`` and OpenSSH's ``streamlocal-forward``.

asyncssh enters a listener after it has handled the node's answer, and whoever connects at once may come in the same
read as that; so it is entered here before the question is asked.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import asyncssh
from asyncssh.listener import SSHTCPClientListener, SSHUNIXClientListener

from alknet.ssh.channel import PACKET_BYTES, WINDOW_BYTES

__all__ = ["listen_on_path", "listen_on_port"]

Arrived = Callable[..., Any]
"""Asked for the session of each connection that arrives, with its origin if that has a port."""


async def listen_on_port(ssh: asyncssh.SSHClientConnection, arrived: Arrived, host: str, port: int) -> int:
    """The port that the node listens on, its choice if `port` is 0; raises `ChannelListenError` where it does not."""
    host = host.lower()  # as asyncssh asks for it
    table: dict[Any, Any] = ssh._remote_listeners if port else ssh._dynamic_remote_listeners
    listener = SSHTCPClientListener[bytes](ssh, arrived, host, port, None, "strict", WINDOW_BYTES, PACKET_BYTES)
    with _entered(table, (host, port) if port else host, listener):
        return (await ssh.create_server(arrived, host, port)).get_port()


async def listen_on_path(ssh: asyncssh.SSHClientConnection, arrived: Arrived, path: str) -> None:
    """Have the node listen on a Unix socket; raises `ChannelListenError` where it does not."""
    listener = SSHUNIXClientListener[bytes](ssh, arrived, path, None, "strict", WINDOW_BYTES, PACKET_BYTES)
    with _entered(ssh._remote_listeners, path, listener):
        await ssh.create_unix_server(arrived, path)


@contextmanager
def _entered(table: dict[Any, Any], key: Any, listener: Any) -> Iterator[None]:
    table[key] = listener
    try:
        yield
    except BaseException:
        table.pop(key, None)
        raise

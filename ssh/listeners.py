"""Sockets that listen on behalf of a client, and pass on whoever connects."""

import asyncio
import errno
import logging
import os
import random
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from alknet.logs import event
from alknet.nofile import is_scarce
from alknet.runas import RunAs
from alknet.ssh.user_sockets import listen_on_tcp

__all__ = ["Listener", "bind_all", "free_ports"]

log = logging.getLogger("alknet.ssh")

MAX_ACCEPTS_PER_TURN: Final = 16
PORT_TRIES: Final = 32
FULL_PAUSE_S: Final = 0.1
"""How long accepting pauses while the client's connection has no room for more, or the node no descriptor."""


async def bind_all(addresses: Sequence[str], ports: Iterable[int], user: RunAs) -> list[socket.socket]:
    """Sockets of `user` that listen on all `addresses` that this machine has, on the first in any case, with the first
    of `ports` that is free on all of them; 0 leaves the choice to the kernel. Raises `OSError`."""
    for port in ports:
        sockets: list[socket.socket] = []
        try:
            for address in addresses:
                number = sockets[0].getsockname()[1] if sockets else port
                try:
                    sockets.append(await listen_on_tcp(address, number, user))
                except OSError as exc:
                    if not sockets or exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                        raise
            return sockets
        except BaseException as exc:
            for sock in sockets:
                sock.close()
            if not isinstance(exc, OSError) or exc.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def free_ports(ranges: Sequence[range]) -> Iterator[int]:
    """Ports to try where any of `ranges` will do: the kernel's choice (0) if that is sure to be one of them."""
    for _ in range(PORT_TRIES):
        if any(1024 in ports and 65535 in ports for ports in ranges):
            yield 0
        elif ranges:
            yield random.choice(random.choice(ranges))


class Listener:
    """Accepts on `sockets`, which it owns, while `has_room`; `on_accept` gets each connected socket, not blocking, and
    the address that it comes from."""

    def __init__(
        self,
        sockets: Iterable[socket.socket],
        on_accept: Callable[[socket.socket, Any], None],
        *,
        has_room: Callable[[], bool],
    ) -> None:
        self._sockets = list(sockets)
        self._on_accept = on_accept
        self._has_room = has_room
        self._loop = asyncio.get_running_loop()
        for sock in self._sockets:
            self._loop.add_reader(sock, self._accept, sock)

    def close(self) -> None:
        """Stop listening; idempotent."""
        for sock in self._sockets:
            self._loop.remove_reader(sock)
            sock.close()
        self._sockets.clear()

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(MAX_ACCEPTS_PER_TURN):
            if not self._has_room():
                self._pause(listening)
                return
            try:
                sock, address = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                if exc.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    log.error(event("accepting for a client pauses", reason=exc.strerror))
                    self._pause(listening)
                    return
                continue  # the caller was gone before it was accepted
            if is_scarce(sock.fileno()):
                sock.close()
                log.error(event("connection rejected", limit="descriptors"))
                self._pause(listening)
                return
            sock.setblocking(False)
            self._on_accept(sock, address)

    def _pause(self, listening: socket.socket) -> None:
        """Whoever connects waits in the backlog."""
        self._loop.remove_reader(listening)
        self._loop.call_later(FULL_PAUSE_S, self._resume, listening)

    def _resume(self, listening: socket.socket) -> None:
        if listening in self._sockets:
            self._loop.add_reader(listening, self._accept, listening)

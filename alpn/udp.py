"""UDP sockets: datagrams in batches, and answers from the address that was asked.

A socket that is bound to every address answers from the one that the routing table likes, which the caller, behind a
NAT or with several paths, may not know. Such a socket asks the system for each datagram's destination (`IP_PKTINFO`,
RFC 3542) and names it again as the source of what is sent there.
"""

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any, Final

__all__ = ["MAX_BATCH", "Datagram", "UdpSocket", "bind_udp", "open_udp"]

MAX_BATCH: Final = 64
"""Datagrams that are received before the event loop gets its turn."""
MAX_BACKLOG: Final = 1024
"""Datagrams that wait for the system to take them; what is more is dropped, as a network does."""
MAX_DATAGRAM_BYTES: Final = 65535
RECEIVE_BUFFER_BYTES: Final = 4 * 1024 * 1024
"""Asked of the system for a socket that many share; it may give less."""

# Constants of <linux/in.h> and <linux/in6.h> that Python's socket module lacks.
_IP_RECVERR: Final = 11
_IPV6_RECVERR: Final = 25
_IP_PKTINFO: Final = 8

Datagram = tuple[bytes, Any, bytes | None]
"""Its bytes, the socket address that it came from, and the local address that it came to, packed, where it is known."""


def bind_udp(host: str, port: int) -> socket.socket:
    """A socket bound to `host` and `port`, not connected. Raises `OSError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, RECEIVE_BUFFER_BYTES)
        if host == "0.0.0.0":
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        elif host == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


def open_udp(family: int) -> socket.socket:
    """A socket for a dialer: not bound and not connected, so that the system chooses the source address anew for each
    datagram and a change of address is survived. It hears when nobody listens at the other end."""
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, RECEIVE_BUFFER_BYTES)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
    return sock


class UdpSocket:
    """A non-blocking socket on the event loop; owns it. `received` gets each batch, `failed` what the network reports
    of datagrams that were sent, `writable` is called when the system takes datagrams again."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        received: Callable[[list[Datagram]], None],
        writable: Callable[[], None],
        failed: Callable[[OSError], None] | None = None,
    ) -> None:
        self._sock = sock
        self._received = received
        self._writable = writable
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._backlog: deque[tuple[bytes, Any, bytes | None]] = deque()
        self._names_destination = sock.family == socket.AF_INET and sock.getsockname()[0] == "0.0.0.0"
        self._names_destination |= sock.family == socket.AF_INET6 and sock.getsockname()[0] == "::"
        self._names_destination &= failed is None
        self._buffer = bytearray(MAX_DATAGRAM_BYTES)
        self.dropped = 0
        self._loop.add_reader(sock, self._receive)

    @property
    def name(self) -> tuple[Any, ...]:
        """The local address, as the socket calls it."""
        name: tuple[Any, ...] = self._sock.getsockname()
        return name

    @property
    def is_blocked(self) -> bool:
        return bool(self._backlog)

    def send(self, data: bytes, address: Any, source: bytes | None = None) -> None:
        """Send, or keep for when the system takes it, or drop; `source` is the packed local address to send from."""
        if self._backlog:
            if len(self._backlog) < MAX_BACKLOG:
                self._backlog.append((data, address, source))
            else:
                self.dropped += 1
        elif not self._try_send(data, address, source):
            self._backlog.append((data, address, source))
            self._loop.add_writer(self._sock, self._send_backlog)

    def close(self) -> None:
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()

    def _try_send(self, data: bytes, address: Any, source: bytes | None) -> bool:
        """False when the system does not take it now. What cannot be sent at all is lost, as datagrams may be."""
        try:
            if source is None:
                self._sock.sendto(data, address)
            else:
                self._sock.sendmsg([data], [_from(source)], 0, address)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as exc:
            self.dropped += 1
            self._note(exc)
        return True

    def _send_backlog(self) -> None:
        while self._backlog:
            if not self._try_send(*self._backlog[0]):
                return
            self._backlog.popleft()
        self._loop.remove_writer(self._sock)
        self._writable()

    def _receive(self) -> None:
        batch: list[Datagram] = []
        for _ in range(MAX_BATCH):
            try:
                if self._names_destination:
                    data, ancillary, _, address = self._sock.recvmsg(MAX_DATAGRAM_BYTES, 64)
                    batch.append((data, address, _destination(ancillary)))
                else:
                    size, address = self._sock.recvfrom_into(self._buffer)
                    batch.append((bytes(memoryview(self._buffer)[:size]), address, None))
            except (BlockingIOError, InterruptedError):
                break
            except OSError as exc:
                self._note(exc)
        if batch:
            self._received(batch)

    def _note(self, exc: OSError) -> None:
        if self._failed is not None:
            # The system keeps a copy of each refusal for whoever asks; nobody does, and they would fill its memory.
            with contextlib.suppress(OSError):
                while self._sock.recvmsg(0, 512, socket.MSG_ERRQUEUE):
                    pass
            self._failed(exc)


def _destination(ancillary: list[tuple[int, int, bytes]]) -> bytes | None:
    """The packed local address of an `IP_PKTINFO` or `IPV6_PKTINFO` message."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            return data[8:12]
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            return data[:16]
    return None


def _from(source: bytes) -> tuple[int, int, bytes]:
    """The ancillary message that names the source of a datagram."""
    if len(source) == 4:
        return socket.IPPROTO_IP, _IP_PKTINFO, struct.pack("=I4s4s", 0, source, b"\0\0\0\0")
    return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, struct.pack("=16sI", source, 0)

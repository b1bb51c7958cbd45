"""UDP sockets: datagrams in batches, and answers from the address that was asked.

A socket that is bound to every address answers from the one that the routing table likes, which the caller, behind a
NAT or with several paths, may not know. Such a socket asks the system for each datagram's destination (`IP_PKTINFO`,
RFC 3542) and names it again as the source of what is sent there.

A system call for each datagram costs as much as making the datagram. Where Linux can (UDP_SEGMENT, UDP_GRO), a run of
datagrams of one size passes in one call each way.
"""

import asyncio
import contextlib
import errno
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

__all__ = ["MAX_BATCH", "Datagram", "UdpSocket", "bind_udp", "open_udp", "source_address"]

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
_SOL_UDP: Final = 17
_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104
MAX_SEGMENTS: Final = 50
"""Datagrams in one call; Linux takes 64."""
MAX_RUN_BYTES: Final = 65_000
"""Bytes in one call; Linux takes 64 KiB less the headers."""
_ANCILLARY_BYTES: Final = 128

_NO_SEGMENTS: Final = frozenset({errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.EOPNOTSUPP})
"""What a system or a network device answers that cannot cut one buffer into datagrams."""

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


def source_address(family: int, address: Any) -> str | None:
    """The local address that the system would send from to `address` now; None if it knows no way there."""
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.connect(address)  # sends nothing: it only asks the routing table
        except OSError:
            return None
        host: str = sock.getsockname()[0]
        return host


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
        self._buffer = bytearray(MAX_DATAGRAM_BYTES)
        self._segments = True
        """Whether the system is known, or still hoped, to take several datagrams in one call."""
        with contextlib.suppress(OSError):  # an older system hands them over one by one
            sock.setsockopt(_SOL_UDP, _UDP_GRO, 1)
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
        self.send_all([(data, address)], source)

    def send_all(self, datagrams: Sequence[tuple[bytes, Any]], source: bytes | None = None) -> None:
        """As `send`, for several."""
        at = 0
        while at < len(datagrams) and not self._backlog:
            count = _run_length(datagrams, at) if self._segments else 1
            done = self._try_send(datagrams[at : at + count], source)
            if not done:
                break
            at += done
        if at == len(datagrams):
            return
        if not self._backlog:
            self._loop.add_writer(self._sock, self._send_backlog)
        room = MAX_BACKLOG - len(self._backlog)
        waiting = datagrams[at : at + room]
        self._backlog.extend((data, address, source) for data, address in waiting)
        self.dropped += len(datagrams) - at - len(waiting)

    def close(self) -> None:
        """Idempotent."""
        if not self._is_closed:
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()

    @property
    def _is_closed(self) -> bool:
        return self._sock.fileno() < 0

    def _try_send(self, run: Sequence[tuple[bytes, Any]], source: bytes | None) -> int:
        """Send datagrams of one size to one address; returns how many are done with, 0 when the system takes none now.
        What cannot be sent at all is lost, as datagrams may be."""
        data, address = run[0]
        ancillary = [] if source is None else [_from(source)]
        if len(run) > 1:
            ancillary.append((_SOL_UDP, _UDP_SEGMENT, struct.pack("=H", len(data))))
        try:
            if ancillary:
                self._sock.sendmsg([data for data, _ in run], ancillary, 0, address)
            else:
                self._sock.sendto(data, address)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as exc:
            if len(run) > 1 and exc.errno in _NO_SEGMENTS:
                dropped = self.dropped
                done = self._try_send(run[:1], source)
                if done and self.dropped == dropped:
                    self._segments = False  # one alone passes, so it was not the address (a forged one may be any)
                return done
            self.dropped += len(run)
            self._note(exc)
        return len(run)

    def _send_backlog(self) -> None:
        while self._backlog:
            data, address, source = self._backlog[0]
            if not self._try_send([(data, address)], source) or self._is_closed:
                return
            self._backlog.popleft()
        self._loop.remove_writer(self._sock)
        self._writable()

    def _receive(self) -> None:
        batch: list[Datagram] = []
        for _ in range(MAX_BATCH):  # calls, because errors and empty datagrams add nothing to the batch
            try:
                size, ancillary, _, address = self._sock.recvmsg_into([self._buffer], _ANCILLARY_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as exc:
                self._note(exc)
                if self._is_closed:
                    return
                continue
            local, segment = None, size
            for level, kind, data in ancillary:
                if (level, kind) == (_SOL_UDP, _UDP_GRO):
                    segment = int.from_bytes(data[:4], sys.byteorder)
                elif (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
                    local = data[4:8]  # the address to answer from: of a broadcast it is not the one that was asked
                elif (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
                    local = data[:16]
            view = memoryview(self._buffer)
            for start in range(0, size, max(1, segment)):
                batch.append((bytes(view[start : min(start + segment, size)]), address, local))
            if len(batch) >= MAX_BATCH:
                break
        if batch:
            self._received(batch)
        else:
            self._watch_again()

    def _note(self, exc: OSError) -> None:
        if self._failed is not None:
            # The system keeps a copy of each refusal for whoever asks; nobody does, and they would fill its memory.
            with contextlib.suppress(OSError):
                while self._sock.recvmsg(0, 512, socket.MSG_ERRQUEUE):
                    pass
            self._watch_again()
            self._failed(exc)

    def _watch_again(self) -> None:
        """libuv, below uvloop, stops watching a socket that had an error, and says nothing of it."""
        if not self._is_closed:
            self._loop.remove_reader(self._sock)
            self._loop.add_reader(self._sock, self._receive)


def _run_length(datagrams: Sequence[tuple[bytes, Any]], start: int) -> int:
    """How many datagrams from `start` on can pass in one call: to one address, of one size, the last may be shorter."""
    data, address = datagrams[start]
    size = len(data)
    if not size:
        return 1
    end = min(len(datagrams), start + max(1, min(MAX_SEGMENTS, MAX_RUN_BYTES // size)))
    for at in range(start + 1, end):
        data, to = datagrams[at]
        if to != address or len(data) > size:
            return at - start
        if len(data) < size:
            return at - start + 1
    return end - start


def _from(source: bytes) -> tuple[int, int, bytes]:
    """The ancillary message that names the source of a datagram."""
    if len(source) == 4:
        return socket.IPPROTO_IP, _IP_PKTINFO, struct.pack("=I4s4s", 0, source, b"\0\0\0\0")
    return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, struct.pack("=16sI", source, 0)

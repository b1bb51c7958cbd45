"""The port: accepting sockets and finding out what each of them speaks.

One listening socket per address. An accepted socket waits, unread, until its first byte can be peeked at; then
whoever serves that kind of opening gets it untouched. Nothing here blocks the accept loop, and a socket that waits
costs no task: a reader callback, a timer and its place in the `Admission`.
"""

import asyncio
import errno
import logging
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from alknet.alpn.admission import Admission, Slot
from alknet.alpn.first_byte import Opening, opening
from alknet.alpn.router import Router
from alknet.alpn.streams import Address
from alknet.alpn.tcp import TcpConnection, keep_alive
from alknet.alpn.udp import bind_udp
from alknet.errors import StartupError
from alknet.logs import event
from alknet.nofile import is_scarce
from alknet.resolver import is_own

if TYPE_CHECKING:
    from alknet.alpn.quic_listener import QuicListener

__all__ = ["FIRST_BYTE_TIMEOUT_S", "SILENCE_S", "Carrier", "Port", "plain"]

log = logging.getLogger("alknet.alpn")

SILENCE_S: Final = 2.0
"""A client that says nothing for so long waits for a banner: that is SSH."""
FIRST_BYTE_TIMEOUT_S: Final = 10.0
"""A silent connection is closed after this where no carrier wants silence."""
BACKLOG: Final = 1024
MAX_ACCEPTS_PER_TURN: Final = 64
"""Sockets accepted before the event loop gets its turn."""
EXHAUSTED_PAUSE_S: Final = 0.5
"""How long accepting pauses when the process has no file descriptor left."""
PORT_ZERO_TRIES: Final = 16

Carrier = Callable[[socket.socket, Address, Slot], None]
"""Takes an admitted socket whose first bytes are still unread, and owns it and its slot from then on."""


def plain(alpn: str, router: Router) -> Carrier:
    """The carrier of a protocol that runs on the bare socket: the connection goes to the handler of `alpn`."""

    def carry(sock: socket.socket, remote: Address, slot: Slot) -> None:
        router.dispatch(TcpConnection(sock, alpn=alpn, remote=remote, on_login=slot.logged_in, on_closed=slot.leave))

    return carry


class Port:
    """Listens on several addresses. `carriers` says who takes which kind of opening; the rest is closed. With `quic`
    the same numbers are served on UDP."""

    def __init__(
        self, admission: Admission, carriers: Mapping[Opening, Carrier], quic: "QuicListener | None" = None
    ) -> None:
        self.admission = admission
        self.unserved: Counter[str] = Counter()
        """Connections closed because nobody serves what they speak, by kind; and ``silent`` ones."""
        self._carriers = carriers
        self._quic = quic
        self._listening: list[socket.socket] = []
        self._waiting: set[_Waiting] = set()
        self._introduced: dict[Address, Address] = {}
        self._loop = asyncio.get_running_loop()

    @property
    def addresses(self) -> tuple[Address, ...]:
        """What is listened on, with the real port where 0 was asked for."""
        return tuple(Address.of(sock.getsockname()) for sock in self._listening)

    @property
    def serves(self) -> tuple[str, ...]:
        """What connections over TCP may begin with."""
        return tuple(kind.value for kind in self._carriers)

    def listen(self, hosts: Sequence[str], port: int) -> None:
        """Listen on `port` of every one of `hosts`, together: the first must be there, an address family that
        this machine lacks is left out. Port 0 takes a free one, the same for all. Raises `StartupError`.

        TCP accepts only when UDP is bound too: whoever finds the port open finds all of it.
        """
        for _ in range(PORT_ZERO_TRIES if port == 0 else 1):
            streams: list[socket.socket] = []
            datagrams: list[socket.socket] = []
            try:
                for host in hosts:
                    chosen = streams[0].getsockname()[1] if streams else port
                    kind = "TCP"
                    sock = _bind(host, chosen, optional=bool(streams))
                    if sock is None:
                        continue
                    streams.append(sock)
                    if self._quic is not None:
                        kind = "UDP"
                        datagrams.append(bind_udp(host, sock.getsockname()[1]))
                kind = "TCP"
                for sock in streams:
                    sock.listen(BACKLOG)
            except OSError as exc:
                for sock in (*streams, *datagrams):
                    sock.close()
                if port == 0 and exc.errno == errno.EADDRINUSE:
                    continue
                raise _cannot_listen(host, chosen, kind, exc) from exc
            break
        else:
            raise StartupError(f"no port is free on all of {', '.join(hosts)}")
        for sock in datagrams:
            assert self._quic is not None
            self._quic.serve(sock)
        for sock in streams:
            self._listening.append(sock)
            self._loop.add_reader(sock, self._accept, sock)

    @contextmanager
    def introduced(self, source: Address, caller: Address | None) -> Iterator[None]:
        """Have the connection that this node makes to itself from `source` count as `caller`'s, on whose behalf it is
        made; until the next one from there."""
        if caller is not None:
            self._introduced[source] = caller
        try:
            yield
        except BaseException:
            self._introduced.pop(source, None)
            raise

    def is_own(self, address: str, port: int, *, any_address: bool = False) -> bool:
        """Whether this node listens there; with `any_address`, whether it listens on the port."""
        return is_own(((one.host, one.port) for one in self.addresses), any_address=any_address)(address, port)

    def stop_accepting(self) -> None:
        """Close the listening sockets and whatever has not said yet what it speaks; QUIC connections go on, and no
        new ones begin. Idempotent."""
        if self._quic is not None:
            self._quic.stop_accepting()
        for sock in self._listening:
            self._loop.remove_reader(sock)
            sock.close()
        self._listening.clear()
        for waiting in list(self._waiting):
            waiting.close()

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(MAX_ACCEPTS_PER_TURN):
            try:
                sock, name = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                if exc.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    log.error(event("accepting pauses", reason=exc.strerror))
                    self._loop.remove_reader(listening)
                    self._loop.call_later(EXHAUSTED_PAUSE_S, self._resume, listening)
                    return
                continue  # the caller was gone before it was accepted
            remote = Address.of(name)
            self._admit(sock, self._introduced.pop(remote, remote))

    def _resume(self, listening: socket.socket) -> None:
        if listening in self._listening:
            self._loop.add_reader(listening, self._accept, listening)

    def _admit(self, sock: socket.socket, remote: Address) -> None:
        if is_scarce(sock.fileno()):
            self.admission.refused["descriptors"] += 1
            log.error(event("connection rejected", remote_addr=remote.host, limit="descriptors"))
            sock.close()
            return
        slot = self.admission.enter(remote.host, self._loop.time())
        if isinstance(slot, str):
            log.warning(event("connection rejected", remote_addr=remote.host, limit=slot))
            sock.close()
            return
        try:
            sock.setblocking(False)
            sock.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
            )  # asyncio does it for sockets that it made itself
            keep_alive(sock)
            self._waiting.add(_Waiting(self, sock, remote, slot))
        except Exception:
            slot.leave()
            sock.close()
            raise

    def _decided(self, waiting: "_Waiting", kind: Opening | None) -> None:
        """`waiting` has said what it speaks, or has been silent until its deadline (None)."""
        self._waiting.discard(waiting)
        carrier = self._carriers.get(kind or Opening.SSH)
        if carrier is not None:
            try:
                carrier(waiting.sock, waiting.remote, waiting.slot)
            except Exception:
                log.exception(event("carrier failed", remote_addr=waiting.remote.host))
                waiting.end()
            return
        name = "silent" if kind is None else kind.value
        self.unserved[name] += 1
        log.info(event("connection closed", remote_addr=waiting.remote.host, opening=name))
        waiting.end()


class _Waiting:
    """An accepted socket before its first byte."""

    def __init__(self, port: Port, sock: socket.socket, remote: Address, slot: Slot) -> None:
        self.sock = sock
        self.remote = remote
        self.slot = slot
        self._port = port
        self._loop = port._loop
        silence_is_ssh = Opening.SSH in port._carriers
        patience = SILENCE_S if silence_is_ssh else FIRST_BYTE_TIMEOUT_S
        self._loop.add_reader(sock, self._peek)  # what may fail comes first
        self._timer = self._loop.call_later(patience, self._decide, None)

    def _peek(self) -> None:
        try:
            first = self.sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            first = b""
        if first:
            self._decide(opening(first[0]))
        else:
            self.close()  # it left without a word

    def _decide(self, kind: Opening | None) -> None:
        self._leave_loop()
        self._port._decided(self, kind)

    def close(self) -> None:
        self._leave_loop()
        self._port._waiting.discard(self)
        self.end()

    def end(self) -> None:
        self.sock.close()
        self.slot.leave()

    def _leave_loop(self) -> None:
        self._timer.cancel()
        self._loop.remove_reader(self.sock)


def _bind(host: str, port: int, *, optional: bool) -> socket.socket | None:
    """A bound TCP socket; None if `optional` and this machine has no such address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError:
        if optional:
            return None
        raise
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
    except OSError as exc:
        sock.close()
        if optional and exc.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return None
        raise
    return sock


def _cannot_listen(host: str, port: int, kind: str, exc: OSError) -> StartupError:
    hints = {
        errno.EADDRINUSE: "another program, perhaps another node, has it: stop that, or choose another address"
        " with --listen or node.listen",
        errno.EACCES: "ports below 1024 need root or CAP_NET_BIND_SERVICE; choose a higher one",
        errno.EADDRNOTAVAIL: "it is not an address of this machine; correct node.listen",
    }
    return StartupError(
        f"cannot listen on {Address(host, port)} ({kind}): {exc.strerror}",
        hint=hints.get(exc.errno or 0, ""),
    )

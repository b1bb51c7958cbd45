"""The contracts between carriers and handlers: `Connection` and `Stream`.

A carrier (plain TCP, TLS, QUIC, memory) implements both; a handler uses only these. What every
implementation owes is checked by one conformance suite, ``tests/alpn/conformance.py``.

**Backpressure.** `Stream.write` waits while more than a high-water mark is unsent, and a stream that nobody reads
stops its sender: the receiver holds at most a bounded amount (`MAX_BUFFERED_BYTES` and one receive, plus what the
operating system buffers; on QUIC, where nothing of it is the system's, the stream's window: `alknet.alpn.windows`).

**Ends.** `read` returns ``b""`` when the other side has finished writing; after a reset, or when the other side closed
its connection without closing the stream, it raises :class:`~alknet.alpn.errors.StreamBroken`. Using a stream after
this side closed it raises :class:`~alknet.alpn.errors.StreamClosed`, also in a task that was waiting.

**Tasks.** At most one task reads and one writes at a time. Cancelling `read` loses nothing; a cancelled `write` has
sent some part of its data from the beginning, perhaps all or none. The stream can be used further after both.
"""

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from alknet.access import Identity

__all__ = ["MAX_BUFFERED_BYTES", "READ_SIZE", "Address", "BaseConnection", "ChannelBinding", "Connection", "Stream"]

MAX_BUFFERED_BYTES: Final = 256 * 1024
"""What one end of a stream holds for a slow reader or writer, at most, beside the system's socket buffers."""
READ_SIZE: Final = 64 * 1024
"""How much `Stream.read` returns at most unless asked otherwise."""


@dataclass(frozen=True, slots=True)
class Address:
    """The other end's network address. `host` is a numeric IP address, IPv4-mapped ones as IPv4."""

    host: str
    port: int

    @classmethod
    def of(cls, name: tuple[object, ...]) -> "Address":
        """From what a socket calls its own or its peer's name."""
        host = str(name[0])
        return cls(host.removeprefix("::ffff:") if "." in host else host, int(str(name[1])))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ChannelBinding:
    """What both ends of one connection know of it and a third party in between would not: signatures cover it."""

    kind: str
    """``tls-spki``: SHA-256 of the public key of the certificate that served the connection; ``memory``: a random."""
    value: bytes


class Stream(Protocol):
    """A duplex byte stream with half-close and reset."""

    async def read(self, max_bytes: int = READ_SIZE) -> bytes:
        """Wait for bytes and return 1 to `max_bytes` of them; ``b""`` when the other side has finished."""

    async def write(self, data: bytes) -> None:
        """Send `data`; waits while the other side does not keep up."""

    async def write_eof(self) -> None:
        """Say that nothing more will be written; reading goes on."""

    def reset(self) -> None:
        """End both directions at once; what is unsent is lost. Idempotent."""

    async def aclose(self) -> None:
        """Send what was written, then end both directions; a reset or a close of the connection that follows does
        not take it back. Waits while the other side does not keep up, unless the stream was attached. Idempotent."""

    async def attach(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        """Hand the stream to an asyncio protocol and return its transport; read and write then belong to it.

        This is the seam to libraries that speak asyncio's transports (asyncssh, uvicorn). It must come before the
        first read or write. On a socket it costs nothing per byte.
        """


class Connection(Protocol):
    """One connection of a peer or a stranger, over some carrier."""

    id: str
    """Short and unique in this process, such as ``c12``; what `alknet sessions` shows."""
    alpn: str
    transport: str
    """``quic``, ``tls``, ``tcp`` or ``memory``; later also ssh, websocket."""
    remote: Address | None
    local: Address | None
    """The address of this machine that the other side reached."""
    channel_binding: ChannelBinding | None
    """None where the carrier has none: on plain TCP."""
    peer_certificates: tuple[bytes, ...]
    """What the listener showed, as the dialer got it: certificates in DER, its own first, that nobody has checked (see
    `alknet.verification`). Empty at the listener, and where the carrier has none."""
    since: float
    """When it began, in seconds since 1970."""
    identity: Identity | None
    """Who is at the other end, once proven."""
    polite_close: Callable[[str], None] | None
    """Set by the handler: ends the connection in its protocol's own way, with a reason that people read."""

    def logged_in(self, identity: Identity) -> None:
        """Note, once, who was proven to be there; the connection leaves the count of strangers."""

    async def open_stream(self) -> Stream:
        """Open a stream of this side's; raises `StreamsExhausted` on a carrier of one stream."""

    async def accept_stream(self) -> Stream:
        """The next stream that the other side opened; raises `ConnectionClosed` when none will come."""

    def close(self, code: int = 0, reason: str = "") -> None:
        """End the connection and reset its streams; `code` and `reason` reach the other side where the carrier has
        them. Idempotent."""

    def watch(self, patience_s: float) -> None:
        """From now on the other side is given up when it has not been heard for about `patience_s`, and the connection
        ends as lost: at this end, with its streams broken. For connections whose loss somebody waits for, because a
        sign of life is asked for more often than otherwise. Does nothing where the carrier has no means of its own
        (memory, and what runs inside another connection); on TCP and TLS it is the other machine that is heard."""

    close_reason: tuple[int, str] | None
    """What ended it, code and words, where the carrier tells: None on TCP and TLS. The words are the other side's, so
    show them escaped."""

    async def wait_closed(self) -> None:
        """Wait until the connection has ended, whoever ended it. That the other side did is noticed, where the
        carrier has no message for it, by reading or writing."""


_numbers = itertools.count(1)


class BaseConnection:
    """What is the same on every carrier: the facts of a connection and the note of who logged in."""

    channel_binding: ChannelBinding | None = None
    peer_certificates: tuple[bytes, ...] = ()
    polite_close: Callable[[str], None] | None = None
    close_reason: tuple[int, str] | None = None

    def __init__(
        self,
        *,
        alpn: str,
        transport: str,
        remote: Address | None,
        local: Address | None = None,
        on_login: Callable[[], None] | None = None,
    ) -> None:
        self.id = f"c{next(_numbers)}"
        self.alpn = alpn
        self.transport = transport
        self.remote = remote
        self.local = local
        self.since = time.time()
        self.identity: Identity | None = None
        self._on_login = on_login
        self._closed = asyncio.Event()

    def logged_in(self, identity: Identity) -> None:
        if self.identity is not None:
            raise RuntimeError(f"connection {self.id} has an identity already")
        self.identity = identity
        if self._on_login is not None:
            self._on_login()

    def watch(self, patience_s: float) -> None:
        pass

    async def wait_closed(self) -> None:
        await self._closed.wait()

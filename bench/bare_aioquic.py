"""What aioquic moves with nothing of alknet's around it: its own asyncio adapter, with the adapter's clock repaired.

``python bare_aioquic.py CERTIFICATE KEY`` listens on a free UDP port of 127.0.0.1, prints that port and serves one
stream for each connection: the client's first nine bytes say the direction and the size. `BareClient` is its client.

The adapter asks the event loop for the time. uvloop's is a millisecond old and as coarse, which stretches every round
trip that aioquic measures and its pacing with it; here the time is `time.monotonic`, as in a node. The sender's buffer
is held at what a node's stream may hold, because the adapter has no bound, and the sockets' buffers are as large as a
node's. A stream's bytes are counted where they come out of aioquic: no reader, no second buffer.
"""

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from aioquic.asyncio import QuicConnectionProtocol, connect, serve
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent, StreamDataReceived

from alknet.alpn.quic import MAX_SEND_BYTES
from alknet.alpn.udp import RECEIVE_BUFFER_BYTES

__all__ = ["BareClient", "dial_bare"]

ALPN = "bare"
HOST = "127.0.0.1"
IDLE_TIMEOUT_S = 3600.0
PIECE = bytes(64 * 1024)
HEADER_BYTES = 9


def configuration(*, is_client: bool) -> QuicConfiguration:
    return QuicConfiguration(alpn_protocols=[ALPN], is_client=is_client, idle_timeout=IDLE_TIMEOUT_S, verify_mode=0)


class _Repaired(QuicConnectionProtocol):
    """aioquic's adapter on `time.monotonic`, with one stream whose bytes are zeros."""

    _unsent = 0
    _sending_on = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        enlarge_buffers(transport)

    def connect(self, addr: Any, transmit: bool = True) -> None:
        self._quic.connect(addr, now=time.monotonic())
        if transmit:
            self.transmit()

    def transmit(self) -> None:
        self._transmit_task = None
        self._top_up()
        for data, address in self._quic.datagrams_to_send(now=time.monotonic()):
            self._transport.sendto(data, address)  # type: ignore[union-attr]
        timer_at = self._quic.get_timer()
        if self._timer is not None and self._timer_at != timer_at:
            self._timer.cancel()
            self._timer = None
        if self._timer is None and timer_at is not None:
            self._timer = self._loop.call_later(max(0.0, timer_at - time.monotonic()), self._handle_timer)
        self._timer_at = timer_at

    def datagram_received(self, data: Any, addr: Any) -> None:
        self._quic.receive_datagram(data, addr, now=time.monotonic())
        self._process_events()
        self.transmit()

    def _handle_timer(self) -> None:
        assert self._timer_at is not None
        now = max(self._timer_at, time.monotonic())
        self._timer = self._timer_at = None
        self._quic.handle_timer(now=now)
        self._process_events()
        self.transmit()

    def send_zeros(self, stream_id: int, count: int) -> None:
        """Send `count` zeros and the stream's end, as fast as the other side takes them."""
        self._sending_on, self._unsent = stream_id, count
        self._transmit_soon()

    def _top_up(self) -> None:
        if not self._unsent:
            return
        sender = self._quic._streams[self._sending_on].sender
        while self._unsent and len(sender._buffer) < MAX_SEND_BYTES:
            size = min(self._unsent, len(PIECE))
            self._unsent -= size
            self._quic.send_stream_data(self._sending_on, PIECE[:size], end_stream=not self._unsent)


class BareServer(_Repaired):
    """Sends what it is asked for, or takes what it is sent and says so."""

    _wish = b""

    def quic_event_received(self, event: QuicEvent) -> None:
        if not isinstance(event, StreamDataReceived):
            return
        if len(self._wish) < HEADER_BYTES:
            self._wish += event.data[: HEADER_BYTES - len(self._wish)]
            if len(self._wish) == HEADER_BYTES and self._wish[:1] == b"d":
                self.send_zeros(event.stream_id, int.from_bytes(self._wish[1:], "big"))
        if event.end_stream and self._wish[:1] == b"u":
            self._quic.send_stream_data(event.stream_id, b".", end_stream=True)


class BareClient(_Repaired):
    """Asks for bytes, or sends them."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._received = 0
        self._ended = asyncio.get_running_loop().create_future()

    async def transfer(self, direction: str, size: int) -> None:
        """Move `size` bytes ``down`` or ``up`` and wait until all have arrived."""
        stream_id = self._quic.get_next_available_stream_id()
        header = direction[:1].encode() + size.to_bytes(HEADER_BYTES - 1, "big")
        self._quic.send_stream_data(stream_id, header, end_stream=direction == "down")
        if direction == "up":
            self.send_zeros(stream_id, size)
        self._transmit_soon()
        await self._ended
        expected = size if direction == "down" else 1
        if self._received != expected:
            raise RuntimeError(f"{self._received} bytes came instead of {expected}")

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, StreamDataReceived):
            self._received += len(event.data)
            if event.end_stream:
                self._ended.set_result(None)


@asynccontextmanager
async def dial_bare(port: int) -> AsyncIterator[BareClient]:
    """A connection whose handshake is completed."""
    settings = configuration(is_client=True)
    async with connect(HOST, port, configuration=settings, create_protocol=BareClient) as client:
        assert isinstance(client, BareClient)
        yield client


def enlarge_buffers(transport: Any) -> None:
    sock = transport.get_extra_info("socket")
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, RECEIVE_BUFFER_BYTES)


async def listen(certificate: str, key: str) -> None:
    """Serve until the process is ended."""
    settings = configuration(is_client=False)
    settings.load_cert_chain(certificate, key)
    server = await serve(HOST, 0, configuration=settings, create_protocol=BareServer)
    transport: Any = server._transport
    enlarge_buffers(transport)
    print(transport.get_extra_info("sockname")[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(listen(sys.argv[1], sys.argv[2]))

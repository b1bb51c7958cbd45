"""What aioquic alone moves of the bytes of calls: requests and answers as long as alknet's, without a meaning.

``python call_quic.py CERTIFICATE KEY`` listens on a free UDP port of 127.0.0.1, prints that port, and answers each
`REQUEST_BYTES` that arrive on a stream with `ANSWER_BYTES`. Nothing is read but lengths; each request has an answer of
its own, and what one turn of the event loop brings travels together. The adapter is that of `bare_aioquic.py`.
"""

import asyncio
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from aioquic.asyncio import connect as connect_aioquic
from aioquic.asyncio import serve
from aioquic.quic.events import QuicEvent, StreamDataReceived
from bare_aioquic import BareServer, configuration, enlarge_buffers
from call_client import DATA, HOST, Order

from alknet.call.codecs import MSGPACK
from alknet.call.frames import frame

__all__ = ["connect"]

ID = "0123abcd.12345"
REQUEST = frame(
    MSGPACK.encode(
        {"type": "call.requested", "id": ID, "payload": {"operationId": "/echo/say", "input": {"data": DATA}}}
    )
)
ANSWER = frame(MSGPACK.encode({"type": "call.responded", "id": ID, "payload": {"output": DATA}}))
REQUEST_BYTES, ANSWER_BYTES = len(REQUEST), len(ANSWER)


class Answerer(BareServer):
    """Answers on the stream that the request came on."""

    _held = 0

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, StreamDataReceived):
            count, self._held = divmod(self._held + len(event.data), REQUEST_BYTES)
            for _ in range(count):
                self._quic.send_stream_data(event.stream_id, ANSWER)


class Asker(BareServer):
    """Asks on one stream, and wakes whoever has waited longest."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._held = 0
        self._stream_id = self._quic.get_next_available_stream_id()
        self._waiting: deque[asyncio.Future[None]] = deque()

    def call(self) -> "asyncio.Future[None]":
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        self._quic.send_stream_data(self._stream_id, REQUEST)
        self._transmit_soon()
        return answer

    def items(self, count: int) -> AsyncIterator[Any]:
        raise NotImplementedError("there are no subscriptions here")

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, StreamDataReceived):
            count, self._held = divmod(self._held + len(event.data), ANSWER_BYTES)
            for _ in range(count):
                self._waiting.popleft().set_result(None)


@asynccontextmanager
async def connect(order: Order) -> AsyncIterator[Asker]:
    """A connection whose handshake is completed."""
    settings = configuration(is_client=True)
    async with connect_aioquic(HOST, order.port, configuration=settings, create_protocol=Asker) as asker:
        assert isinstance(asker, Asker)
        yield asker


async def listen(certificate: str, key: str) -> None:
    """Serve until the process is ended."""
    settings = configuration(is_client=False)
    settings.load_cert_chain(certificate, key)
    server = await serve(HOST, 0, configuration=settings, create_protocol=Answerer)
    transport: Any = server._transport
    enlarge_buffers(transport)
    print(transport.get_extra_info("sockname")[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(listen(sys.argv[1], sys.argv[2]))

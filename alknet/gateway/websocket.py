"""The call protocol over a WebSocket: one envelope per binary message, without the length that streams need."""

import asyncio
from typing import Final

from starlette.types import Receive, Send
from uvicorn.protocols.utils import ClientDisconnected

from alknet.alpn.attach import StreamTransport
from alknet.alpn.errors import StreamBroken, StreamClosed
from alknet.alpn.streams import READ_SIZE
from alknet.call.errors import FrameError
from alknet.call.frames import FrameReader, frame
from alknet.tasks import Tasks

__all__ = ["SUBPROTOCOL", "TICKET_SUBPROTOCOL", "WebSocketStream"]

SUBPROTOCOL: Final = "alknet.call.v1"
TICKET_SUBPROTOCOL: Final = "alknet.ticket."
"""A second subprotocol that brings a ticket along: browsers can send nothing else."""
PROTOCOL_ERROR: Final = 1002
UNSUPPORTED_DATA: Final = 1003
MESSAGE_TOO_BIG: Final = 1009


class WebSocketStream:
    """An accepted WebSocket of ASGI as a `Stream` of frames."""

    def __init__(self, receive: Receive, send: Send, *, max_message: int) -> None:
        self._receive = receive
        self._send = send
        self._max_message = max_message
        self._outbound = FrameReader(max_frame=64 * 1024 * 1024)
        self._unread = b""
        self._is_over = False
        self._is_closed = False
        self._tasks = Tasks("websocket")
        self.closed = asyncio.Event()
        """Set when nothing more is read or written."""

    async def attach(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        return StreamTransport.start(self, protocol)

    async def read(self, max_bytes: int = READ_SIZE) -> bytes:
        if self._is_closed:
            raise StreamClosed("the stream was closed by this side")
        while not self._unread and not self._is_over:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                self._is_over = True
                break
            body = message.get("bytes")
            if body is None:
                await self._fail(UNSUPPORTED_DATA, "one envelope per binary message; this one is text")
            elif not body:
                await self._fail(PROTOCOL_ERROR, "an empty message is no envelope")
            elif len(body) > self._max_message:
                await self._fail(MESSAGE_TOO_BIG, f"a message has more than {self._max_message} bytes")
            else:
                self._unread = frame(body)
        data, self._unread = self._unread[:max_bytes], self._unread[max_bytes:]
        return data

    async def write(self, data: bytes) -> None:
        if self._is_closed:
            raise StreamClosed("the stream was closed by this side")
        try:
            for body in self._outbound.feed(data):
                await self._send({"type": "websocket.send", "bytes": body})
        except ClientDisconnected as exc:
            raise StreamBroken("the client is gone") from exc
        except FrameError as exc:  # ours, so this cannot be
            raise StreamBroken(f"a frame cannot be sent: {exc}") from exc

    async def write_eof(self) -> None:
        """A WebSocket ends both directions at once, when it is closed."""

    def reset(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._tasks.start(self._close(1001, ""), name="reset")

    async def aclose(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            await self._close(1000, "")

    async def _fail(self, code: int, reason: str) -> None:
        self._is_closed = True
        await self._close(code, reason)
        raise StreamBroken(f"the client sent what is no envelope: {reason}")

    async def _close(self, code: int, reason: str) -> None:
        try:
            if not self._is_over:
                await self._send({"type": "websocket.close", "code": code, "reason": reason})
        except (ClientDisconnected, RuntimeError):
            pass  # it was faster
        finally:
            self.closed.set()

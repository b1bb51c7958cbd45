"""Clients of `gateway.py` that open connections and are silent on them: event streams, or WebSockets after the hello.

``python gateway_idle.py JSON`` where the JSON is an `Idle`; prints how many are open, holds them until stdin ends,
and leaves without a word. They answer a WebSocket's pings: who does not is cut off.
"""

import asyncio
import base64
import json
import os
import ssl
import sys
from dataclasses import dataclass
from typing import Any

import uvloop
from gateway_client import HOST

from alknet.call.hello import DialerHello
from alknet.gateway.websocket import SUBPROTOCOL
from alknet.nofile import raise_limit

__all__ = ["Idle"]

TOGETHER = 200
"""That are opened at a time: an event stream begins when its handler has been silent for half a second."""
PATIENCE_S = 60.0
BINARY, PING, PONG = 0x82, 0x89, 0x8A
SHORT, LONG = 126, 127
"""What stands for the length of a frame when the length follows in two bytes, or in eight."""
UNMASKED = b"\0\0\0\0"
"""A mask that changes nothing."""
HELLO_ANSWERS = 2


@dataclass(frozen=True, slots=True)
class Idle:
    """What to hold."""

    kind: str
    """``sse`` or ``websocket``."""
    port: int
    token: str
    count: int
    tls: bool = False


class Waiting(asyncio.Protocol):
    """One connection. `is_open` is set when the server has begun to be silent."""

    def __init__(self, order: Idle) -> None:
        self.is_open = asyncio.Event()
        self.is_lost = False
        self._order = order
        self._unread = b""
        self._is_upgraded = False
        self._messages = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        order = self._order
        common = f"host: {HOST}:{order.port}\r\nauthorization: Bearer {order.token}\r\n"
        if order.kind == "sse":
            request = f"POST /ops/orders/wait HTTP/1.1\r\n{common}content-length: 0\r\n\r\n"
        else:
            key = base64.b64encode(os.urandom(16)).decode()
            request = (
                f"GET /alknet/call HTTP/1.1\r\n{common}connection: upgrade\r\nupgrade: websocket\r\n"
                f"sec-websocket-version: 13\r\nsec-websocket-key: {key}\r\n"
                f"sec-websocket-protocol: {SUBPROTOCOL}\r\n\r\n"
            )
        transport.write(request.encode())

    def data_received(self, data: bytes) -> None:
        self._unread += data
        if self._order.kind == "sse":
            if self.is_open.is_set():
                self._unread = b""
            elif b": keep-alive" in self._unread:
                self._check(b"HTTP/1.1 200")
                self.is_open.set()
            return
        if not self._is_upgraded:
            head, end, self._unread = self._unread.partition(b"\r\n\r\n")
            if not end:
                self._unread = head
                return
            self._unread, rest = head, self._unread
            self._check(b"HTTP/1.1 101")
            self._unread = rest
            self._is_upgraded = True
            self._send(BINARY, DialerHello(alpn="", binding=None).start())
        self._read_frames()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self.is_open.set()

    def _check(self, begin: bytes) -> None:
        if not self._unread.startswith(begin):
            raise RuntimeError(self._unread[:500].decode("latin-1"))

    def _read_frames(self) -> None:
        while len(self._unread) >= 2:
            first, length, start = self._unread[0], self._unread[1], 2
            if length == SHORT:
                length, start = int.from_bytes(self._unread[2:4], "big"), 4
            if length == LONG or len(self._unread) < start + length:
                return
            payload, self._unread = self._unread[start : start + length], self._unread[start + length :]
            if first == PING:
                self._send(PONG, payload)
            elif first == BINARY:
                self._messages += 1
                if self._messages == HELLO_ANSWERS:
                    self.is_open.set()

    def _send(self, first: int, payload: bytes) -> None:
        size = len(payload)
        length = bytes([0x80 | size]) if size < SHORT else bytes([0x80 | SHORT]) + size.to_bytes(2, "big")
        self._transport.write(bytes([first]) + length + UNMASKED + payload)


async def hold(order: Idle) -> None:
    """Open the connections, say how many there are, and hold them."""
    loop = asyncio.get_running_loop()
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    places = asyncio.Semaphore(TOGETHER)
    opened: list[Waiting] = []

    async def open_one() -> None:
        async with places, asyncio.timeout(PATIENCE_S):
            tls = context if order.tls else None
            _, waiting = await loop.create_connection(lambda: Waiting(order), HOST, order.port, ssl=tls)
            await waiting.is_open.wait()
            opened.append(waiting)

    async with asyncio.TaskGroup() as group:
        for _ in range(order.count):
            group.create_task(open_one())
    print(json.dumps({"open": sum(not one.is_lost for one in opened)}), flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    print(json.dumps({"open": sum(not one.is_lost for one in opened)}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    raise_limit()
    uvloop.run(hold(Idle(**json.loads(sys.argv[1]))))

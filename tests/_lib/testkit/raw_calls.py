"""The dialer's end of a call session without an engine: it says what a test wants said, and keeps what comes."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from alknet.alpn.errors import StreamBroken
from alknet.alpn.memory import MemoryConnection, MemoryStream, memory_pair
from alknet.alpn.streams import Address
from alknet.call.codecs import CODECS, Codec
from alknet.call.frames import CEILING_MAX_FRAME, FrameReader, frame
from alknet.call.hello import DIALER_NAMESPACE, DialerHello
from alknet.sshsig import sign
from testkit.calls import CallDoor

__all__ = ["RawCaller", "envelope", "raw_caller", "requested"]

PATIENCE_S = 10.0


def envelope(kind: str, id: Any, **payload: Any) -> dict[str, Any]:
    """An envelope of this type with this payload."""
    return {"type": kind, "id": id, "payload": payload}


def requested(id: Any, name: str, value: Any = None, **more: Any) -> dict[str, Any]:
    """A request; `more` are further fields of its payload."""
    return envelope("call.requested", id, operationId="/" + name, input=value, **more)


class RawCaller:
    """Alice's end of a session after the hello. Nothing is read but what a test waits for."""

    def __init__(self, connection: MemoryConnection, listener: MemoryConnection, stream: MemoryStream) -> None:
        self.connection = connection
        self.listener = listener
        """The other end of it, to see how that ends."""
        self.stream = stream
        self.codec: Codec = CODECS["json"]
        self._reader = FrameReader(max_frame=CEILING_MAX_FRAME)
        self._bodies: deque[bytes] = deque()

    def on(self, stream: MemoryStream) -> "RawCaller":
        """The same session on another of its streams."""
        other = RawCaller(self.connection, self.listener, stream)
        other.codec = self.codec
        return other

    async def send(self, *envelopes: Any) -> None:
        """Send envelopes in one write."""
        await self.write(b"".join(frame(self.codec.encode(one)) for one in envelopes))

    async def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        await self.stream.write(data)

    async def receive(self) -> Any:
        """The next envelope; None when the other side has ended the stream."""
        body = await self._body()
        return None if body is None else self.codec.decode(body)

    async def answers(self, count: int) -> dict[str, Any]:
        """The next `count` envelopes, by id."""
        return {got["id"]: got for got in [await self.receive() for _ in range(count)]}

    async def rest(self) -> list[Any]:
        """Everything up to the end of the stream."""
        got = []
        while (one := await self.receive()) is not None:
            got.append(one)
        return got

    async def say_hello(self, door: CallDoor, codec: str, *, anonymous: bool) -> None:
        hello = DialerHello(alpn="alknet/call", binding=self.connection.channel_binding, codecs=(codec,))
        await self.write(frame(hello.start()))
        hello.challenged(await self._body() or b"")
        key = None if anonymous else door.key.public_key
        message = hello.to_sign(key=key, token=None)
        signature = None if anonymous else await sign(door.key, message, namespace=DIALER_NAMESPACE)
        await self.write(frame(hello.proof(signature)))
        hello.finished(await self._body() or b"")
        self.codec = CODECS[codec]

    async def _body(self) -> bytes | None:
        async with asyncio.timeout(PATIENCE_S):
            while not self._bodies:
                try:
                    data = await self.stream.read()
                except StreamBroken:
                    return None
                if not data:
                    return None
                self._bodies += self._reader.feed(data)
            return self._bodies.popleft()


@asynccontextmanager
async def raw_caller(door: CallDoor, *, codec: str = "msgpack", anonymous: bool = False) -> AsyncIterator[RawCaller]:
    """A session of alice's, or of nobody's, without an engine at her end."""
    dialer, listener = memory_pair(alpn="alknet/call", remote=Address("192.0.2.1", 4000))
    door.router.dispatch(listener)
    try:
        caller = RawCaller(dialer, listener, await dialer.open_stream())
        await caller.say_hello(door, codec, anonymous=anonymous)
        yield caller
    finally:
        dialer.close()
